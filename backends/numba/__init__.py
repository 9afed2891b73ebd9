"""The Numba backend: loops compiled for this machine, over rows that stay in the first-level cache.

`kernels` has its functions. `layout` brings arrays to the forms that compiled code is made for, `labels` the labels of
losses, and `team` shares the work among threads; `rows`, `lanes`, `losses` and `elementwise` compute, in terms of the
functions in `vector`; `biases` does what the affine layer needs beside BLAS, `updates` what optimizers do with a
parameter, and `memory` says how results are written. `compiling` compiles, `warming` does so ahead, and `recycling`
makes the arrays for results. But for the last, nothing of this is imported, nor is numba, before a kernel is called.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.backends.numba.recycling import empty

__all__ = [
    "affine",
    "affine_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "empty",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
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

UPDATES = ("adam", "sgd")  # what optimizers do with a parameter


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in UPDATES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        with _uninterrupted():  # a half-imported numba would stay so
            from plugrad.backends.numba import compiling, kernels, updates

            compiling.load_compiler()
    except Exception as error:  # a library that cannot be loaded is an OSError
        from plugrad.backends.registry import BackendUnavailableError

        raise BackendUnavailableError(f"backend 'numba' cannot run here: numba fails to import: {error}") from error
    return getattr(updates if name in UPDATES else kernels, name)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # Python handles signals in its main thread only, and only those it was told to
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(*came[0])
        elif came and before == signal.SIG_DFL:
            signal.raise_signal(signal.SIGINT)


def thread_count() -> int:
    """The number of threads: as for every CPU backend, but no more than ``NUMBA_NUM_THREADS`` if that is set."""
    bound = _bound()
    return threads.count() if bound is None else min(threads.count(), bound)


def _bound() -> int | None:
    """The number that ``NUMBA_NUM_THREADS`` says; None if there is none in it."""
    text = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 10 else None


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile functions for dtypes ahead of their first call."""
    __getattr__("relu")  # or Ctrl-C could leave numba half-imported
    from plugrad.backends.numba import warming

    warming.warmup(names, dtypes)


def probe() -> str | None:
    """Why it cannot run here; keeps NumPy's matrix products to ``PLUGRAD_NUM_THREADS`` from here on."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: python -m pip install 'plugrad[numba]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "").strip() not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set, and without its compiler numba computes nothing here; unset it"
    if (bound := _bound()) is not None and bound < 1:
        return f"NUMBA_NUM_THREADS={bound}: numba expects a positive integer"
    if not hasattr(os, "sched_yield"):
        return "its threads need an operating system with sched_yield"
    threads.bound_blas()
    return None


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    blas = threads.blas_threads()
    products = f", matrix products {blas}" if blas else ""
    return {"version": version("numba"), "threads": f"{thread_count()}{products}", "devices": "CPU"}
