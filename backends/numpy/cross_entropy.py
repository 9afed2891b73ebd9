"""Cross-entropy of probabilities."""

from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.cpu.class_indices import LABEL
from plugrad.backends.cpu.probabilities import check_probabilities
from plugrad.backends.numpy.labels import LabelBlocks, inner, label_elements, weighted
from plugrad.backends.numpy.pool import Scratch, run_blocks
from plugrad.backends.numpy.rows import classes_last, load, write
from plugrad.backends.options import LossOptions


@quietly  # a sum may exceed the dtype of the loss
def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    labels = LabelBlocks(t, p, options)
    check_probabilities(p, t, options)
    p = classes_last(p, options.axis)
    each = labels.rows_of(loss)
    if labels.one_class:
        block_sums = run_blocks(
            partial(_loss_of_classes, labels), (labels.t, labels.sample_weight, p, each), labels.t.shape, LABEL
        )
    else:
        block_sums = run_blocks(
            partial(_loss, labels), (p, labels.t, labels.sample_weight, each), p.shape[:-1], labels.classes
        )
    if each is None:
        loss[...] = labels.total(block_sums)


@quietly
def _loss_of_classes(
    labels: LabelBlocks, scratch: Scratch, t: Array, of_rows: Array | None, p: Array, loss: Array | None
) -> float:
    label, weight, ignored = labels.single(t, of_rows)
    probability = p[label_elements(p, label)].reshape(-1).astype(labels.compute, copy=False)
    losses = np.subtract(0, np.log(probability))
    if weight is not None:
        losses = weighted(losses, weight)
    return labels.collect(losses, ignored, loss)


@quietly
def _loss(
    labels: LabelBlocks, scratch: Scratch, p: Array, t: Array, of_rows: Array | None, loss: Array | None
) -> float:
    p = load(scratch, "p", p)
    spread, _, ignored = labels.spread(t, of_rows, p, scratch)
    logs = np.log(p, out=scratch.like("logs", p))
    return labels.collect(np.subtract(0, inner(spread, logs, scratch)), ignored, loss)


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    labels = LabelBlocks(t, p, options)
    check_probabilities(p, t, options)
    p, dp = classes_last(p, options.axis), classes_last(dp, options.axis)
    if not labels.divisor:
        dp[...] = 0
        return
    task = _gradient_of_classes if labels.one_class else _gradient
    arrays = p, labels.t, labels.sample_weight, labels.rows_of(dloss), dp
    run_blocks(partial(task, labels, dloss), arrays, p.shape[:-1], labels.classes)


@quietly
def _gradient_of_classes(
    labels: LabelBlocks,
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
    slope = np.where(factor == 0, 0, -factor / p[where].reshape(-1).astype(labels.compute, copy=False))
    dp[...] = 0
    dp[where] = slope.reshape(dp.shape[:-1])


@quietly
def _gradient(
    labels: LabelBlocks,
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
    spread, _, ignored = labels.spread(t, of_rows, p, scratch)
    slope = np.divide(spread, p, out=scratch.like("slope", p))
    slope[spread == 0] = 0
    if ignored is not None:
        factor = np.where(ignored, 0, factor)
    write(np.multiply, slope, factor, dp)
