"""Probabilities in host memory, checked: those that a loss reads.

Kernels find numbers that are none while they compute, and only then have `check_probabilities` look for the first.
"""

import functools
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, cut, quietly
from plugrad.backends.cpu.class_indices import LABEL, UNSIGNED, place_of, unignored
from plugrad.backends.options import LossOptions, bad_probability

MOST = 1.001  # more than rounding makes of 1


def is_read_after(result: Any, p: Array, t: Array, options: LossOptions) -> bool:
    """Whether the arrays can be checked after `result` is written, because it is none of them."""
    weights = options.weight, options.sample_weight
    return result is not p and result is not t and result is not weights[0] and result is not weights[1]


@quietly
def check_probabilities(p: Array, t: Array, options: LossOptions) -> None:
    """Raise `ValueError` for the first row with a probability outside [0, 1.001] whose label and weight are not 0.

    The class indices have been checked. A row that does not count is not read, and NaN is no error.
    """
    p, weight = np.moveaxis(p, options.axis, -1), options.weight
    is_index, of_rows = t.ndim < p.ndim, options.sample_weight
    one_class = is_index and not options.label_smoothing
    if not is_index:
        t = np.moveaxis(t, options.axis, -1)
    for index in cut(p.shape[:-1], LABEL if one_class else p.shape[-1]):
        rows, labels, weights = p[index], t[index], None if of_rows is None else of_rows[index]
        if one_class:
            chosen = unignored(labels, options, weights)[0].reshape(rows.shape[:-1])
            each = None if weight is None else weight[chosen][..., None]
            rows = np.take_along_axis(rows, np.expand_dims(chosen.astype(np.intp, copy=False), -1), -1)
        else:
            each = weight
        if are_probabilities(rows):
            continue
        values = rows.astype(np.float64)
        bad = (values < 0) | (values > MOST)
        if is_index:
            ignored = unignored(labels, options, weights)[1]
        else:
            ignored = None if weights is None else weights.reshape(-1) == 0
            if not options.label_smoothing:
                bad &= labels != 0
        if each is not None:
            bad &= each != 0
        if ignored is not None:
            bad[ignored.reshape(bad.shape[:-1])] = False
        if bad.any():
            *row, found = np.unravel_index(bad.argmax(), bad.shape)
            raise bad_probability(values[(*row, found)], place_of(index, tuple(row)), options)


def are_probabilities(p: Array) -> bool:
    """Whether all are in [0, 1.001]; not if one is NaN or -0.

    The bits of floating numbers, seen as unsigned integers, have their order; those of negative numbers are larger.
    """
    dtype = p.dtype
    return bool(np.maximum.reduce(p.view(UNSIGNED[dtype.itemsize]), axis=None) <= _most(dtype))


@functools.cache
def _most(dtype: np.dtype[Any]) -> int:
    """The bits of the largest number that is taken for a probability."""
    return int(np.array(MOST).astype(dtype).view(UNSIGNED[dtype.itemsize]))
