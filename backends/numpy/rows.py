"""Rows of classes: how they are laid out to be worked on, and their exponentials and sums."""

import functools
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from plugrad.backends.cpu.blas import MOST_SUMMED, ones
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numpy.pool import Scratch, may_hold_work, run_blocks
from plugrad.backends.options import COMPUTE

Elements: TypeAlias = tuple[Array, Array]  # a flat view of an array, and the indices of some elements in it

# Up to this many classes, rows are worked on class by class: NumPy then runs along many rows where it would start
# anew for every few classes. Softmax of 4 classes is 5 times as fast so, of 10 classes 3.5 times, of 16 twice; of 32
# it makes no difference and of 64 it is slower.
FEW_CLASSES = 24

# The same for rows whose classes do not lie side by side, such as images with the classes along axis 1. NumPy then
# sums the classes one after another, not pairwise, so that rounding errors grow with their number.
SOME_CLASSES = 256

# Up to this many elements, the copies that working class by class takes cost more than they save.
SMALL = 2**11

# Up to so many rows, what depends on their number alone is kept for the next call.
FEW_ROWS = 1024

# Rows whose exponentials but the largest sum to less than this are confident: the largest of the others are exp(-12)
# or less, and the rounding of x - max, half an ulp of a number above 12 and so 4 ulp of 1 or more, would show in the
# sum. It is computed again with that error put right.
CONFIDENT = 2.0**-18


def classes_last(x: Array, axis: int) -> Array:
    """A view of `x` with the classes along the last axis."""
    if axis == x.ndim - 1:
        return x
    return x.transpose(*range(axis), *range(axis + 1, x.ndim), axis)


def over_rows(task: Callable[..., None], axis: int, *arrays: Array) -> None:
    """Run `task` for blocks of the rows that lie along `axis` of arrays of one shape, the last one for the result.

    The first argument of the task says whether it may work in that one, before its result is there.
    """
    *reads, out = (classes_last(array, axis) for array in arrays)
    in_out = all(array is not arrays[-1] for array in arrays[:-1]) and may_hold_work(out)
    run_blocks(partial(task, in_out), (*reads, out), out.shape[:-1], out.shape[-1])


def work_in(in_out: bool, out: Array, scratch: Scratch, name: str, rows: Array) -> Array:
    """An array laid out like `rows` to work in: `out` if it may be, else a buffer."""
    if in_out and rows.flags.c_contiguous:
        return out.reshape(rows.shape)
    return scratch.like(name, rows)


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
    rows = (
        scratch.array(name, (classes, count), compute).T if by_class else scratch.array(name, (count, classes), compute)
    )
    np.copyto(rows.reshape(x.shape), x)
    return rows


def write(operation: Callable[..., Array], rows: Array, values: Array, out: Array) -> None:
    """``out = operation(rows, values)``, with one value for each row, or one for all."""
    if out.ndim != 2:
        rows = rows.reshape(out.shape)
        values = values.reshape(*out.shape[:-1], 1) if values.ndim else values
    elif values.ndim:
        values = values[:, None]
    operation(rows, values, out)


def starts(count: int, classes: int) -> Array:
    """Where `count` rows start in ``rows.reshape(-1)``."""
    return _starts(count, classes) if count <= FEW_ROWS else np.arange(0, count * classes, classes)


@functools.lru_cache(256)
def _starts(count: int, classes: int) -> Array:
    first = np.arange(0, count * classes, classes)
    first.flags.writeable = False
    return first


def largest(rows: Array) -> Array:
    """The largest element of each row, NaN where there is one."""
    if rows.flags.c_contiguous:  # numpy.maximum.reduce takes at least twice as long
        top: Array = rows.reshape(-1)[rows.argmax(1) + starts(*rows.shape)]
    else:
        top = np.maximum.reduce(rows, axis=1)
    return top


def row_sums(rows: Array) -> Array:
    """The sums of the rows: by BLAS twice as fast as by NumPy, with as many partial sums."""
    classes = rows.shape[1]
    if classes > MOST_SUMMED or not rows.flags.c_contiguous:
        total: Array = np.add.reduce(rows, axis=1)
    elif rows.size <= SMALL:  # one call of BLAS, which is too small for its threads
        total = rows.dot(ones(rows.dtype)[:classes])
    else:
        total = np.vecdot(rows, ones(rows.dtype)[:classes])
    return total


def elements(rows: Array, columns: Array) -> Elements:
    """One element in each row of an array laid out as `load` does, to read and to write as ``flat[index]``."""
    if columns.dtype != np.intp:
        columns = columns.astype(np.intp)
    if rows.flags.c_contiguous:
        return rows.reshape(-1), columns + starts(*rows.shape)
    count = len(rows)
    return rows.T.reshape(-1), columns * count + np.arange(count)


def sums(e: Array, one: Elements) -> tuple[Array, Array]:
    """The sums of the rows of `e` in two parts: all elements but one, and that one.

    A sum rounded as a whole would lose, in a row predicted with confidence, the terms other than the largest. The
    elements left out are 0 in `e` afterwards.
    """
    flat, index = one
    single = flat[index]
    flat[index] = 0
    return row_sums(e), single


def refine(rest: Array, columns: Array, x: Array, top: Array) -> None:
    """Put `rest`, sums of rows of ``exp(x - top)`` without the elements in `columns`, right for confident rows.

    With ``z = fl(x - m)`` and ``d`` the error of that subtraction (Knuth's TwoSum, "The Art of Computer Programming",
    volume 2, section 4.2.2), ``exp(x - m) = exp(z) (1 + d)`` but for terms in ``d**2``.
    """
    if rest.item(rest.argmin()) >= CONFIDENT:  # sooner known than which rows are; where one is NaN, this is false
        return
    confident = (rest < CONFIDENT).nonzero()[0]
    if not confident.size:
        return
    x, m = x[confident], top[confident, None]
    z = x - m
    back = z - x
    error = (x - (z - back)) - (m + back)
    np.fmax(error, -1, out=error)  # where z is -inf, the error is NaN and exp(z) 0
    np.exp(z, out=z)
    z += np.multiply(z, error, out=error)
    z[np.arange(confident.size), columns[confident]] = 0
    rest[confident] = np.add.reduce(z, axis=1)


def log_of_sum(rest: Array, single: Array) -> Array:
    """``log(rest + single)`` for ``single`` near 1, where the sum would be rounded."""
    one = ones(single.dtype)[: single.size] if single.size <= MOST_SUMMED else 1  # faster than a number
    log: Array = np.log1p(rest + (single - one))
    return log
