"""Kernels over rows whose classes lie side by side in memory, many enough that a row fills the vector registers.

Each takes a range of rows, and a row at a time through a few passes over a few kilobytes that stay in the first-level
cache. Results are worked out in memory of their own and stored in the end, so that they may go to where an argument is.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.vector import (
    exp,
    exp_of_difference,
    largest,
    log1p,
    muladd,
    narrow,
    reciprocal,
    unscaled,
    widen,
)

# ---------------------------------------------------------------------------------------------------------------------
# Rows in memory
# ---------------------------------------------------------------------------------------------------------------------


def scratch(x: Any, size: int) -> Any:
    """Memory to work in, in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@overload(scratch, strict=False)
def _scratch(x: Any, size: int) -> Any:
    dtype = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, size: np.empty(size, dtype)


def opened(row: Any, room: Any) -> Any:
    """A row of an argument in the format to compute in: itself, or widened in `room`."""
    raise NotImplementedError


@overload(opened, strict=False)
def _opened(row: Any, room: Any) -> Any:
    if row.dtype in (types.float32, types.float64):
        return lambda row, room: row

    def widened(row: Any, room: Any) -> Any:
        for j in range(row.size):
            room[j] = widen(row[j])
        return room

    return widened


@inlined()
def store(values: Any, factor: Any, row: Any) -> None:
    """Write values times a factor to a row of a result."""
    for j in range(row.size):
        row[j] = narrow(values[j] * factor, row[j])


@inlined()
def fill(row: Any, value: Any) -> None:
    """Write one value to all of a row of a result."""
    for j in range(row.size):
        row[j] = narrow(value, row[j])


# ---------------------------------------------------------------------------------------------------------------------
# Sums of exponentials
# ---------------------------------------------------------------------------------------------------------------------

# A row is confident where its exponentials but the largest, which is 1, sum to less than this.
CONFIDENT = 0.25


# Elements that are summed up by themselves: sums of thousands of numbers, one after another, would lose digits.
#
# Loops that sum write nothing. Where a loop reads and writes, the compiler makes a version in vector registers and one
# without, for memory that overlaps, and which one runs can depend on where the memory lies: sums of the two differ.
PART = 1024


@inlined(SUM)
def total_of_part(a: Any, start: int, stop: int) -> Any:
    """`total_of` of a part of a row."""
    total = a.dtype.type(0)
    for j in range(start, stop):
        total += a[j]
    return total


@inlined()
def total_of(a: Any) -> Any:
    """``sum(a)``."""
    total = a.dtype.type(0)
    for start in range(0, a.size, PART):
        total += total_of_part(a, start, min(start + PART, a.size))
    return total


@inlined()
def exponentials(x: Any, top: Any, e: Any) -> Any:
    """``e = exp(x - top)``, scaled, and their sum."""
    for j in range(x.size):
        e[j] = exp_of_difference(x[j], top)
    return total_of(e)


@inlined(SUM)
def others(x: Any, top: Any) -> Any:
    """The sum of ``exp(x - top)`` without the largest, which is 1 and would swallow the rest of a confident row."""
    place = 0
    while x[place] != top:
        place += 1
    total = x.dtype.type(0)
    for j in range(place):
        total += exp_of_difference(x[j], top)
    for j in range(place + 1, x.size):
        total += exp_of_difference(x[j], top)
    return unscaled(total)


@inlined()
def rest(x: Any, top: Any, total: Any) -> Any:
    """The sum of exponentials less 1, given the scaled sum of all."""
    beside = unscaled(total) - x.dtype.type(1)
    return others(x, top) if beside < CONFIDENT else beside


# ---------------------------------------------------------------------------------------------------------------------
# Softmax
# ---------------------------------------------------------------------------------------------------------------------


@compiled()
def softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``."""
    room, e = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    for i in range(start, stop):
        row = opened(x[i], room)
        each, error = reciprocal(exponentials(row, largest(row), e))
        for j in range(row.size):
            y[i, j] = narrow(muladd(e[j], each, e[j] * error), y[i, j])


@inlined(SUM)
def inner_of_part(a: Any, b: Any, start: int, stop: int) -> Any:
    """`inner` of a part of two rows."""
    total = a.dtype.type(0)
    for j in range(start, stop):
        total = muladd(a[j], b[j], total)
    return total


@inlined()
def inner(a: Any, b: Any) -> Any:
    """``sum(a b)``."""
    total = a.dtype.type(0)
    for start in range(0, a.size, PART):
        total += inner_of_part(a, b, start, min(start + PART, a.size))
    return total


@compiled()
def softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    rooms = scratch(y, y.shape[1]), scratch(y, y.shape[1])
    values = scratch(y, y.shape[1])
    for i in range(start, stop):
        upstream, p = opened(dy[i], rooms[0]), opened(y[i], rooms[1])
        mean = inner(upstream, p)
        for j in range(p.size):
            values[j] = p[j] * (upstream[j] - mean)
        store(values, values.dtype.type(1), dx[i])


@compiled()
def log_softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    room, z = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    for i in range(start, stop):
        row = opened(x[i], room)
        top = largest(row)
        log_of_sum = log1p(rest(row, top, exponentials(row, top, z)))
        for j in range(row.size):
            z[j] = (row[j] - top) - log_of_sum
        store(z, z.dtype.type(1), y[i])


@compiled()
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    rooms = scratch(y, y.shape[1]), scratch(y, y.shape[1])
    values = scratch(y, y.shape[1])
    for i in range(start, stop):
        upstream, logs = opened(dy[i], rooms[0]), opened(y[i], rooms[1])
        total = total_of(upstream)
        for j in range(logs.size):
            values[j] = upstream[j] - exp(logs[j]) * total
        store(values, values.dtype.type(1), dx[i])
