"""Rows of classes: how they are laid out to be worked on, and their exponentials and sums."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends.numpy.blocks import Array, Scratch
from plugrad.backends.options import COMPUTE

# Up to this many classes, rows are worked on class by class: NumPy then runs along many rows where it would start
# anew for every few classes. Softmax of 4 classes is 5 times as fast so, of 10 classes 3.5 times, of 16 twice; of 32
# it makes no difference and of 64 it is slower.
FEW_CLASSES = 24

# Up to this many elements, the copies that this takes cost more than they save.
SMALL = 2**11

# The same for rows whose classes do not lie side by side, such as images with the classes along axis 1. NumPy then
# sums the classes one after another, not pairwise, so that rounding errors grow with their number.
SOME_CLASSES = 256

# Up to this many classes, rows are summed by BLAS, twice as fast as by NumPy and with as many partial sums; for very
# long rows BLAS may use threads, and its sums then depend on their number.
BLAS_CLASSES = 1024

# For more rows than this, to find where the largest elements are and fetch them is faster than numpy.maximum.reduce.
FEW_ROWS = 32

# Rows whose exponentials but the largest sum to less than this are confident: the rounding of x - max, half an ulp
# of a difference above 7, would show in the sum, so that it is computed again with that error put right.
CONFIDENT = 2.0**-10


def classes_last(x: Array, axis: int) -> Array:
    """A view of `x` with the classes along the last axis."""
    if axis == x.ndim - 1:
        return x
    return x.transpose(*range(axis), *range(axis + 1, x.ndim), axis)


def load(scratch: Scratch, name: str, x: Array) -> Array:
    """The rows of `x`, which lie along its last axis, with two dimensions, in the dtype to compute in.

    Either `x` itself, to be read only, or a copy in a buffer. Such rows are contiguous, or their transpose is, where
    it pays to work on them class by class.
    """
    compute = COMPUTE[x.dtype]
    classes = x.shape[-1]
    by_class = classes <= FEW_CLASSES and x.size > SMALL
    if x.flags.c_contiguous:
        if x.dtype == compute and not by_class:
            return x.reshape(-1, classes)
    elif classes <= SOME_CLASSES and abs(x.strides[-1]) > x.itemsize:
        by_class = True
    count = x.size // classes
    rows = scratch.array(name, (classes, count), compute).T if by_class else scratch.array(name, (count, classes), compute)
    np.copyto(rows.reshape(x.shape), x)
    return rows


def write(operation: Callable[..., Array], rows: Array, values: Array, out: Array) -> None:
    """``out = operation(rows, values)``, with one value for each row, or one for all."""
    if values.ndim and out.ndim == 2:
        values = values[:, None]
    elif values.ndim:
        values = values.reshape(*out.shape[:-1], 1)
    operation(rows.reshape(out.shape), values, out=out)


def largest(rows: Array) -> Array:
    """The largest element of each row, NaN where there is one."""
    if len(rows) <= FEW_ROWS or not rows.flags.c_contiguous:
        return np.maximum.reduce(rows, axis=1)
    return rows.reshape(-1)[rows.argmax(axis=1) + np.arange(0, rows.size, rows.shape[1])]


def row_sums(rows: Array) -> Array:
    """The sums of the rows."""
    if rows.shape[1] <= BLAS_CLASSES and rows.flags.c_contiguous:
        return np.vecdot(rows, np.ones(rows.shape[1], rows.dtype))
    return np.add.reduce(rows, axis=1)


class Elements(NamedTuple):
    """One element in each row of an array, to read and to write as ``flat[index]``."""

    flat: Array
    index: Array
    columns: Array


class Places:
    """Where the elements lie in rows that `load` gave, and in all arrays laid out like them."""

    __slots__ = ("by_class", "count", "starts")

    def __init__(self, rows: Array) -> None:
        self.count, classes = rows.shape
        self.by_class = not rows.flags.c_contiguous
        self.starts = np.arange(self.count) if self.by_class else np.arange(0, rows.size, classes)

    def elements(self, rows: Array, columns: Array) -> Elements:
        """The elements of `rows` in `columns`, one for each row."""
        columns = columns.astype(np.intp, copy=False)
        if self.by_class:
            return Elements(rows.T.reshape(-1), columns * self.count + self.starts, columns)
        return Elements(rows.reshape(-1), columns + self.starts, columns)


def sums(e: Array, one: Elements, x: Array, top: Array) -> tuple[Array, Array]:
    """The sums of the rows of ``e = exp(x - top)`` in two parts: all elements but one, and that one.

    A sum rounded as a whole would lose, in a row predicted with confidence, what lies beside the largest term. The
    elements left out are 0 in `e` afterwards.

    Rows whose first part is small are computed again. With ``z = fl(x - m)`` and ``d`` the error of that subtraction
    (Knuth's TwoSum, "The Art of Computer Programming", volume 2, section 4.2.2), ``exp(x - m) = exp(z) (1 + d)`` but
    for terms in ``d**2``.
    """
    single = one.flat[one.index]
    one.flat[one.index] = 0
    rest = row_sums(e)
    confident = (rest < CONFIDENT).nonzero()[0]
    if confident.size:
        x, m = x[confident], top[confident, None]
        z = x - m
        back = z - x
        error = (x - (z - back)) - (m + back)
        error[~np.isfinite(z)] = 0
        z = np.exp(z)
        z += z * error
        z[np.arange(confident.size), one.columns[confident]] = 0
        rest[confident] = np.add.reduce(z, axis=1)
    return rest, single


def log_of_sum(rest: Array, single: Array) -> Array:
    """``log(rest + single)`` for ``single`` near 1, where the sum would be rounded."""
    return np.log1p(rest + (single - 1))
