"""Labels in [0, 1], one for each element, in host memory, checked and counted."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, cut
from plugrad.backends.cpu.class_indices import LABEL, UNSIGNED, place_of
from plugrad.backends.options import BinaryLossOptions


def largest_of_few(t: Array) -> int:
    """The largest number, of unsigned integers in C order: for small arrays in half the time of `max`."""
    return int(t.item(t.argmax()))


def count(t: Array, options: BinaryLossOptions, largest: Callable[[Array], int] = largest_of_few) -> int:
    """The number of elements that count; a `ValueError` for the first label outside [0, 1] that is not ignored.

    `largest` finds the largest number of an array of unsigned integers in C order.
    """
    ignored_label = options.ignored_label(t.dtype)
    if ignored_label is None and (t.dtype.kind == "b" or _are_plain(t, largest)):
        return int(t.size)
    counted = 0
    for index in cut(t.shape, LABEL):
        labels = t[index]
        counts = np.ones(labels.shape, bool) if ignored_label is None else labels != ignored_label
        with np.errstate(invalid="ignore"):
            bad = counts & ~((labels >= 0) & (labels <= 1))
        if bad.any():
            within = np.unravel_index(bad.argmax(), bad.shape)
            raise options.bad_label(labels[within].item(), place_of(index, within))
        counted += int(np.count_nonzero(counts))
    return counted


def _are_plain(t: Array, largest: Callable[[Array], int]) -> bool:
    """Whether all labels are in [0, 1], and none is -0.0.

    Seen as unsigned integers, numbers that are not negative have the order of their bits, and negative numbers and NaN
    are larger: one maximum tells, which is also fast for 16-bit numbers.
    """
    unsigned = t.view(UNSIGNED[t.itemsize])
    top = largest(unsigned) if unsigned.flags.c_contiguous else unsigned.max()
    return bool(top <= _one(t.dtype))


@functools.cache
def _one(dtype: np.dtype[Any]) -> int:
    """The bits of 1."""
    return int(np.ones((), dtype).view(UNSIGNED[dtype.itemsize]))
