"""The NumPy backend: every kernel in terms of NumPy's fast primitives, over blocks of rows that stay in cache.

Each function gets checked arrays of one native floating dtype, any strides, and writes its result into an array that
exists already, which may be the very array that it reads. Every public function of a module with kernels is a kernel.
`pool` shares blocks among threads, and `updates` has the updates of optimizers.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.backends.cpu import kernel_functions
from plugrad.backends.cpu.affine import prepared_backward, prepared_forward
from plugrad.backends.numpy import (
    affine,
    cross_entropy,
    elementwise,
    linear_cross_entropy,
    sigmoid_cross_entropy,
    softmax,
    softmax_cross_entropy,
    top_k_accuracy,
    updates,
)
from plugrad.backends.numpy.softmax_cross_entropy import PREPARED

_KERNELS = kernel_functions(
    affine,
    cross_entropy,
    elementwise,
    linear_cross_entropy,
    sigmoid_cross_entropy,
    softmax,
    softmax_cross_entropy,
    top_k_accuracy,
)  # a new kernel in one of these modules needs nothing here

__all__ = list(_KERNELS)

globals().update(_KERNELS, **kernel_functions(updates))


_PREPARED: dict[str, Callable[..., Callable[[], object] | None]] = {
    "affine": prepared_forward,
    "affine_backward": prepared_backward,
    **PREPARED,
}


def prepare(kernel: str, *arguments: Any) -> Callable[[], object] | None:
    """A small call in the form in which a replay makes it, or None."""
    return _PREPARED[kernel](*arguments) if kernel in _PREPARED else None


def probe() -> None:
    """Bound the threads of matrix products by ``PLUGRAD_NUM_THREADS``; this backend runs wherever NumPy does."""
    threads.bound_blas()


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    blas = threads.blas_threads()
    products = f", matrix products {blas}" if blas else ""
    return {"version": np.__version__, "threads": f"{threads.count()}{products}", "devices": "CPU"}
