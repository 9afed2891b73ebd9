"""Kernels over rows of classes: softmax, log-softmax and the losses."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cupy import elementwise, labels, products, rows
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.labels import Labels
from plugrad.backends.cupy.rows import (
    MOST_BLOCKS,
    ONE_BLOCK,
    Operation,
    contiguous,
    layout,
    macros,
    planned,
    run,
    written,
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
GRADIENT_OF_PROBABILITIES = Operation("gradient_of_probabilities", inputs=2, sums=0)


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
    """Carry out an operation on arrays of one shape, the last one for the result."""
    *reads, out = arrays
    how = layout(out.shape, axis)
    reads = [contiguous(x) for x in reads]

    def write(target: Array) -> None:
        run(planned(operation, how, *reads, target), *reads, target)

    written(out, write)


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    _loss_and(x, t, options, loss, y, is_gradient=False)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    _loss_and(x, t, options, loss, dx, is_gradient=True)


def _loss_and(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, is_gradient: bool) -> None:
    how = layout(x.shape, options.axis)
    given = Labels(t, x, options, how, loss, out)
    operation = LOSS_OF_CLASS if given.one_class else LOSS_OF_TARGETS
    x = contiguous(x)

    def write(target: Array, losses: Array) -> None:
        chosen = planned(operation, how, *given.beside(x, target))
        places = given.losses(losses, chosen.grid[0])
        run(chosen, x, target, int(is_gradient), *given.arguments, *places)
        given.finish(losses, chosen.grid[0])

    written(out, lambda target: written(loss, partial(write, target)))


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    _gradient(GRADIENT_OF_SOFTMAX, dloss, y, t, options, dx)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss t / p``."""
    _gradient(GRADIENT_OF_PROBABILITIES, dloss, p, t, options, dp)


def _gradient(operation: Operation, dloss: Any, x: Array, t: Array, options: LossOptions, out: Array) -> None:
    how = layout(x.shape, options.axis)
    given = Labels(t, x, options, how, out)
    upstream = given.upstream(dloss)
    x = contiguous(x)

    def write(target: Array) -> None:
        run(planned(operation, how, *given.beside(x, target)), x, target, *given.arguments, *upstream)

    written(out, write)


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    how = layout(p.shape, options.axis)
    given = Labels(t, p, options, how, loss)
    p = contiguous(p)
    if not given.one_class:
        chosen = planned(CROSS_ENTROPY_OF_TARGETS, how, *given.beside(p))
        blocks = chosen.grid[0]
        run(chosen, p, *given.arguments, *given.losses(loss, blocks))
    else:
        blocks = 1 if how.rows <= ONE_BLOCK else min(MOST_BLOCKS, -(-how.rows // labels.THREADS))
        arguments = (*how, p, *given.arguments, *given.losses(loss, blocks))
        kernel("cross_entropy_of_class", _of_class(p.dtype))((blocks,), (labels.THREADS,), arguments)
    given.finish(loss, blocks)


def _of_class(dtype: np.dtype[Any]) -> Instance:
    return Instance("cross_entropy_of_class.cu", macros(dtype, 1, True))


# ---------------------------------------------------------------------------------------------------------------------
# What there is to compile
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


LAYER = ("widen_rows", "double_rows", "narrow_rows", "put_biases", "add_to_total", "narrow_total")


def layer_instance(dtype: np.dtype[Any]) -> Instance:
    """What is compiled for the layer of `linear_cross_entropy` on arrays of a dtype."""
    return Instance("last_layer.cu", macros(dtype, 1, True))


def instances(name: str, dtype: np.dtype[Any]) -> Instances:
    """Everything that function `name` may have compiled for arrays of a dtype, and the names of the kernels in it."""
    if name.startswith("linear"):
        yield layer_instance(dtype), LAYER
        yield from products.instances(COMPUTE[dtype])
        dtype = COMPUTE[dtype]  # of the logits
    for operation in OPERATIONS.get(name, ()):
        yield from rows.instances(operation, dtype)
    if name in elementwise.NAMES:
        yield from elementwise.instances(dtype)
    if name.startswith("affine"):
        yield from products.instances(dtype)
    if "cross_entropy" in name:
        yield from labels.instances(dtype)
    if name == "cross_entropy":
        yield _of_class(dtype), ("cross_entropy_of_class",)


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile all that functions may need for arrays of some dtypes, and load it on the current device."""
    for dtype in dtypes:
        for name in names:
            for instance, kernels in instances(name, dtype):
                for each in kernels:
                    kernel(each, instance)
