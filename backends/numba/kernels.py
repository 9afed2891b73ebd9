"""The functions of the room."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.chunks import functions
from plugrad.backends.numba import biases, elementwise, lanes, losses, rows, team
from plugrad.backends.numba.labels import Labels
from plugrad.backends.numba.layout import (
    LIGHT,
    Array,
    by_lanes,
    over_elements,
    over_rows,
    raw,
    tiles,
    too_long,
    written,
)
from plugrad.backends.numpy.affine import gradients, product
from plugrad.backends.numpy.linear_cross_entropy import Room, in_chunks
from plugrad.backends.options import LossOptions

# From so many columns on, their sums are faster here than as a product of BLAS with ones.
LEAST_COLUMNS = 64

LABEL = 32  # the work on one label that is compared with one probability, in elements of softmax


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    over_elements(elementwise.relu, LIGHT, x, out)


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    over_elements(elementwise.relu_backward, LIGHT, dy, y, out)


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``."""
    over_elements(elementwise.sigmoid, 1, x, out)


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy y (1 - y)``."""
    over_elements(elementwise.sigmoid_backward, LIGHT, dy, y, out)


def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    over_rows(rows.softmax, lanes.softmax, axis, 1, x, out)


def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y (dy - sum(dy y))``."""
    over_rows(rows.softmax_backward, lanes.softmax_backward, axis, LIGHT, dy, y, out)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    over_rows(rows.log_softmax, lanes.log_softmax, axis, 1, x, out)


def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) sum(dy)``."""
    over_rows(rows.log_softmax_backward, lanes.log_softmax_backward, axis, 1, dy, y, out)


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    _softmax_with_loss(x, t, options, loss, y, gradient=False)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    _softmax_with_loss(x, t, options, loss, dx, gradient=True)


def _softmax_with_loss(x: Array, t: Array, options: LossOptions, loss: Array, out: Array, gradient: bool) -> None:
    x, t, options, out = _side_by_side(x, t, options, out)
    labels = Labels(t, x, options)
    factor = labels.compute.type(1 / labels.divisor if labels.divisor else 0)
    if not labels.divisor and gradient:
        loss[...] = out[...] = 0
        return
    each, classes = labels.losses(loss), x.shape[options.axis]
    given = labels.t, labels.weight, *labels.ignored
    shares = () if labels.one_class else labels.shares
    if by_lanes(x.shape, options.axis):
        units, size, form = tiles(x.shape, options.axis)
        sums, flat = np.empty(units), raw(x).reshape(-1)
        kernel = losses.softmax_loss_of_class_lanes if labels.one_class else losses.softmax_loss_of_lanes
        more = (*given, *shares, factor, gradient, each, sums, *form)
        written(out, lambda y: team.run(kernel, units, size, flat, *more, y.reshape(-1)))
    else:
        block, sums = labels.blocks(classes)
        rows = raw(x).reshape(-1, classes)
        kernel = losses.softmax_loss_of_classes if labels.one_class else losses.softmax_loss_of_labels
        more = (*given, *shares, factor, gradient, each, sums)
        written(
            out,
            lambda y: team.run(kernel, sums.size, block * classes, block, rows, *more, y.reshape(-1, classes)),
        )
    labels.collect(each, sums, loss)


def _side_by_side(x: Array, t: Array, options: LossOptions, out: Array) -> tuple[Array, Array, LossOptions, Array]:
    """The same with the classes along the last axis, if they are too many for tiles."""
    axis = options.axis
    if not too_long(x.shape, axis):
        return x, t, options, out
    moved = t if t.ndim < x.ndim else np.moveaxis(t, axis, -1)
    return np.moveaxis(x, axis, -1), moved, options._replace(axis=x.ndim - 1), np.moveaxis(out, axis, -1)


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    _gradient(losses.softmax_gradient, losses.softmax_gradient_of_lanes, dloss, y, t, options, dx)


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    p, t, options, _ = _side_by_side(p, t, options, p)
    labels = Labels(t, p, options)
    each, x = labels.losses(loss), raw(p)
    classes, inner = p.shape[options.axis], math.prod(p.shape[options.axis + 1 :])
    given = labels.t, labels.weight, *labels.ignored
    if labels.one_class:
        block, sums = labels.blocks(LABEL)
        form = (block, x.reshape(-1), classes, inner)
        team.run(losses.loss_of_classes, sums.size, block * LABEL, *form, *given, each, sums)
    elif by_lanes(p.shape, options.axis):
        units, size, tile = tiles(p.shape, options.axis)
        sums = np.empty(units)
        team.run(losses.loss_of_lanes, units, size, x.reshape(-1), *given, *labels.shares, each, sums, *tile)
    else:
        block, sums = labels.blocks(classes)
        rows = x.reshape(-1, classes)
        team.run(losses.loss_of_labels, sums.size, block * classes, block, rows, *given, *labels.shares, each, sums)
    labels.collect(each, sums, loss)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    _gradient(losses.loss_gradient, losses.loss_gradient_of_lanes, dloss, p, t, options, dp)


def _gradient(
    row_kernel: Callable[..., None],
    lane_kernel: Callable[..., None],
    dloss: Any,
    x: Array,
    t: Array,
    options: LossOptions,
    out: Array,
) -> None:
    x, t, options, out = _side_by_side(x, t, options, out)
    labels = Labels(t, x, options)
    if not labels.divisor:
        out[...] = 0
        return
    given = labels.t, labels.weight, *labels.ignored, *labels.shares, *labels.upstream(dloss)
    if by_lanes(x.shape, options.axis):
        units, size, tile = tiles(x.shape, options.axis)
        flat = raw(x).reshape(-1)
        written(out, lambda y: team.run(lane_kernel, units, size, flat, *given, *tile, y.reshape(-1)))
    else:
        rows = raw(x).reshape(-1, x.shape[options.axis])
        written(out, lambda y: team.run(row_kernel, len(rows), rows.shape[1], rows, *given, y.reshape(rows.shape)))


def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    if out.itemsize == 2 or not out.flags.carray or out is b:
        product(x, w, b, out)
        return
    product(x, w, None, out)
    if b is not None:
        rows = out if out.ndim == 2 else out.reshape(-1, out.shape[-1])
        team.run(biases.add_bias, len(rows), LIGHT * b.size, raw(b), rows)


def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for what is not wanted."""
    if db is not None and db.size >= LEAST_COLUMNS and all(db is not read for read in (dy, x, w)):
        _column_sums(dy, db)
        db = None
    if dx is not None or dw is not None or db is not None:
        gradients(dy, x, w, dx, dw, db)


def _column_sums(dy: Array, db: Array) -> None:
    rows = raw(dy).reshape(-1, db.size)
    units, work = -(-db.size // biases.COLUMNS), LIGHT * len(rows) * biases.COLUMNS
    written(db, lambda y: team.run(biases.column_sums, units, work, rows, y))


ROOM = Room(softmax_cross_entropy, softmax_cross_entropy_value_and_grad, _column_sums)

linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(lambda *given: in_chunks(ROOM, *given))
