"""Labels in [0, 1], one for each element, in host memory, checked and counted."""

import functools
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, cut
from plugrad.backends.cpu.class_indices import LABEL, UNSIGNED, place_of
from plugrad.backends.options import BinaryLossOptions


def count(t: Array, options: BinaryLossOptions) -> int:
    """The number of elements that count; a `ValueError` for the first label outside [0, 1] that is not ignored."""
    ignored_label = options.ignored_label(t.dtype)
    if ignored_label is None and (t.dtype.kind == "b" or _are_plain(t)):
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


def _are_plain(t: Array) -> bool:
    """Whether all labels are in [0, 1], and none is -0.0.

    Seen as unsigned integers, numbers that are not negative have the order of their bits, and negative numbers and NaN
    are larger: one maximum tells, which is also fast for 16-bit numbers.
    """
    unsigned = t.view(UNSIGNED[t.itemsize])
    # For small arrays `argmax` takes half as long as `max`; of others it would make a copy.
    largest = unsigned.item(unsigned.argmax()) if unsigned.flags.c_contiguous else unsigned.max()
    return bool(largest <= _one(t.dtype))


@functools.cache
def _one(dtype: np.dtype[Any]) -> int:
    """The bits of 1."""
    return int(np.ones((), dtype).view(UNSIGNED[dtype.itemsize]))
