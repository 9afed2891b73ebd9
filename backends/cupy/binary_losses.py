"""Sigmoid and binary cross-entropy: a loss of each element by itself."""

import functools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import cupy
import numpy as np

from plugrad.backends import selection
from plugrad.backends.cpu.binary_labels import count
from plugrad.backends.cupy import labels
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.labels import COUNTED, NULL, THREADS, kind_of
from plugrad.backends.cupy.rows import MOST_BLOCKS, ONE_BLOCK, contiguous, macros, write_contiguous
from plugrad.backends.options import COMPUTE, BinaryLossOptions

KERNELS = ("count_elements", "binary_loss", "binary_gradient")


def sigmoid_cross_entropy(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
    """``y = sigmoid(x)`` and ``loss = -t log(y) - (1 - t) log(1 - y)``."""
    _loss_and(False, x, t, options, loss, y)


def sigmoid_cross_entropy_value_and_grad(
    x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array
) -> None:
    """The same loss and ``dx = sigmoid(x) - t``."""
    _loss_and(True, x, t, options, loss, dx)


def _loss_and(is_gradient: bool, x: Array, t: Array, options: BinaryLossOptions, loss: Array, out: Array) -> None:
    targets, divisor = _targets(t, x, options)
    x, blocks, is_each = contiguous(x), _blocks(x.size), options.reduction == "none"

    def write(target: Array, losses: Array) -> None:
        sums: Any = cupy.empty(blocks, np.float64) if blocks > 1 and not is_each else NULL
        places = (losses, NULL, NULL) if is_each else (NULL, sums, losses)
        given = (x.size, x, target, int(is_gradient), *targets, *places)
        kernel("binary_loss", instance(x.dtype))((blocks,), (THREADS,), given)
        if sums is not NULL:
            of_blocks = (sums, blocks, *divisor, losses)
            kernel("loss_of_blocks", labels.instance(COMPUTE[x.dtype]))((1,), (THREADS,), of_blocks)

    write_contiguous(out, lambda target: write_contiguous(loss, partial(write, target)))


def sigmoid_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: BinaryLossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    targets, _ = _targets(t, y, options)
    upstream: tuple[Any, ...] = dloss, NULL, 0, 0
    if not isinstance(dloss, float):
        upstream = 0.0, contiguous(dloss), kind_of(dloss.dtype), int(dloss.ndim > 0)
    y = contiguous(y)

    def write(target: Array) -> None:
        given = (y.size, y, target, *targets, *upstream)
        kernel("binary_gradient", instance(y.dtype))((_blocks(y.size),), (THREADS,), given)

    write_contiguous(dx, write)


def _blocks(size: int) -> int:
    return 1 if size <= ONE_BLOCK else min(MOST_BLOCKS, -(-size // (4 * THREADS)))


def _targets(t: Array, x: Array, options: BinaryLossOptions) -> tuple[tuple[Any, ...], tuple[float, Any]]:
    """The arguments for ``LABEL_PARAMETERS`` in binary_loss.cu, and the divisor among them."""
    if selection.options().get("check"):
        count(cupy.asnumpy(t), options)
    label = options.ignored_label(t.dtype)
    ignored: tuple[int, float, int] = 0, 0.0, 0  # for integers, for other numbers, and whether there is one
    if label is not None and t.dtype.kind in "iub":
        bits = int(label)
        ignored = bits if bits < 2**63 else bits - 2**64, 0.0, 1
    elif label is not None:
        ignored = 0, label, 1
    t, kind = contiguous(t), kind_of(t.dtype)
    divisor: tuple[float, Any] = (float(x.size) if options.reduction == "mean" else 1.0, NULL)
    if options.reduction == "mean" and label is not None:
        blocks = min(MOST_BLOCKS, -(-t.size // COUNTED))
        # As the kernels take them: the second half and the second number are for the z loss, which there is none of.
        parts, found = cupy.zeros(2 * blocks, np.float64), cupy.empty(2, np.float64)
        kernel("count_elements", instance(x.dtype))((blocks,), (THREADS,), (t.size, t, kind, *ignored[:2], parts))
        given = (parts, blocks, found, 0, NULL, 0.0, NULL)
        kernel("divisor_of_labels", labels.instance(COMPUTE[x.dtype]))((1,), (THREADS,), given)
        divisor = 0.0, found
    shares = 1 - options.label_smoothing, options.label_smoothing / 2
    weights = (*_periodic(options.weight, x), *_periodic(options.pos_weight, x))
    return (t, kind, *ignored, *shares, *weights, *divisor), divisor


def _periodic(weight: Array | None, x: Array) -> tuple[Any, int, int]:
    """Weights, their number, and `inner`: that of element `i` is at ``i // inner``, modulo their number."""
    if weight is None:
        return NULL, 1, 1
    shape = (1,) * (x.ndim - weight.ndim) + weight.shape
    several = [axis for axis, length in enumerate(shape) if length > 1]
    first, end = (several[0], several[-1] + 1) if several else (0, 0)
    if shape[first:end] != x.shape[first:end]:
        return contiguous(cupy.broadcast_to(weight, x.shape)), x.size, 1
    return contiguous(weight), weight.size, math.prod(x.shape[end:])


@functools.cache
def instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for arrays of a dtype."""
    return Instance("binary_loss.cu", macros(dtype, 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """The instance for arrays of a dtype, and the names of its kernels."""
    yield instance(dtype), KERNELS
