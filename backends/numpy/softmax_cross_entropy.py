"""Softmax and cross-entropy in one pass over the logits."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends.numpy.blocks import Array, Scratch, quietly, run
from plugrad.backends.numpy.labels import Labels, inner, weighted
from plugrad.backends.numpy.rows import Elements, Places, classes_last, largest, load, log_of_sum, sums, write
from plugrad.backends.options import LossOptions


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    x, y = classes_last(x, options.axis), classes_last(y, options.axis)
    labels = Labels(t, x, options)
    each = labels.rows_of(loss)
    block_sums = run(partial(_loss_and_probabilities, labels), (x, labels.t, each, y), labels.classes)
    if each is None:
        loss[...] = labels.total(block_sums)


@quietly
def _loss_and_probabilities(
    labels: Labels, scratch: Scratch, x: Array, t: Array, loss: Array | None, y: Array
) -> float:
    rows = _forward(labels, scratch, x, t)
    rows.one.flat[rows.one.index] = rows.single
    write(np.divide, rows.e, rows.rest + rows.single, y)
    return labels.collect(rows.losses, rows.ignored, loss)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    x, dx = classes_last(x, options.axis), classes_last(dx, options.axis)
    labels = Labels(t, x, options)
    if not labels.scale:
        loss[...] = 0
        dx[...] = 0
        return
    each = labels.rows_of(loss)
    block_sums = run(partial(_loss_and_gradient, labels), (x, labels.t, each, dx), labels.classes)
    if each is None:
        loss[...] = labels.total(block_sums)


@quietly
def _loss_and_gradient(labels: Labels, scratch: Scratch, x: Array, t: Array, loss: Array | None, dx: Array) -> float:
    rows = _forward(labels, scratch, x, t)
    factor = (labels.scale if rows.weight is None else labels.scale * rows.weight) / (rows.rest + rows.single)
    # y - 1 for the label is -rest / sum, which keeps its accuracy where y is close to 1.
    rows.one.flat[rows.one.index] = -rows.rest if rows.labels is None else rows.single
    if rows.ignored is not None:
        factor[rows.ignored] = 0
        rows.e[rows.ignored] = 0
    if rows.labels is None:
        write(np.multiply, rows.e, factor, dx)
    else:
        np.multiply(rows.e, factor[:, None], out=rows.e)
        np.multiply(rows.labels, labels.scale, out=rows.labels)
        np.subtract(rows.e.reshape(dx.shape), rows.labels.reshape(dx.shape), out=dx)
    return labels.collect(rows.losses, rows.ignored, loss)


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    y, dx = classes_last(y, options.axis), classes_last(dx, options.axis)
    labels = Labels(t, y, options)
    if not labels.scale:
        dx[...] = 0
        return
    run(partial(_gradient, labels, dloss), (y, labels.t, labels.rows_of(dloss), dx), labels.classes)


@quietly
def _gradient(
    labels: Labels, dloss: Any, scratch: Scratch, y: Array, t: Array, dlosses: Array | None, dx: Array
) -> None:
    factor = labels.upstream(dloss if dlosses is None else dlosses)
    y = load(scratch, "y", y)
    rows = scratch.like("rows", y)
    np.copyto(rows, y)
    if labels.one_class:
        label, weight, ignored = labels.single(t)
        flat, index, _ = Places(rows).elements(rows, label)
        flat[index] -= 1
        if weight is not None:
            factor = factor * weight
    else:
        spread, weight, ignored = labels.spread(t, rows, scratch)
        rows *= weight[:, None]
        rows -= spread
    if ignored is not None:
        rows[ignored] = 0
        factor = np.where(ignored, 0, factor)
    write(np.multiply, rows, factor, dx)


class _Rows(NamedTuple):
    """A block of rows on the way to the loss and its gradient."""

    e: Array  # exp(x - max), but 0 at `one`
    one: Elements  # one element of each row: the label's, or the largest
    rest: Array  # the sum of `e`
    single: Array  # what stood at `one`
    losses: Array
    weight: Array | None  # the sum of the weighted labels of each row; None where it is 1
    labels: Array | None  # the weighted labels, with two dimensions; None where they are one class each
    ignored: Array | None


def _forward(labels: Labels, scratch: Scratch, x: Array, t: Array) -> _Rows:
    """The exponentials, their sums and the losses of a block of rows."""
    x = load(scratch, "x", x)
    top = largest(x)
    e = np.subtract(x, top[:, None], out=scratch.like("e", x))
    places = Places(e)
    if labels.one_class:
        spread = None
        label, weight, ignored = labels.single(t)
        one = places.elements(e, label)
        label_logit = one.flat[one.index]
        np.exp(e, out=e)
        rest, single = sums(e, one, x, top)
        losses = weighted(log_of_sum(rest, single) - label_logit, weight)
    else:
        spread, weight, ignored = labels.spread(t, e, scratch)
        product = inner(spread, e, scratch)
        one = places.elements(e, e.argmax(axis=1))
        np.exp(e, out=e)
        rest, single = sums(e, one, x, top)
        losses = weight * log_of_sum(rest, single) - product
    return _Rows(e, one, rest, single, losses, weight, spread, ignored)
