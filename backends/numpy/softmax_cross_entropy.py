"""Softmax and cross-entropy in one pass over the logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blas import MOST_SUMMED, ones
from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.cpu.class_indices import check
from plugrad.backends.numpy.labels import LabelBlocks, inner, label_elements, weighted
from plugrad.backends.numpy.pool import Scratch, may_hold_work, run_blocks
from plugrad.backends.numpy.rows import (
    Elements,
    classes_last,
    elements,
    largest,
    load,
    log_of_sum,
    refine,
    starts,
    sums,
    work_in,
    write,
)
from plugrad.backends.options import LossOptions

# Up to this many elements, the whole arrays at once take less time than blocks: on an Intel Xeon (Sapphire Rapids) a
# quarter less for 256 rows of 10 classes, a tenth for 400; from 8,000 elements on more.
FEW = 2**12

# ignore_index, label_smoothing, reduction, divisor, sample_weight, z_loss and softcap of most calls
PLAIN = (None, 0.0, "mean", None, None, 0.0, None)


def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)`` and ``loss = -sum(t log(y))``."""
    labels = LabelBlocks(t, x, options)
    _over_rows(_loss_and_probabilities, labels, x, t, loss, y)


@quietly
def _loss_and_probabilities(
    labels: LabelBlocks,
    in_out: bool,
    scratch: Scratch,
    x: Array,
    t: Array,
    of_rows: Array | None,
    loss: Array | None,
    y: Array,
) -> float:
    e, (flat, index), rest, single, losses, _, _, ignored, _ = _forward(labels, in_out, scratch, x, t, of_rows, y)
    flat[index] = single
    write(np.divide, e, rest + single, y)
    return labels.collect(losses, ignored, loss)


def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(t log(softmax(x)))`` and ``dx = softmax(x) - t``."""
    if _are_few_rows(x, t, options):
        _quiet_few_rows(x, t, options, loss, dx)
        return
    labels = LabelBlocks(t, x, options)
    if not labels.divisor:
        loss[...] = 0
        dx[...] = 0
        return
    _over_rows(_loss_and_gradient, labels, x, t, loss, dx)


def _are_few_rows(x: Array, t: Array, options: LossOptions) -> bool:
    """Whether a batch is small, with class indices and no options."""
    return (
        x.ndim == 2
        and options.axis == 1
        and x.size <= FEW
        and max(x.shape) <= MOST_SUMMED
        and x.itemsize > 2
        and t.ndim == 1
        and options.weight is None
        and options.sample_weight is None
        and options[3:] == PLAIN
    )


def _few_rows(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """The results of `_loss_and_gradient`, for a small batch with class indices, as training loops call it.

    The same in half the time (on an EPYC 12 instead of 20 us for 32 rows of 10 classes), without what options, blocks
    and layouts need.
    """
    rows, classes = x.shape
    check(t, classes, options)
    x = np.ascontiguousarray(x)
    first, row_of_ones = starts(rows, classes), ones(x.dtype)
    top = x.reshape(-1)[x.argmax(1) + first]
    e = x - top[:, None]
    flat, index = e.reshape(-1), t.astype(np.intp, copy=False) + first
    label_logit = flat[index]
    np.exp(e, e)
    single = flat[index]
    flat[index] = 0
    rest = e.dot(row_of_ones[:classes])
    refine(rest, t, x, top)
    losses = np.log1p(rest + (single - row_of_ones[:rows])) - label_logit
    loss[...] = sum(losses.tolist()) / rows
    flat[index] = -rest
    np.multiply(e, (1 / rows / (rest + single))[:, None], dx)


_quiet_few_rows = quietly(_few_rows)


def _prepared(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> Callable[[], object] | None:
    """The call for a small batch, without what it looks up."""
    return partial(_few_rows, x, t, options, loss, dx) if _are_few_rows(x, t, options) else None


# kernel -> a function of its arguments, which returns the call that a replay of a capture makes, or None. In a replay
# NumPy does not warn.
PREPARED = {"softmax_cross_entropy_value_and_grad": _prepared}


@quietly
def _loss_and_gradient(
    labels: LabelBlocks,
    in_out: bool,
    scratch: Scratch,
    x: Array,
    t: Array,
    of_rows: Array | None,
    loss: Array | None,
    dx: Array,
) -> float:
    forward = _forward(labels, in_out, scratch, x, t, of_rows, dx)
    e, (flat, index), rest, single, losses, weight, spread, ignored, slope_of_z = forward
    total = rest + single
    factor = (1 if weight is None else weight) / labels.divisor / total
    # For the largest class y - 1 is -rest / sum, which keeps its accuracy where y is close to 1.
    flat[index] = -rest
    if slope_of_z is not None:
        slope_of_z /= labels.divisor * total
        at_label = single * slope_of_z - rest * factor
        factor += slope_of_z
    if ignored is not None:
        factor[ignored] = 0
        e[ignored] = 0
    if spread is None and slope_of_z is None:
        write(np.multiply, e, factor, dx)
        return labels.collect(losses, ignored, loss)
    np.multiply(e, factor[:, None], out=e)
    if slope_of_z is not None:
        flat[index] = at_label if ignored is None else np.where(ignored, 0, at_label)
    if spread is None:
        dx[...] = e.reshape(dx.shape)
    else:
        targets = (spread if spread.flags.c_contiguous else spread.T).reshape(-1)
        targets[index] -= weight
        np.divide(spread, labels.divisor, out=spread)
        np.subtract(e.reshape(dx.shape), spread.reshape(dx.shape), out=dx)
    return labels.collect(losses, ignored, loss)


@quietly  # a sum may exceed the dtype of the loss
def _over_rows(task: Callable[..., float], labels: LabelBlocks, x: Array, t: Array, loss: Array, out: Array) -> None:
    """Run a task that writes to `out` over blocks of rows, and take the loss from it."""
    each = labels.rows_of(loss)
    apart = out is not x and out is not t
    x, out = classes_last(x, labels.options.axis), classes_last(out, labels.options.axis)
    task = partial(task, labels, apart and may_hold_work(out))
    sums_of_blocks = run_blocks(task, (x, labels.t, labels.sample_weight, each, out), x.shape[:-1], labels.classes)
    if each is None:
        loss[...] = labels.total(sums_of_blocks)


def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss * (y - t)``."""
    labels = LabelBlocks(t, y, options)
    y, dx = classes_last(y, options.axis), classes_last(dx, options.axis)
    if not labels.divisor:
        dx[...] = 0
        return
    arrays = y, labels.t, labels.sample_weight, labels.rows_of(dloss), dx
    run_blocks(partial(_gradient, labels, dloss), arrays, y.shape[:-1], labels.classes)


@quietly
def _gradient(
    labels: LabelBlocks,
    dloss: Any,
    scratch: Scratch,
    y: Array,
    t: Array,
    of_rows: Array | None,
    dlosses: Array | None,
    dx: Array,
) -> None:
    if dlosses is not None:
        dloss = dlosses
    if labels.one_class:
        label, factor, ignored = labels.single_gradient(t, of_rows, dloss)
        where = label_elements(y, label)
        slope = (y[where].reshape(-1) - factor.dtype.type(1)) * factor  # before `dx`, which may be `y`, is written
        each = factor.reshape(*y.shape[:-1], 1) if factor.ndim else factor
        np.multiply(y, each, out=dx, dtype=labels.compute)
        dx[where] = slope.reshape(dx.shape[:-1])
    else:
        y = load(scratch, "y", y)
        spread, weight, ignored = labels.spread(t, of_rows, y, scratch)
        rows = np.multiply(y, weight[:, None], out=scratch.like("rows", y))
        rows -= spread
        write(np.multiply, rows, labels.upstream(dloss), dx)
    if ignored is not None:
        dx[ignored.reshape(dx.shape[:-1])] = 0


def _forward(
    labels: LabelBlocks, in_out: bool, scratch: Scratch, x: Array, t: Array, of_rows: Array | None, out: Array
) -> tuple[Array, Elements, Array, Array, Array, Array | None, Array | None, Array | None, Array | None]:
    """The exponentials, their sums and the losses of a block of rows.

    Returns ``exp(x - max)`` of the rows, but 0 for one element of each row, the label's or the largest; where these
    are; the sums of what is left; what these were; the losses; the sum of the weighted labels of each row (None: 1);
    the weighted labels (None: one class each); which rows are ignored (None: no row); and what the probabilities are
    multiplied by in the gradient of the z loss (None: there is none).
    """
    x = load(scratch, "x", x)
    top = largest(x)
    e = np.subtract(x, top[:, None], out=work_in(in_out, out, scratch, "e", x))
    if labels.one_class:
        spread = None
        columns, weight, ignored = labels.single(t, of_rows)
        one = elements(e, columns)
        label_logit = one[0][one[1]]
        np.exp(e, out=e)
        rest, single = sums(e, one)
        refine(rest, columns, x, top)
        logs = log_of_sum(rest, single)
        losses = logs - label_logit
        if weight is not None:
            losses = weighted(losses, weight)
    else:
        spread, weight, ignored = labels.spread(t, of_rows, e, scratch)
        product = inner(spread, e, scratch)
        columns = e.argmax(axis=1)
        np.exp(e, out=e)
        one = elements(e, columns)
        rest, single = sums(e, one)
        refine(rest, columns, x, top)
        logs = log_of_sum(rest, single)
        losses = weight * logs - product
    slope_of_z = labels.add_z_loss(losses, of_rows, top + logs) if labels.z_loss else None
    return e, one, rest, single, losses, weight, spread, ignored, slope_of_z
