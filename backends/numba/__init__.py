"""The Numba backend: loops compiled for this machine, over rows that stay in the first-level cache.

`kernels` has its functions. `layout` brings arrays to the forms that compiled code is made for, `labels` the labels of
losses, and `team` shares the work among threads; `rows`, `lanes`, `losses` and `elementwise` compute, in terms of the
functions in `vector`. `compiling` compiles. Nothing of this is imported, nor is numba, before a kernel is called.
"""

from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from plugrad.backends import threads
from plugrad.backends.numba.recycling import empty

__all__ = [
    "affine",
    "affine_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "empty",
    "log_softmax",
    "log_softmax_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_value_and_grad",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from plugrad.backends.numba import kernels
    except ImportError as error:
        from plugrad.backends.registry import BackendUnavailableError

        raise BackendUnavailableError(f"backend 'numba' cannot run here: numba fails to import: {error}") from error
    return getattr(kernels, name)


def probe() -> str | None:
    """Why it cannot run here; keeps NumPy's matrix products to ``PLUGRAD_NUM_THREADS`` from here on."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: python -m pip install 'plugrad[numba]'"
    threads.bound_blas()
    return None


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    blas = threads.blas_threads()
    products = f", matrix products {blas}" if blas else ""
    return {"version": version("numba"), "threads": f"{threads.count()}{products}", "devices": "CPU"}
