"""The NumPy backend: every kernel in terms of NumPy's fast primitives, over blocks of rows that stay in cache.

Each function gets checked arrays of one native floating dtype, any strides, and writes its result into an array that
exists already, which may be the very array that it reads. `blocks` cuts the work up and shares it among threads.
`updates` has what optimizers do with a parameter.
"""

from collections.abc import Mapping

import numpy as np

from plugrad.backends import threads
from plugrad.backends.numpy.affine import affine, affine_backward
from plugrad.backends.numpy.cross_entropy import cross_entropy, cross_entropy_backward
from plugrad.backends.numpy.elementwise import relu, relu_backward, sigmoid, sigmoid_backward
from plugrad.backends.numpy.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_value_and_grad
from plugrad.backends.numpy.softmax import log_softmax, log_softmax_backward, softmax, softmax_backward
from plugrad.backends.numpy.softmax_cross_entropy import (
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_value_and_grad,
)
from plugrad.backends.numpy.updates import adam as adam, sgd as sgd

__all__ = [
    "affine",
    "affine_backward",
    "cross_entropy",
    "cross_entropy_backward",
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


def probe() -> None:
    """It can run wherever NumPy can; keeps NumPy's matrix products to ``PLUGRAD_NUM_THREADS`` from here on."""
    threads.bound_blas()


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    blas = threads.blas_threads()
    products = f", matrix products {blas}" if blas else ""
    return {"version": np.__version__, "threads": f"{threads.count()}{products}", "devices": "CPU"}
