"""Labels in compiled code: checks of class indices, and the targets, weights and ignored rows that labels stand for.

Labels `t` are class indices, or numbers for each class in the format that is computed in, in the order of the array
that they are compared with. A target is a label, smoothed and weighted: ``(t * keep + spread) * weight``.

The argument `weight` has the weight of each class, and is empty if all are 1. Where rows have weights or a z loss, it
is a matrix of one row, with the weight of each row, the factor of the z loss, and the weight of each class. Numba
compiles loops anew for it, and leaves out what follows ``if weight.ndim == PER_ROW`` from all others: only calls with
these options compile and compute them.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from plugrad.backends.cpu.probabilities import MOST
from plugrad.backends.numba.compiling import chosen_by_type, compiled, inlined
from plugrad.backends.numba.memory import real
from plugrad.backends.numba.tiles import PART, Place, gather
from plugrad.backends.numba.vector import log1p

# The mode of a loss is the sum of these.
GRADIENT = 1  # the gradient is wanted
EACH = 2  # the loss of each row is wanted, not their sum
MEAN = 4  # the sum is divided by the number of class indices that count, or the sum of their weights
IGNORES = 8  # rows can be ignored

PER_ROW = 2  # the dimensions of `weight` where rows have weights or a z loss


@compiled()
def checked(t: Any, classes: int, weight: Any, ignore: int, mode: int) -> Any:
    """The first row whose class index is wrong, or -1, and the number of those that count, or the sum of their weights.

    An index is right if it is in ``[0, classes)``, or if it is `ignore` and the mode says so; then it does not count.
    """
    ignores = mode & IGNORES != 0
    wrong, counted = False, 0
    for i in range(t.size):  # without an early exit, so that it runs in vector registers
        counts = (t[i] != ignore) | (not ignores)
        wrong |= ((t[i] < 0) | (t[i] >= classes)) & counts
        counted += counts
    if wrong:
        for i in range(t.size):
            if (t[i] < 0 or t[i] >= classes) and not (ignores and t[i] == ignore):
                return i, 0.0
    total = float(counted)
    if weight.size:
        total = 0.0
        for i in range(t.size):
            if not (ignores and t[i] == ignore):
                total += np.float64(weight[t[i]])
    return -1, total


@compiled()
def total_of_blocks(sums: Any) -> float:
    """The sum of the sums of all blocks, with what each addition loses added at the end: Neumaier (1974)."""
    total, lost = 0.0, 0.0
    for i in range(sums.size):
        one, both = sums[i], total + sums[i]
        lost += (total - both) + one if abs(total) >= abs(one) else (one - both) + total
        total = both
    return total + lost if lost == lost else total  # infinities


class Targets(NamedTuple):
    """The labels of all rows, and how they become targets."""

    t: Any
    weight: Any  # of classes, or of classes and rows
    ignore: int  # the class index of ignored rows; -1: no row is ignored
    keep: Any
    spread: Any


@inlined()
def targets_for(x: Any, classes: int, t: Any, weight: Any, ignore: int, smoothing: float) -> Any:
    """The targets for an array of so many classes."""
    return Targets(t, weight, ignore, real(x, 1 - smoothing), real(x, smoothing / classes))


def _are_indices(targets: Any) -> bool:
    return isinstance(targets.types[0].dtype, types.Integer)


def _are_per_row(targets: Any) -> bool:
    return bool(targets.types[1].ndim == PER_ROW)


@inlined()
def weights_of_classes(weight: Any, classes: int) -> Any:
    """The weight of each class, where rows have weights too."""
    return weight[0][weight.size - classes :]


@inlined()
def z_of_row(weight: Any, classes: int, i: int, top: Any, others: Any) -> Any:
    """The z loss ``c z^2`` of row `i`, and ``2 c z``, which its gradient multiplies the softmax by."""
    factor, zero = weight[0, weight.size - classes - 1], weight.dtype.type(0)
    if factor == zero:
        return zero, zero  # even where the logarithm is infinite
    log_of_sum = top + log1p(others)
    share = factor * weight[0, i] * log_of_sum
    return share * log_of_sum, share + share


@inlined()
def _of_classes(targets: Targets, classes: int) -> Any:
    """The targets without the weights of rows."""
    weight = weights_of_classes(targets.weight, classes)
    return Targets(targets.t, weight, targets.ignore, targets.keep, targets.spread)


def is_ignored(targets: Targets, i: int) -> bool:
    """Whether row `i` is ignored."""
    raise NotImplementedError


@chosen_by_type(is_ignored)
def _is_ignored(targets: Any, i: int) -> Any:
    if _are_indices(targets):  # rows of weight 0 have the ignored label
        return lambda targets, i: targets.t[i] == targets.ignore
    if _are_per_row(targets):
        return lambda targets, i: targets.weight[0, i] == 0
    return lambda targets, i: False


def fill_row(targets: Targets, i: int, q: Any) -> None:
    """``q``: the targets of row `i`."""
    raise NotImplementedError


@chosen_by_type(fill_row)
def _fill_row(targets: Any, i: int, q: Any) -> Any:
    if _are_per_row(targets):

        def of_row(targets: Targets, i: int, q: Any) -> None:
            fill_row(_of_classes(targets, q.size), i, q)
            q *= targets.weight[0, i]

        return of_row

    if _are_indices(targets):

        def of_class(targets: Targets, i: int, q: Any) -> None:
            label, weight, keep, spread = targets.t[i], targets.weight, targets.keep, targets.spread
            if spread == q.dtype.type(0):  # the weights of other classes do not matter, be they infinite
                q[:] = spread
                q[label] = keep * weight[label] if weight.size else keep
                return
            q[:] = spread
            q[label] += keep
            if weight.size:
                q *= weight

        return of_class

    def of_each_class(targets: Targets, i: int, q: Any) -> None:
        labels = targets.t[i * q.size : (i + 1) * q.size]
        keep, spread = targets.keep, targets.spread
        for j in range(q.size):
            q[j] = labels[j] * keep + spread
        if targets.weight.size:
            q *= targets.weight

    return of_each_class


def fill_tile(targets: Targets, place: Place, flat: Any, q: Any) -> None:
    """``q``: the targets of the rows of a tile; `flat` is memory to gather it with."""
    raise NotImplementedError


@chosen_by_type(fill_tile)
def _fill_tile(targets: Any, place: Any, flat: Any, q: Any) -> Any:
    if _are_per_row(targets):

        def of_rows(targets: Targets, place: Place, flat: Any, q: Any) -> None:
            fill_tile(_of_classes(targets, len(q)), place, flat, q)
            weights = targets.weight[0][place.first : place.first + place.rows]
            for k in range(len(q)):
                row = q[k]
                for lane in range(weights.size):
                    row[lane] *= weights[lane]

        return of_rows

    if _are_indices(targets):

        def of_class(targets: Targets, place: Place, flat: Any, q: Any) -> None:
            weight, keep, spread = targets.weight, targets.keep, targets.spread
            for k in range(len(q)):
                q[k, :] = weight[k] * spread if weight.size and spread != q.dtype.type(0) else spread
            for lane in range(place.rows):
                label = targets.t[place.first + lane]
                if 0 <= label < len(q):  # else it is ignored
                    q[label, lane] += weight[label] * keep if weight.size else keep

        return of_class

    def of_each_class(targets: Targets, place: Place, flat: Any, q: Any) -> None:
        keep, spread = targets.keep, targets.spread
        gather(targets.t, place, flat, q)
        for k in range(len(q)):
            row = q[k]
            for lane in range(row.size):
                row[lane] = row[lane] * keep + spread
            if targets.weight.size:
                row *= targets.weight[k]

    return of_each_class


def weighted(loss: Any, weight: Any) -> Any:
    """``loss * weight``; an infinite loss of weight 0 is 0."""
    raise NotImplementedError


@chosen_by_type(weighted)
def _weighted(loss: Any, weight: Any) -> Any:
    zero = np.float64(0) if weight == types.float64 else np.float32(0)
    return lambda loss, weight: zero if weight == zero and loss == np.inf else loss * weight


def probability(p: Any, target: Any) -> Any:
    """The probability `p`; NaN, as the logarithm of negative numbers is, if it is above 1 and there is a target."""
    raise NotImplementedError


@chosen_by_type(probability)
def _probability(p: Any, target: Any) -> Any:
    kind = np.float64 if p == types.float64 else np.float32
    zero, most, nan = kind(0), kind(MOST), kind(np.nan)
    return lambda p, target: nan if p > most and target != zero else p


def is_wrong(p: Any, target: Any) -> bool:
    """Whether `p` is no probability and there is a target."""
    raise NotImplementedError


@chosen_by_type(is_wrong)
def _is_wrong(p: Any, target: Any) -> Any:
    kind = np.float64 if p == types.float64 else np.float32
    zero, most = kind(0), kind(MOST)
    return lambda p, target: ((p < zero) | (p > most)) & (target != zero)


@inlined()
def clear_ignored(targets: Targets, place: Place, tile: Any) -> None:
    """Zeros for the ignored rows of a tile."""
    for lane in range(place.rows):
        if is_ignored(targets, place.first + lane):
            for k in range(len(tile)):
                tile[k, lane] = tile.dtype.type(0)


@inlined()
def sum_of_losses(values: Any, rows: int) -> float:
    """The sum of the losses of the rows of a tile, in float64."""
    total, part = 0.0, 0.0
    for lane in range(rows):
        part += np.float64(values[lane])
        if lane % PART == PART - 1 or lane == rows - 1:
            total, part = total + part, 0.0
    return total
