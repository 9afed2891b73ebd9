"""The losses and their gradients."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.cpu.probabilities import check_probabilities, is_read_after
from plugrad.backends.numba import fused_losses, loss_gradients, probability_losses
from plugrad.backends.numba.arrays import are_plain, contiguous, copy_result, result_array
from plugrad.backends.numba.labels import INT64, NO_WEIGHT, LabelArrays, ignored_label
from plugrad.backends.numba.targets import EACH, GRADIENT, IGNORES, MEAN, total_of_blocks
from plugrad.backends.numba.team import WORTH_SHARING, share_work
from plugrad.backends.numba.tiling import Cut, cut
from plugrad.backends.options import FLOAT64, LossOptions

LABEL = 32  # the work on one label that is compared with one probability, in elements of softmax

NO_SUMS = np.empty(0, FLOAT64)


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    _softmax_with_loss(x, t, options, loss, y, 0)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    _softmax_with_loss(x, t, options, loss, dx, GRADIENT)


def _softmax_with_loss(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, gradient: int) -> None:
    call = _small_call(x, t, options, loss, out, gradient)
    if call is not None and _run(call, x, t, loss, out):
        return  # else a label is wrong, and the error is raised below
    x, t, options, out, found = _cut(x, t, options, out)
    labels = LabelArrays(t, x, options)
    if gradient and not labels.divisor:
        loss[...] = out[...] = 0
        return
    place, units, work = found.in_blocks(found.size)
    each, sums, y = labels.losses(loss), np.empty(units), result_array(out)
    mode = gradient | (EACH if options.reduction == "none" else 0)
    factor = 1 / labels.divisor if labels.divisor else 0.0
    smoothing = () if labels.one_class else (float(options.label_smoothing),)
    arrays = contiguous(x).reshape(found.shape), labels.t, labels.weight, each, sums, y.reshape(found.shape)
    loop = _loop(found, labels.one_class)
    share_work(loop, units, work, *place, mode, labels.ignore, *smoothing, factor, *arrays)
    copy_result(y, out)
    labels.collect(each, sums, loss)


# The loop that computes a loss in one call, the shape in which it takes the rows, and its first arguments.
_Call: TypeAlias = tuple[Callable[..., int], tuple[int, int], tuple[Any, ...]]


def _small_call(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, gradient: int) -> _Call | None:
    """The one call of a compiled loop that computes the loss, if that takes the arrays as they are."""
    is_plain = (
        options.weight is None
        and options.sample_weight is None
        and t.flags.carray
        and loss.flags.carray
        and are_plain((x, out))
        and (t.dtype is INT64 or t.dtype.name != "uint64")
    )
    return _one_call(x.shape, t.ndim, options, gradient) if is_plain else None


def _run(call: _Call, x: Array, t: Array, loss: Array, out: Array) -> bool:
    """Make the call; False if a label is wrong, and then nothing has been written."""
    loop, matrix, scalars = call
    indices = t.ravel() if t.dtype is INT64 else t.astype(INT64).ravel()
    rows, y = (x, out) if x.shape == matrix else (x.reshape(matrix), out.reshape(matrix))
    return loop(*scalars, rows, indices, NO_WEIGHT[x.dtype], loss.ravel(), NO_SUMS, y) < 0


def _prepared(gradient: int) -> Callable[..., Callable[[], object] | None]:
    """A function that prepares a call: it takes the arguments, and returns the call that a replay makes, or None."""

    def prepare(x: Array, t: Array, options: LossOptions, loss: Array, out: Array) -> Callable[[], object] | None:
        call = _small_call(x, t, options, loss, out, gradient)
        if call is None:
            return None

        def compute() -> None:
            if not _run(call, x, t, loss, out):
                _softmax_with_loss(x, t, options, loss, out, gradient)  # raises the error

        return compute

    return prepare


PREPARED = {"softmax_cross_entropy": _prepared(0), "softmax_cross_entropy_value_and_grad": _prepared(GRADIENT)}


def _loop(found: Cut, one_class: bool) -> Callable[..., int]:
    if one_class:
        return fused_losses.tiles_of_class_indices if found.tiles else fused_losses.rows_of_class_indices
    return fused_losses.tiles_of_labels if found.tiles else fused_losses.rows_of_labels


@functools.lru_cache(1024)
def _one_call(shape: tuple[int, ...], labels_ndim: int, options: LossOptions, gradient: int) -> _Call | None:
    """The call of a compiled loop that computes a loss of this shape at once.

    None if the work is to be shared, or if labels or options take more than class indices of one class in each row.
    """
    found = cut(shape, options.axis)
    if found is None or labels_ndim == len(shape) or options.label_smoothing or options.divisor is not None:
        return None
    if options.z_loss:
        return None
    place, units, work = found.in_blocks(found.size)
    if units * work >= WORTH_SHARING:
        return None
    ignore = ignored_label(options)
    mode = gradient | (0 if ignore is None else IGNORES) | {"mean": MEAN, "sum": 0, "none": EACH}[options.reduction]
    return _loop(found, True), found.shape, (0, units, *place, mode, -1 if ignore is None else ignore, 1.0)


def _cut(x: Array, t: Array, options: LossOptions, out: Array) -> tuple[Array, Array, LossOptions, Array, Cut]:
    """The same and the cut, with the classes along the last axis if they are too many for tiles."""
    axis = options.axis
    if (found := cut(x.shape, axis)) is not None:
        return x, t, options, out, found
    moved = t if t.ndim < x.ndim else np.moveaxis(t, axis, -1)
    return _cut(np.moveaxis(x, axis, -1), moved, options._replace(axis=x.ndim - 1), np.moveaxis(out, axis, -1))


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    _gradient(loss_gradients.rows_of_softmax, loss_gradients.tiles_of_softmax, dloss, y, t, options, dx)


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    p, t, options, _, found = _cut(p, t, options, p)
    labels = LabelArrays(t, p, options)
    scalars: tuple[Any, ...] = (labels.ignore,)
    if labels.one_class:
        # One number of each row is read, wherever the row lies: blocks of rows, not tiles.
        loop, inner = probability_losses.class_indices, math.prod(p.shape[options.axis + 1 :])
        (_, block), units, work = found._replace(tiles=(), units=labels.rows).in_blocks(LABEL)
        place = inner, block
    else:
        loop = probability_losses.tiles_of_labels if found.tiles else probability_losses.rows_of_labels
        place, units, work = found.in_blocks(found.size)
        scalars = labels.ignore, float(options.label_smoothing)
    each, sums = labels.losses(loss), np.empty(units)
    rows = contiguous(p).reshape(found.shape)
    share_work(loop, units, work, *place, *scalars, rows, labels.t, labels.weight, each, sums)
    if math.isnan(sums[0] if units == 1 else total_of_blocks(sums)):
        check_probabilities(p, t, options)
    labels.collect(each, sums, loss)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    _gradient(loss_gradients.rows_of_probabilities, loss_gradients.tiles_of_probabilities, dloss, p, t, options, dp)


def _gradient(
    row_loop: Callable[..., Any],
    tile_loop: Callable[..., Any],
    dloss: Any,
    x: Array,
    t: Array,
    options: LossOptions,
    out: Array,
) -> None:
    """Run a loop of `loss_gradients` on `x`, the softmax or probabilities."""
    is_checked = row_loop is loss_gradients.rows_of_probabilities
    is_checked_after = is_checked and is_read_after(out, x, t, options)
    x, t, options, out, found = _cut(x, t, options, out)
    labels = LabelArrays(t, x, options)
    if not labels.divisor:
        out[...] = 0
        return
    wrong: list[None] = []
    y, loop = result_array(out), tile_loop if found.tiles else row_loop
    if is_checked_after:
        loop = _noting(loop, wrong)
    elif is_checked:
        check_probabilities(x, t, options)
    scalars = *found.tiles, labels.ignore, float(options.label_smoothing)
    arrays = contiguous(x).reshape(found.shape), labels.t, labels.weight, labels.upstream(dloss)
    share_work(loop, found.units, found.size, *scalars, *arrays, y.reshape(found.shape))
    if wrong:
        check_probabilities(x, t, options)
    copy_result(y, out)


def _noting(loop: Callable[..., bool], wrong: list[None]) -> Callable[..., None]:
    """The loop, which adds to `wrong` if a piece has found a number that is no probability."""

    def note(*arguments: Any) -> None:
        if loop(*arguments):
            wrong.append(None)

    return note
