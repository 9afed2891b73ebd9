"""Softmax and cross-entropy in one pass over the logits."""

from typing import Any, NamedTuple

import numpy as np

from plugrad.backends.numpy.blocks import Array, Index, Scratch, cut, run
from plugrad.backends.numpy.labels import Labels, inner, weighted
from plugrad.backends.numpy.rows import (
    Elements,
    classes_last,
    flat_rows,
    largest_elements,
    load,
    log_of_sum,
    per_row,
    shifted,
    sums,
)
from plugrad.backends.options import LossOptions


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    x, y = classes_last(x, options.axis), classes_last(y, options.axis)
    labels = Labels(t, x, options)

    def block(index: Index, scratch: Scratch) -> float:
        rows = _forward(labels, index, x[index], scratch)
        rows.flat[rows.one] = rows.single
        np.divide(rows.e, per_row(rows.rest + rows.single, rows.e), out=y[index])
        return labels.collect(rows.losses, rows.ignored, loss, index)

    labels.store(loss, run(block, cut(x.shape[:-1], x.shape[-1])))


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    x, dx = classes_last(x, options.axis), classes_last(dx, options.axis)
    labels = Labels(t, x, options)

    def block(index: Index, scratch: Scratch) -> float:
        rows = _forward(labels, index, x[index], scratch)
        factor = labels.scale if rows.weight is None else labels.scale * rows.weight
        factor = factor / (rows.rest + rows.single)
        # y - 1 for the label is -rest / sum, which keeps its accuracy where y is close to 1.
        rows.flat[rows.one] = rows.single if rows.labels is not None else -rows.rest
        if rows.ignored is not None:
            factor[rows.ignored] = 0
            rows.flat[rows.ignored] = 0
        if rows.labels is None:
            np.multiply(rows.e, per_row(factor, rows.e), out=dx[index])
        else:
            np.multiply(rows.e, per_row(factor, rows.e), out=rows.e)
            np.multiply(rows.labels, labels.scale, out=rows.labels)
            np.subtract(rows.e, rows.labels.reshape(rows.e.shape), out=dx[index])
        return labels.collect(rows.losses, rows.ignored, loss, index)

    if labels.scale:
        labels.store(loss, run(block, cut(x.shape[:-1], x.shape[-1])))
    else:
        loss[...] = 0
        dx[...] = 0


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    y, dx = classes_last(y, options.axis), classes_last(dx, options.axis)
    labels = Labels(t, y, options)

    def block(index: Index, scratch: Scratch) -> None:
        work = scratch.rows("work", y[index], labels.compute)
        np.copyto(work, y[index])
        flat = flat_rows(work)
        upstream = labels.upstream(dloss, index)
        if labels.one_class:
            one, weight, ignored = labels.single(index)
            flat[one] -= 1
            factor = upstream if weight is None else upstream * weight
        else:
            spread, weight, ignored = labels.spread(index, work, scratch)
            flat *= weight[:, None]
            flat -= spread
            factor = upstream
        if ignored is not None:
            flat[ignored] = 0
            factor = np.where(ignored, 0, factor)
        np.multiply(work, per_row(np.broadcast_to(factor, len(flat)), work), out=dx[index])

    if labels.scale:
        run(block, cut(y.shape[:-1], y.shape[-1]))
    else:
        dx[...] = 0


class _Rows(NamedTuple):
    """A block of rows on the way to the loss and its gradient."""

    e: Array  # exp(x - max), but 0 at `one`
    flat: Array  # `e` with two dimensions
    one: Elements  # one element per row: the label's, or the largest
    rest: Array  # the sum of `e`
    single: Array  # what stood at `one`
    losses: Array
    weight: Array | None  # the sum of the weighted labels of each row; None where it is 1
    labels: Array | None  # the weighted labels, with two dimensions; None where they are one class each
    ignored: Array | None


def _forward(labels: Labels, index: Index, x: Array, scratch: Scratch) -> _Rows:
    """The exponentials, their sums and the losses of a block of rows."""
    x = load(x, scratch, "x")
    e, largest = shifted(x, scratch, "e")
    flat = flat_rows(e)
    if labels.one_class:
        spread = None
        one, weight, ignored = labels.single(index)
        label_logit = flat[one]
        np.exp(e, out=e)
        rest, single = sums(flat, one, x, largest)
        losses = weighted(log_of_sum(rest, single) - label_logit, weight)
    else:
        spread, weight, ignored = labels.spread(index, e, scratch)
        product = inner(spread, flat, scratch)
        one = largest_elements(flat)
        np.exp(e, out=e)
        rest, single = sums(flat, one, x, largest)
        losses = weight * log_of_sum(rest, single) - product
    return _Rows(e, flat, one, rest, single, losses, weight, spread, ignored)
