"""Cross-entropy of probabilities."""

from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.cpu.class_indices import LABEL
from plugrad.backends.cpu.probabilities import are_probabilities, check_probabilities, is_read_after
from plugrad.backends.numpy.labels import LabelBlocks, inner, label_elements, weighted
from plugrad.backends.numpy.pool import Scratch, run_blocks
from plugrad.backends.numpy.rows import classes_last, load, write
from plugrad.backends.options import LossOptions


class _LabelBlocks(LabelBlocks):
    """The same, and whether a block has numbers that are no probabilities."""

    __slots__ = ("are_doubtful",)

    def __init__(self, t: Array, p: Array, options: LossOptions) -> None:
        super().__init__(t, p, options)
        self.are_doubtful = False

    def note(self, p: Array) -> None:
        """Note whether some of the numbers that a block reads are no probabilities."""
        if not are_probabilities(p):
            self.are_doubtful = True

    def check(self, p: Array, t: Array) -> None:
        """Raise the error for numbers that the blocks have noted, unless no label selects them."""
        if self.are_doubtful:
            check_probabilities(p, t, self.options)


@quietly  # a sum may exceed the dtype of the loss
def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    labels = _LabelBlocks(t, p, options)
    is_checked_after = is_read_after(loss, p, t, options)
    if not is_checked_after:
        check_probabilities(p, t, options)
    rows, each = classes_last(p, options.axis), labels.rows_of(loss)
    if labels.one_class:
        arrays = labels.t, labels.sample_weight, rows, each
        block_sums = run_blocks(partial(_loss_of_classes, labels), arrays, labels.t.shape, LABEL)
    else:
        arrays = rows, labels.t, labels.sample_weight, each
        block_sums = run_blocks(partial(_loss, labels), arrays, rows.shape[:-1], labels.classes)
    if is_checked_after:
        labels.check(p, t)
    if each is None:
        loss[...] = labels.total(block_sums)


@quietly
def _loss_of_classes(
    labels: _LabelBlocks, scratch: Scratch, t: Array, of_rows: Array | None, p: Array, loss: Array | None
) -> float:
    label, weight, ignored = labels.single(t, of_rows)
    probability = p[label_elements(p, label)].reshape(-1).astype(labels.compute, copy=False)
    labels.note(probability)
    losses = np.subtract(0, np.log(probability))
    if weight is not None:
        losses = weighted(losses, weight)
    return labels.collect(losses, ignored, loss)


@quietly
def _loss(
    labels: _LabelBlocks, scratch: Scratch, p: Array, t: Array, of_rows: Array | None, loss: Array | None
) -> float:
    p = load(scratch, "p", p)
    labels.note(p)
    spread, _, ignored = labels.spread(t, of_rows, p, scratch)
    logs = np.log(p, out=scratch.like("logs", p))
    return labels.collect(np.subtract(0, inner(spread, logs, scratch)), ignored, loss)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    labels = _LabelBlocks(t, p, options)
    if not labels.divisor:
        dp[...] = 0
        return
    is_checked_after = is_read_after(dp, p, t, options)
    if not is_checked_after:
        check_probabilities(p, t, options)
    rows = classes_last(p, options.axis)
    task = _gradient_of_classes if labels.one_class else _gradient
    arrays = rows, labels.t, labels.sample_weight, labels.rows_of(dloss), classes_last(dp, options.axis)
    run_blocks(partial(task, labels, dloss), arrays, rows.shape[:-1], labels.classes)
    if is_checked_after:
        labels.check(p, t)


@quietly
def _gradient_of_classes(
    labels: _LabelBlocks,
    dloss: Any,
    scratch: Scratch,
    p: Array,
    t: Array,
    of_rows: Array | None,
    dlosses: Array | None,
    dp: Array,
) -> None:
    label, factor, _ = labels.single_gradient(t, of_rows, dloss if dlosses is None else dlosses)
    where = label_elements(p, label)
    probability = p[where].reshape(-1).astype(labels.compute, copy=False)
    labels.note(probability)
    slope = np.where(factor == 0, 0, -factor / probability)
    dp[...] = 0
    dp[where] = slope.reshape(dp.shape[:-1])


@quietly
def _gradient(
    labels: _LabelBlocks,
    dloss: Any,
    scratch: Scratch,
    p: Array,
    t: Array,
    of_rows: Array | None,
    dlosses: Array | None,
    dp: Array,
) -> None:
    factor = -labels.upstream(dloss if dlosses is None else dlosses)
    p = load(scratch, "p", p)
    labels.note(p)
    spread, _, _ = labels.spread(t, of_rows, p, scratch)
    slope = scratch.like("slope", p)
    write(np.multiply, spread, factor, slope)  # first: a quotient by a subnormal number may be too large
    np.divide(slope.reshape(dp.shape), p.reshape(dp.shape), out=dp, casting="same_kind")
    dp[spread.reshape(dp.shape) == 0] = 0
