"""Kernels over rows of classes: softmax, log-softmax and the losses."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cupy import accuracies, binary_losses, elementwise, labels, products, rows
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.labels import LossArguments
from plugrad.backends.cupy.rows import (
    MOST_BLOCKS,
    ONE_BLOCK,
    Operation,
    contiguous,
    launch,
    launch_plan_for,
    layout,
    macros,
    write_contiguous,
)
from plugrad.backends.options import COMPUTE, LossOptions

SOFTMAX = Operation("softmax", inputs=1, sums=2)
LOG_SOFTMAX = Operation("log_softmax", inputs=1, sums=2)
SOFTMAX_BACKWARD = Operation("softmax_backward", inputs=2, sums=1)
LOG_SOFTMAX_BACKWARD = Operation("log_softmax_backward", inputs=2, sums=1)
LOSS_OF_CLASS = Operation("loss_of_class", inputs=1, sums=2)
LOSS_OF_TARGETS = Operation("loss_of_targets", inputs=2, sums=4)
CROSS_ENTROPY_OF_TARGETS = Operation("cross_entropy_of_targets", inputs=2, sums=1)
GRADIENT_OF_SOFTMAX = Operation("gradient_of_softmax", inputs=2, sums=1)
GRADIENT_OF_PROBABILITIES = Operation("gradient_of_probabilities", inputs=2, sums=1)


def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    _over_rows(SOFTMAX, axis, x, out)


def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y (dy - sum(dy y))``."""
    _over_rows(SOFTMAX_BACKWARD, axis, dy, y, out)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    _over_rows(LOG_SOFTMAX, axis, x, out)


def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) sum(dy)``."""
    _over_rows(LOG_SOFTMAX_BACKWARD, axis, dy, y, out)


def _over_rows(operation: Operation, axis: int, *arrays: Array) -> None:
    """Launch an operation on arrays of one shape; the last array is the result."""
    *reads, out = arrays
    row_layout = layout(out.shape, axis)
    reads = [contiguous(x) for x in reads]

    def write(target: Array) -> None:
        launch(launch_plan_for(operation, row_layout, *reads, target), *reads, target)

    write_contiguous(out, write)


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    _loss_and(x, t, options, loss, y, is_gradient=False)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    _loss_and(x, t, options, loss, dx, is_gradient=True)


def _loss_and(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, is_gradient: bool) -> None:
    row_layout = layout(x.shape, options.axis)
    loss_arguments = LossArguments(t, x, options, row_layout, loss, out)
    operation = LOSS_OF_CLASS if loss_arguments.one_class else LOSS_OF_TARGETS
    x = contiguous(x)

    def write(target: Array, losses: Array) -> None:
        plan = launch_plan_for(operation, row_layout, *loss_arguments.read_with(x, target))
        places = loss_arguments.destinations(losses, plan.grid[0])
        launch(plan, x, target, int(is_gradient), *loss_arguments.targets, *places)
        loss_arguments.finish(losses, plan.grid[0])

    write_contiguous(out, lambda target: write_contiguous(loss, partial(write, target)))


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    _gradient(GRADIENT_OF_SOFTMAX, dloss, y, t, options, dx)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss t / p``."""
    _gradient(GRADIENT_OF_PROBABILITIES, dloss, p, t, options, dp)


def _gradient(operation: Operation, dloss: Any, x: Array, t: Array, options: LossOptions, out: Array) -> None:
    row_layout = layout(x.shape, options.axis)
    loss_arguments = LossArguments(t, x, options, row_layout, out)
    upstream = loss_arguments.upstream(dloss)
    x = contiguous(x)

    def write(target: Array) -> None:
        launch(
            launch_plan_for(operation, row_layout, *loss_arguments.read_with(x, target)),
            x,
            target,
            *loss_arguments.targets,
            *upstream,
        )

    write_contiguous(out, write)


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    row_layout = layout(p.shape, options.axis)
    loss_arguments = LossArguments(t, p, options, row_layout, loss)
    p = contiguous(p)

    def write(losses: Array) -> None:
        if not loss_arguments.one_class:
            plan = launch_plan_for(CROSS_ENTROPY_OF_TARGETS, row_layout, *loss_arguments.read_with(p))
            blocks = plan.grid[0]
            launch(plan, p, *loss_arguments.targets, *loss_arguments.destinations(losses, blocks))
        else:
            blocks = 1 if row_layout.rows <= ONE_BLOCK else min(MOST_BLOCKS, -(-row_layout.rows // labels.THREADS))
            arguments = (*row_layout, p, *loss_arguments.targets, *loss_arguments.destinations(losses, blocks))
            kernel("cross_entropy_of_class", _of_class(p.dtype))((blocks,), (labels.THREADS,), arguments)
        loss_arguments.finish(losses, blocks)

    write_contiguous(loss, write)


def _of_class(dtype: np.dtype[Any]) -> Instance:
    return Instance("cross_entropy_of_class.cu", macros(dtype, 1, True))


# ---------------------------------------------------------------------------------------------------------------------
# Instances to compile
# ---------------------------------------------------------------------------------------------------------------------

Instances = Iterator[tuple[Instance, tuple[str, ...]]]

OPERATIONS: dict[str, tuple[Operation, ...]] = {
    "softmax": (SOFTMAX,),
    "softmax_backward": (SOFTMAX_BACKWARD,),
    "log_softmax": (LOG_SOFTMAX,),
    "log_softmax_backward": (LOG_SOFTMAX_BACKWARD,),
    "cross_entropy": (CROSS_ENTROPY_OF_TARGETS,),
    "cross_entropy_backward": (GRADIENT_OF_PROBABILITIES,),
    "softmax_cross_entropy": (LOSS_OF_CLASS, LOSS_OF_TARGETS),
    "softmax_cross_entropy_backward": (GRADIENT_OF_SOFTMAX,),
    "softmax_cross_entropy_value_and_grad": (LOSS_OF_CLASS, LOSS_OF_TARGETS),
    "linear_cross_entropy": (LOSS_OF_CLASS, LOSS_OF_TARGETS),
    "linear_cross_entropy_value_and_grad": (LOSS_OF_CLASS, LOSS_OF_TARGETS),
}


LAST_LAYER_KERNELS = (
    "widen_rows",
    "double_rows",
    "narrow_rows",
    "put_biases",
    "cap",
    "uncap",
    "add_to_total",
    "narrow_total",
)


def last_layer_instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for the layer of `linear_cross_entropy` on arrays of a dtype."""
    return Instance("last_layer.cu", macros(dtype, 1, True))


def largest_instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for the largest logits of a layer on arrays of a dtype."""
    return Instance("largest.cu", macros(dtype, 1, True))


def instances(name: str, dtype: np.dtype[Any]) -> Instances:
    """Every instance that function `name` may need for arrays of a dtype, and the names of its kernels."""
    if name.startswith("linear"):
        yield last_layer_instance(dtype), LAST_LAYER_KERNELS
        yield from products.instances(COMPUTE[dtype])
        if name == "linear_top_k":
            yield largest_instance(dtype), ("largest",)
        dtype = COMPUTE[dtype]  # the dtype of the logits
    for operation in OPERATIONS.get(name, ()):
        yield from rows.instances(operation, dtype)
    if hasattr(elementwise, name):
        yield from elementwise.instances(dtype)
    if name == "top_k_accuracy":
        yield from accuracies.instances(dtype)
    if name.startswith("sigmoid_cross_entropy"):
        yield from binary_losses.instances(dtype)
    if name.startswith("affine"):
        yield from products.instances(dtype)
    if "cross_entropy" in name:
        yield from labels.instances(dtype)
    if name == "cross_entropy":
        yield _of_class(dtype), ("cross_entropy_of_class",)


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile every CUDA kernel that the functions `names` may launch, and load it on the current device."""
    for dtype in dtypes:
        for name in names:
            for instance, kernels in instances(name, dtype):
                for each in kernels:
                    kernel(each, instance)
