"""Class indices in host memory, checked and counted."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, Index, cut, quietly
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


def divided(t: Array, is_index: bool, rows: int, options: LossOptions) -> tuple[float, Array | None, float]:
    """The divisor of the sum of the losses, 0 where nothing counts; the weights of classes; and ``z_loss``.

    Where there are weights of classes, they and ``z_loss`` are divided already, and the divisor that remains is 1: as
    small as weights may be, their shares are not. The parts of the loss then have divisors of their own.
    """
    weight, z_loss = options.weight, options.z_loss
    if options.reduction != "mean":
        return 1.0, None if weight is None else weight.copy(), z_loss  # the losses may be written over them
    if options.divisor is not None:
        return options.divisor, weight, z_loss
    divisor = counted(t, options) if is_index else _sum_of_rows(rows, options)
    if weight is None:
        return divisor, None, z_loss
    if z_loss:
        of_rows = counted(t, options._replace(weight=None)) if is_index else divisor
        z_loss = z_loss / of_rows if of_rows else 0.0
    with np.errstate(all="ignore"):
        weight = (weight / np.float64(divisor)).astype(weight.dtype) if divisor else np.zeros_like(weight)
    return float(divisor != 0 or z_loss != 0), weight, z_loss


def counted(t: Array, options: LossOptions) -> float:
    """The divisor of the mean: the number of class indices that are not ignored, or the sum of their weights."""
    weights_of_rows = options.sample_weight
    if options.weight is None and options.ignore_index is None and weights_of_rows is None:
        return float(t.size)
    indices = cut(t.shape, LABEL)
    return sum(_counted(options, t[i], None if weights_of_rows is None else weights_of_rows[i]) for i in indices)


@quietly
def _counted(options: LossOptions, t: Array, weights_of_rows: Array | None) -> float:
    labels, ignored = unignored(t, options, weights_of_rows)
    if options.weight is None and weights_of_rows is None:
        return float(labels.size - (0 if ignored is None else np.count_nonzero(ignored)))
    weights = np.ones(labels.size) if options.weight is None else options.weight[labels].astype(np.float64)
    if weights_of_rows is not None:
        weights *= weights_of_rows.reshape(-1)
    return float(np.add.reduce(weights if ignored is None else weights[~ignored]))


@quietly
def _sum_of_rows(rows: int, options: LossOptions) -> float:
    weights = options.sample_weight
    return float(rows) if weights is None else float(np.add.reduce(weights, axis=None, dtype=np.float64))


def unignored(t: Array, options: LossOptions, weights_of_rows: Array | None = None) -> tuple[Array, Array | None]:
    """The class indices of a block, with 0 for ignored rows, and the mask of ignored rows, None if there are none.

    Rows of weight 0 are ignored as well.
    """
    labels = t.reshape(-1)
    ignored = None if options.ignore_index is None else labels == options.ignore_index
    if weights_of_rows is not None:
        weightless = weights_of_rows.reshape(-1) == 0
        ignored = weightless if ignored is None else ignored | weightless
    return (labels, None) if ignored is None or not ignored.any() else (np.where(ignored, 0, labels), ignored)
