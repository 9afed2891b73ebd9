"""Cross-entropy of probabilities."""

from typing import Any

import numpy as np

from plugrad.backends.numpy.blocks import Array, Index, Scratch, cut, run
from plugrad.backends.numpy.labels import Labels, inner, weighted
from plugrad.backends.numpy.rows import classes_last, flat_rows, load, per_row
from plugrad.backends.options import LossOptions


def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(t log(p))``."""
    p = classes_last(p, options.axis)
    labels = Labels(t, p, options)

    def block(index: Index, scratch: Scratch) -> float:
        if labels.one_class:
            (_, chosen), weight, ignored = labels.single(index)
            probability = _label_probability(p[index], chosen).astype(labels.compute)
            losses = weighted(np.subtract(0, np.log(probability)), weight)
        else:
            rows = load(p[index], scratch, "p")
            spread, _, ignored = labels.spread(index, rows, scratch)
            logs = np.log(rows, out=scratch.rows("logs", rows, rows.dtype))
            losses = np.subtract(0, inner(spread, flat_rows(logs), scratch))
        return labels.collect(losses, ignored, loss, index)

    labels.store(loss, run(block, cut(p.shape[:-1], 1 if labels.one_class else p.shape[-1])))


def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss * t / p``."""
    p, dp = classes_last(p, options.axis), classes_last(dp, options.axis)
    labels = Labels(t, p, options)

    def block(index: Index, scratch: Scratch) -> None:
        upstream = labels.upstream(dloss, index)
        if labels.one_class:
            (_, chosen), weight, ignored = labels.single(index)
            probability = _label_probability(p[index], chosen).astype(labels.compute)
            factor = upstream if weight is None else upstream * weight
            if ignored is not None:
                factor = np.where(ignored, 0, factor)
            slope = np.where(factor == 0, 0, np.divide(-factor, probability))
            target = dp[index]
            target[...] = 0
            where = chosen.reshape(*target.shape[:-1], 1)
            np.put_along_axis(target, where, slope.reshape(where.shape), -1)
        else:
            rows = load(p[index], scratch, "p")
            spread, _, _ = labels.spread(index, rows, scratch)
            shaped = spread.reshape(rows.shape)
            slope = np.divide(shaped, rows, out=scratch.rows("slope", rows, rows.dtype))
            slope[shaped == 0] = 0
            np.multiply(slope, per_row(np.broadcast_to(-upstream, len(spread)), slope), out=dp[index])

    if labels.scale:
        run(block, cut(p.shape[:-1], p.shape[-1]))
    else:
        dp[...] = 0


def _label_probability(p: Array, chosen: Array) -> Array:
    """The probability of one class per row of `p`."""
    return np.take_along_axis(p, chosen.reshape(*p.shape[:-1], 1), -1).reshape(-1)
