"""Forward and backward kernels for classifier training loops, computed by the selected backend.

Every function is pure: it returns new arrays, and writes to no argument but the one given as `out`. ``KERNELS`` has
one record per kernel; ``python -m plugrad.kernels`` prints them as the table in the README. `layers`, `optim`,
`jacobians` and `gradcheck` are modules of what training loops and their checks need beside them.
"""

import importlib
from typing import Any

from plugrad.backends.workspace import Workspace
from plugrad.kernels import (
    _affine,
    _cross_entropy,
    _linear_cross_entropy,
    _log_softmax,
    _relu,
    _sigmoid,
    _softmax,
    _softmax_cross_entropy,
)
from plugrad.kernels._affine import affine, affine_backward
from plugrad.kernels._cross_entropy import cross_entropy, cross_entropy_backward
from plugrad.kernels._kernel import Kernel
from plugrad.kernels._linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_value_and_grad
from plugrad.kernels._log_softmax import log_softmax, log_softmax_backward
from plugrad.kernels._relu import relu, relu_backward
from plugrad.kernels._sigmoid import sigmoid, sigmoid_backward
from plugrad.kernels._softmax import softmax, softmax_backward
from plugrad.kernels._softmax_cross_entropy import (
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_value_and_grad,
)

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for module in (
        _softmax,
        _log_softmax,
        _relu,
        _sigmoid,
        _affine,
        _cross_entropy,
        _softmax_cross_entropy,
        _linear_cross_entropy,
    )
    for kernel in module.KERNELS
}

MODULES = ("gradcheck", "jacobians", "layers", "optim")  # imported when they are asked for

__all__ = [
    "KERNELS",
    "Kernel",
    "Workspace",
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


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
