"""Class indices in host memory, checked and counted."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, Index, cut
from plugrad.backends.options import LossOptions, bad_label

# The work on one class index, in elements: it keeps the temporary arrays of a block of indices small.
LABEL = 16

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def check(t: Array, classes: int, options: LossOptions) -> None:
    """Raise `ValueError` for the first class index outside ``[0, classes)`` that is not ignored."""
    # Seen as unsigned, negative labels are larger than any class that their dtype can name: the largest label tells
    # whether all are right.
    unsigned = t.view(UNSIGNED[t.itemsize])
    end = min(classes, 1 << (8 * t.itemsize - 1)) if t.dtype.kind == "i" else classes
    if unsigned.item(unsigned.argmax()) < end:
        return
    for index in cut(t.shape, LABEL):
        bad = unsigned[index] >= end
        if options.ignore_index is not None:
            bad &= t[index] != options.ignore_index
        if bad.any():
            row = np.unravel_index(bad.argmax(), bad.shape)
            raise bad_label(int(t[index][row]), place_of(index, row), classes, options)


def place_of(index: Index, row: tuple[np.intp, ...]) -> tuple[int, ...]:
    """The indices in the whole array of element `row` of the block at `index`."""
    within = tuple(map(int, row))
    if index is ...:
        return within
    *outer, piece = index
    return (*outer, piece.start + within[0], *within[1:])


def counted(t: Array, options: LossOptions) -> float:
    """The divisor of the mean: the number of class indices that are not ignored, or the sum of their weights."""
    if options.weight is None and options.ignore_index is None:
        return float(t.size)
    return sum(_counted(t[index], options) for index in cut(t.shape, LABEL))


def _counted(t: Array, options: LossOptions) -> float:
    labels, ignored = unignored(t, options)
    if options.weight is None:
        return float(labels.size - (0 if ignored is None else np.count_nonzero(ignored)))
    weights = options.weight[labels].astype(np.float64)
    return float(np.add.reduce(weights if ignored is None else weights[~ignored]))


def unignored(t: Array, options: LossOptions) -> tuple[Array, Array | None]:
    """The class indices of a block, with 0 for ignored rows, and the mask of ignored rows, None if there are none."""
    labels = t.reshape(-1)
    if options.ignore_index is None:
        return labels, None
    ignored = labels == options.ignore_index
    return (np.where(ignored, 0, labels), ignored) if ignored.any() else (labels, None)
