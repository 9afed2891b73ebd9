"""The share of rows whose label is among the largest logits."""

import math
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import contiguous
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.labels import INT64, LabelArrays
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import widen
from plugrad.backends.options import LossOptions

BLOCK = 2**13  # elements in a block of rows
WORK = 0.3  # on one element, to that of softmax


def top_k_accuracy(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
    """``accuracy``: the share of the rows whose label is among the `k` largest logits."""
    labels = LabelArrays(t, x, options)
    classes, inner = x.shape[options.axis], math.prod(x.shape[options.axis + 1 :])
    block = max(1, BLOCK // classes)
    units = -(-labels.rows // block)
    right = np.empty(units, INT64)
    flat = contiguous(x).reshape(-1)
    share_work(_count, units, WORK * block * classes, block, classes, inner, k, labels.ignore, flat, labels.t, right)
    accuracy[...] = right.sum() / labels.divisor if labels.divisor else 0


@compiled(in_pieces=True)
def _count(
    start: int, stop: int, block: int, classes: int, inner: int, k: int, ignore: int, x: Any, t: Any, right: Any
) -> None:
    """The number of the rows that are right, of each block."""
    for b in range(start, stop):
        found = 0
        for i in range(b * block, min((b + 1) * block, t.size)):
            label = t[i]
            if label == ignore:
                continue
            first = i // inner * classes * inner + i % inner
            row = x[first : first + (classes - 1) * inner + 1]
            value = widen(row[label * inner])
            rank, is_nan = 0, False
            for j in range(classes):
                number = widen(row[j * inner])
                rank += (number > value) | ((number == value) & (j < label))
                is_nan |= number != number
            found += rank < k and not is_nan
        right[b] = found
