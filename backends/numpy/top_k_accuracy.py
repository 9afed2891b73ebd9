"""The share of rows whose label is among the largest logits."""

from functools import partial

import numpy as np

from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.cpu.class_indices import check, unignored
from plugrad.backends.numpy.pool import Scratch, run_blocks
from plugrad.backends.numpy.rows import classes_last, load
from plugrad.backends.options import LossOptions


def top_k_accuracy(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
    """``accuracy``: the share of the rows whose label is among the `k` largest logits."""
    check(t, x.shape[options.axis], options)
    rows = classes_last(x, options.axis)
    found = run_blocks(partial(_count, k, options), (rows, t), t.shape, rows.shape[-1])
    right, counted = (sum(numbers) for numbers in zip(*found, strict=True))
    accuracy[...] = right / counted if counted else 0


@quietly  # comparisons with NaN
def _count(k: int, options: LossOptions, scratch: Scratch, x: Array, t: Array) -> tuple[int, int]:
    """The number of the rows that are right, and of those that count."""
    rows = load(scratch, "x", x)
    labels, ignored = unignored(t, options)
    labels = labels.astype(np.intp)
    label = rows[np.arange(len(rows)), labels][:, np.newaxis]
    rank = np.count_nonzero(rows > label, axis=1)
    rank += np.count_nonzero((rows == label) & (np.arange(rows.shape[1]) < labels[:, np.newaxis]), axis=1)
    right = (rank < k) & ~np.isnan(rows).any(axis=1)
    if ignored is None:
        return int(np.count_nonzero(right)), len(rows)
    return int(np.count_nonzero(right & ~ignored)), len(rows) - int(np.count_nonzero(ignored))
