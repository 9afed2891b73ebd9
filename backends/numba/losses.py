"""The losses and their gradients."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba import fused_losses, loss_gradients, probability_losses
from plugrad.backends.numba.arrays import contiguous, copy_result, result_array
from plugrad.backends.numba.labels import LabelArrays
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.tiling import in_tiles, tiling, too_long_for_tiles
from plugrad.backends.options import LossOptions

LABEL = 32  # the work on one label that is compared with one probability, in elements of softmax


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    _softmax_with_loss(x, t, options, loss, y, gradient=False)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    _softmax_with_loss(x, t, options, loss, dx, gradient=True)


def _softmax_with_loss(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, gradient: bool) -> None:
    x, t, options, out = _for_tiles(x, t, options, out)
    labels, shape = LabelArrays(t, x, options), x.shape
    if gradient and not labels.divisor:
        loss[...] = out[...] = 0
        return
    given = labels.arguments()
    given["factor"], given["gradient"] = 1 / labels.divisor if labels.divisor else 0.0, gradient
    classes, each, y = shape[options.axis], labels.losses(loss), result_array(out)
    if in_tiles(shape, options.axis):
        stack, lanes, units = tiling(shape, options.axis)
        sums, work = np.empty(units), classes * lanes
        loop = fused_losses.tiles_of_class_indices if labels.one_class else fused_losses.tiles_of_labels
        x, y = contiguous(x).reshape(stack), y.reshape(stack)
        share_work(loop, units, work, x=x, **given, losses=each, sums=sums, lanes=lanes, y=y)
    else:
        block, sums = labels.blocks(classes)
        loop = fused_losses.rows_of_class_indices if labels.one_class else fused_losses.rows_of_labels
        x, y = contiguous(x).reshape(-1, classes), y.reshape(-1, classes)
        share_work(loop, sums.size, block * classes, x=x, **given, losses=each, sums=sums, block=block, y=y)
    copy_result(y, out)
    labels.collect(each, sums, loss)


def _for_tiles(x: Array, t: Array, options: LossOptions, out: Array) -> tuple[Array, Array, LossOptions, Array]:
    """The same with the classes along the last axis, if they are too many for tiles."""
    axis = options.axis
    if not too_long_for_tiles(x.shape, axis):
        return x, t, options, out
    moved = t if t.ndim < x.ndim else np.moveaxis(t, axis, -1)
    return np.moveaxis(x, axis, -1), moved, options._replace(axis=x.ndim - 1), np.moveaxis(out, axis, -1)


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    _gradient(loss_gradients.rows_of_softmax, loss_gradients.tiles_of_softmax, dloss, y, t, options, dx)


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    p, t, options, _ = _for_tiles(p, t, options, p)
    labels, shape = LabelArrays(t, p, options), p.shape
    given, each, p = labels.arguments(), labels.losses(loss), contiguous(p)
    classes, inner = shape[options.axis], math.prod(shape[options.axis + 1 :])
    if labels.one_class:
        block, sums = labels.blocks(LABEL)
        p, loop = p.reshape(-1, classes, inner), probability_losses.class_indices
        share_work(loop, sums.size, block * LABEL, p=p, **given, losses=each, sums=sums, block=block)
    elif in_tiles(shape, options.axis):
        stack, lanes, units = tiling(shape, options.axis)
        sums, loop = np.empty(units), probability_losses.tiles_of_labels
        share_work(loop, units, classes * lanes, p=p.reshape(stack), **given, losses=each, sums=sums, lanes=lanes)
    else:
        block, sums = labels.blocks(classes)
        p, loop = p.reshape(-1, classes), probability_losses.rows_of_labels
        share_work(loop, sums.size, block * classes, p=p, **given, losses=each, sums=sums, block=block)
    labels.collect(each, sums, loss)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    _gradient(loss_gradients.rows_of_probabilities, loss_gradients.tiles_of_probabilities, dloss, p, t, options, dp)


def _gradient(
    row_loop: Callable[..., None],
    tile_loop: Callable[..., None],
    dloss: Any,
    x: Array,
    t: Array,
    options: LossOptions,
    out: Array,
) -> None:
    """Run a loop of `loss_gradients` on `x`, the softmax or probabilities."""
    x, t, options, out = _for_tiles(x, t, options, out)
    labels, shape = LabelArrays(t, x, options), x.shape
    if not labels.divisor:
        out[...] = 0
        return
    given = labels.arguments()
    given["smoothing"], given["upstream"] = float(options.label_smoothing), labels.upstream(dloss)
    classes, x, y = shape[options.axis], contiguous(x), result_array(out)
    if in_tiles(shape, options.axis):
        stack, lanes, units = tiling(shape, options.axis)
        share_work(tile_loop, units, classes * lanes, x=x.reshape(stack), **given, lanes=lanes, out=y.reshape(stack))
    else:
        x = x.reshape(-1, classes)
        share_work(row_loop, len(x), classes, x=x, **given, out=y.reshape(x.shape))
    copy_result(y, out)
