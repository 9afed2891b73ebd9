"""Forward and backward kernels for classifier training loops, computed by the backend in force.

Every function is pure: it returns new arrays and writes to no argument but `out`. ``KERNELS`` has one record per
kernel; ``python -m plugrad.kernels`` prints them as a table. The modules `layers`, `optim`, `jacobians` and
`gradcheck`, which training loops and their checks need in addition, are imported at their first use.
"""

import importlib
from typing import Any

from plugrad.backends.workspace import Workspace as Workspace
from plugrad.kernels._affine import affine as affine, affine_backward as affine_backward
from plugrad.kernels._capture import Graph as Graph, capture as capture
from plugrad.kernels._cross_entropy import (
    cross_entropy as cross_entropy,
    cross_entropy_backward as cross_entropy_backward,
)
from plugrad.kernels._dropout import dropout as dropout, dropout_backward as dropout_backward
from plugrad.kernels._gelu import gelu as gelu, gelu_backward as gelu_backward
from plugrad.kernels._kernel import KERNELS as KERNELS, Kernel as Kernel
from plugrad.kernels._leaky_relu import leaky_relu as leaky_relu, leaky_relu_backward as leaky_relu_backward
from plugrad.kernels._linear_cross_entropy import (
    linear_cross_entropy as linear_cross_entropy,
    linear_cross_entropy_value_and_grad as linear_cross_entropy_value_and_grad,
)
from plugrad.kernels._linear_top_k import linear_top_k as linear_top_k
from plugrad.kernels._log_softmax import log_softmax as log_softmax, log_softmax_backward as log_softmax_backward
from plugrad.kernels._relu import relu as relu, relu_backward as relu_backward
from plugrad.kernels._sigmoid import sigmoid as sigmoid, sigmoid_backward as sigmoid_backward
from plugrad.kernels._sigmoid_cross_entropy import (
    sigmoid_cross_entropy as sigmoid_cross_entropy,
    sigmoid_cross_entropy_backward as sigmoid_cross_entropy_backward,
    sigmoid_cross_entropy_value_and_grad as sigmoid_cross_entropy_value_and_grad,
)
from plugrad.kernels._silu import silu as silu, silu_backward as silu_backward
from plugrad.kernels._softmax import softmax as softmax, softmax_backward as softmax_backward
from plugrad.kernels._softmax_cross_entropy import (
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_backward as softmax_cross_entropy_backward,
    softmax_cross_entropy_value_and_grad as softmax_cross_entropy_value_and_grad,
)
from plugrad.kernels._tanh import tanh as tanh, tanh_backward as tanh_backward
from plugrad.kernels._top_k_accuracy import top_k_accuracy as top_k_accuracy

MODULES = ("gradcheck", "jacobians", "layers", "optim")

__all__ = [*KERNELS, *MODULES, "KERNELS", "Graph", "Kernel", "Workspace", "capture"]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
