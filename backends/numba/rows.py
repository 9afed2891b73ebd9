"""Kernels over rows whose classes lie side by side in memory, many enough that a row fills the vector registers.

Each takes a range of rows, and a row at a time through a few passes over a few kilobytes that stay in the first-level
cache. Results are worked out in memory of their own and stored in the end, so that they may go to where an argument is.
"""

from typing import Any

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.memory import opened, scratch, store, target
from plugrad.backends.numba.vector import exp, exp_in, frame_of, largest, log1p, muladd

# ---------------------------------------------------------------------------------------------------------------------
# Sums of exponentials
# ---------------------------------------------------------------------------------------------------------------------

# A row is confident where its exponentials but the largest, which is 1, sum to less than this.
CONFIDENT = 0.25


# Elements that are summed up by themselves: sums of thousands of numbers, one after another, would lose digits.
#
# Loops that sum write nothing. Where a loop reads and writes, the compiler makes a version in vector registers and one
# without, for memory that overlaps, and which one runs can depend on where the memory lies: sums of the two differ.
# Such a loop also sums in fewer parts at once, which loses digits.
PART = 1024


@inlined(SUM)
def _total_of_part(a: Any) -> Any:
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j]
    return total


@inlined()
def total_of(a: Any) -> Any:
    """``sum(a)``."""
    total = a.dtype.type(0)
    for start in range(0, a.size, PART):
        total += _total_of_part(a[start : start + PART])
    return total


@inlined()
def exponentials(x: Any, top: Any, e: Any) -> Any:
    """``e = exp(x - top)``, scaled, and their sum."""
    shift, lowest, magic = frame_of(top)
    for j in range(x.size):
        e[j] = exp_in(x[j], shift, lowest, magic)
    return total_of(e)


@inlined(SUM)
def _others_of_part(x: Any, top: Any, e: Any) -> Any:
    zero = x.dtype.type(0)
    total = zero
    for j in range(x.size):
        total += zero if x[j] == top else e[j]
    return total


@inlined()
def rest(x: Any, top: Any, e: Any, total: Any) -> Any:
    """The sum of ``exp(x - top)`` less 1, given these and their sum, both scaled.

    In a confident row the largest, which is 1, would swallow the others: they are added up without it.
    """
    shift, lowest, magic = frame_of(top)
    one = exp_in(top, shift, lowest, magic)
    beside = total / one - x.dtype.type(1)
    if beside < CONFIDENT:
        others = x.dtype.type(0)
        for start in range(0, x.size, PART):
            others += _others_of_part(x[start : start + PART], top, e[start : start + PART])
        beside = others / one
    return beside


# ---------------------------------------------------------------------------------------------------------------------
# Softmax
# ---------------------------------------------------------------------------------------------------------------------


@compiled()
def softmax(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``."""
    room, e = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    for i in range(start, stop):
        row = opened(x[i], room)
        each = e.dtype.type(1) / exponentials(row, largest(row), e)
        store(e, each, y[i])


@inlined(SUM)
def _inner_of_part(a: Any, b: Any) -> Any:
    total = a.dtype.type(0)
    for j in range(a.size):
        total = muladd(a[j], b[j], total)
    return total


@inlined()
def inner(a: Any, b: Any) -> Any:
    """``sum(a b)``."""
    total = a.dtype.type(0)
    for start in range(0, a.size, PART):
        total += _inner_of_part(a[start : start + PART], b[start : start + PART])
    return total


@compiled()
def softmax_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    rooms = scratch(y, y.shape[1]), scratch(y, y.shape[1])
    values = scratch(y, y.shape[1])
    for i in range(start, stop):
        upstream, p = opened(dy[i], rooms[0]), opened(y[i], rooms[1])
        mean = inner(upstream, p)
        row = target(dx[i], values, direct)
        for j in range(row.size):
            row[j] = p[j] * (upstream[j] - mean)
        if not direct:
            store(row, values.dtype.type(1), dx[i])


@compiled()
def log_softmax(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    room, z = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    for i in range(start, stop):
        row = opened(x[i], room)
        top = largest(row)
        log_of_sum = log1p(rest(row, top, z, exponentials(row, top, z)))
        result = target(y[i], z, direct)
        for j in range(result.size):
            result[j] = (row[j] - top) - log_of_sum
        if not direct:
            store(result, z.dtype.type(1), y[i])


@compiled()
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    rooms = scratch(y, y.shape[1]), scratch(y, y.shape[1])
    values = scratch(y, y.shape[1])
    for i in range(start, stop):
        upstream, logs = opened(dy[i], rooms[0]), opened(y[i], rooms[1])
        total = total_of(upstream)
        row = target(dx[i], values, direct)
        for j in range(row.size):
            row[j] = upstream[j] - exp(logs[j]) * total
        if not direct:
            store(row, values.dtype.type(1), dx[i])
