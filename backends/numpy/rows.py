"""Rows of classes: exponentials and their sums, for softmax and the losses."""

from typing import Any, TypeAlias

import numpy as np

from plugrad.backends.numpy.blocks import Array, Scratch
from plugrad.backends.options import COMPUTE

Elements: TypeAlias = tuple[Array, Array]  # the indices of one element per row of a two-dimensional array

# Rows whose exponentials but the largest sum to less than this are confident: the rounding of x - max, half an ulp
# of a difference above 7, would show in the sum, so that it is computed again with that error put right.
CONFIDENT = 2.0**-10


def classes_last(x: Array, axis: int) -> Array:
    """A view of `x` with the classes along the last axis."""
    if axis == x.ndim - 1:
        return x
    return x.transpose(*range(axis), *range(axis + 1, x.ndim), axis)


def flat_rows(x: Array) -> Array:
    """`x`, an array that `Scratch` gave, as a view with two dimensions."""
    return x.reshape(-1, x.shape[-1])


def load(x: Array, scratch: Scratch, name: str) -> Array:
    """`x` in the dtype to compute in and laid out for work along its rows: itself, or a copy in a buffer."""
    compute = COMPUTE[x.dtype] if x.dtype in COMPUTE else x.dtype
    work = scratch.rows(name, x, compute)
    if x.dtype == compute and x.flags.c_contiguous and work.flags.c_contiguous:
        return x
    np.copyto(work, x)
    return work


def shifted(x: Array, scratch: Scratch, name: str) -> tuple[Array, Array]:
    """``x - max(x)`` along the rows that `load` gave, in the buffer `name`, and the maxima with the last axis kept."""
    largest = np.maximum.reduce(x, axis=-1, keepdims=True)
    return np.subtract(x, largest, out=scratch.rows(name, x, x.dtype)), largest


def sums(e: Array, one: Elements, x: Array, largest: Array) -> tuple[Array, Array]:
    """The sums of the rows of ``e = exp(x - largest)`` in two parts: all elements but one, and that one.

    A sum rounded as a whole would lose, in a row predicted with confidence, what lies beside the largest term. The
    elements left out are 0 in `e` afterwards.

    Rows whose first part is small are computed again. With ``z = fl(x - m)`` and ``d`` the error of that subtraction
    (Knuth's TwoSum, "The Art of Computer Programming", volume 2, section 4.2.2), ``exp(x - m) = exp(z) (1 + d)`` but
    for terms in ``d**2``.
    """
    single = e[one]
    e[one] = 0
    rest = np.add.reduce(e, axis=-1)
    rows = (rest < CONFIDENT).nonzero()[0]
    if rows.size:
        x = x.reshape(-1, x.shape[-1])[rows].astype(e.dtype, copy=False)
        m = largest.reshape(-1, 1)[rows]
        z = x - m
        back = z - x
        error = (x - (z - back)) - (m + back)
        error[~np.isfinite(z)] = 0
        z = np.exp(z)
        z += z * error
        z[np.arange(rows.size), one[1][rows]] = 0
        rest[rows] = np.add.reduce(z, axis=-1)
    return rest, single


def largest_elements(z: Array) -> Elements:
    """Where the largest element of each row of `z`, two-dimensional, is."""
    return np.arange(len(z)), z.argmax(axis=-1)


def log_of_sum(rest: Array, single: Array) -> Array:
    """``log(rest + single)`` for ``single`` near 1, where the sum would be rounded."""
    return np.log1p(rest + (single - 1))


def per_row(values: Any, like: Array) -> Any:
    """One value per row, given flat, in a shape that broadcasts along the rows of `like`."""
    return values.reshape(*like.shape[:-1], 1)
