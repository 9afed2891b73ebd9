"""Compiled loops over contiguous rows, with so many classes that a row fills the vector registers.

Each takes a range of rows, and computes a row in a few passes over a few kilobytes that stay in the first-level cache.
A result that replaces an argument is computed in scratch memory, and stored at the end.
"""

from typing import Any

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.memory import destination, is_direct, real, scratch, store
from plugrad.backends.numba.vector import exp, exp_scaling, largest, log1p, muladd, scaled_exp, widen

# ---------------------------------------------------------------------------------------------------------------------
# Sums of exponentials
# ---------------------------------------------------------------------------------------------------------------------

# A row is confident if its exponentials but the largest, which is 1, sum to less than this.
CONFIDENT = 0.25


# Elements in a partial sum: sums of thousands of numbers, one after another, would lose digits.
#
# Loops that sum write nothing. Of a loop that reads and writes, the compiler makes one version in vector registers and
# one without, for memory that overlaps, and the choice can depend on the addresses: their sums differ. Such a loop also
# sums in fewer parts at once, which loses digits.
PART = 1024


@inlined(SUM)
def _total_of_part(a: Any) -> Any:
    total = real(a, 0)
    for j in range(a.size):
        total += widen(a[j])
    return total


@inlined()
def total_of(a: Any) -> Any:
    """``sum(a)``."""
    total = real(a, 0)
    for start in range(0, a.size, PART):
        total += _total_of_part(a[start : start + PART])
    return total


@inlined()
def exponentials(x: Any, top: Any, e: Any) -> Any:
    """``e = exp(x - top)``, scaled, and their sum."""
    shift, lowest, magic = exp_scaling(top)
    for j in range(x.size):
        e[j] = scaled_exp(widen(x[j]), shift, lowest, magic)
    return total_of(e)


@inlined(SUM)
def _others_of_part(x: Any, top: Any, e: Any) -> Any:
    zero = e.dtype.type(0)
    total = zero
    for j in range(x.size):
        total += zero if widen(x[j]) == top else e[j]
    return total


@inlined()
def sum_of_others(x: Any, top: Any, e: Any, total: Any) -> Any:
    """The sum of ``exp(x - top)`` less 1, given these and their sum, both scaled.

    In a confident row the largest exponential, which is 1, would swallow the others: they are summed without it.
    """
    shift, lowest, magic = exp_scaling(top)
    one = scaled_exp(top, shift, lowest, magic)
    others = total / one - e.dtype.type(1)
    if others < CONFIDENT:
        scaled = e.dtype.type(0)
        for start in range(0, x.size, PART):
            scaled += _others_of_part(x[start : start + PART], top, e[start : start + PART])
        others = scaled / one
    return others


# ---------------------------------------------------------------------------------------------------------------------
# Softmax
# ---------------------------------------------------------------------------------------------------------------------


@compiled()
def softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``, the exponentials always in scratch memory."""
    e = scratch(x, x.shape[1])
    for i in range(start, stop):
        total = exponentials(x[i], largest(x[i]), e)
        store(e, e.dtype.type(1) / total, y[i])


@inlined(SUM)
def _inner_of_part(a: Any, b: Any) -> Any:
    total = real(a, 0)
    for j in range(a.size):
        total = muladd(widen(a[j]), widen(b[j]), total)
    return total


@inlined()
def inner(a: Any, b: Any) -> Any:
    """``sum(a b)``."""
    total = real(a, 0)
    for start in range(0, a.size, PART):
        total += _inner_of_part(a[start : start + PART], b[start : start + PART])
    return total


@compiled()
def softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    values, direct = scratch(y, PART), is_direct(dy, dx) and is_direct(y, dx)
    for i in range(start, stop):
        mean = inner(dy[i], y[i])
        for part in range(0, y.shape[1], PART):
            upstream, p, result = dy[i][part : part + PART], y[i][part : part + PART], dx[i][part : part + PART]
            row = destination(result, values, direct)
            for j in range(row.size):
                row[j] = widen(p[j]) * (widen(upstream[j]) - mean)
            if not direct:
                store(row, values.dtype.type(1), result)


@compiled()
def log_softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    e, direct = scratch(x, x.shape[1]), is_direct(x, y)
    for i in range(start, stop):
        row = x[i]
        top = largest(row)
        log_of_sum = log1p(sum_of_others(row, top, e, exponentials(row, top, e)))
        logs = destination(y[i], e, direct)
        for j in range(logs.size):
            logs[j] = (widen(row[j]) - top) - log_of_sum
        if not direct:
            store(logs, e.dtype.type(1), y[i])


@compiled()
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    values, direct = scratch(y, PART), is_direct(dy, dx) and is_direct(y, dx)
    for i in range(start, stop):
        total = total_of(dy[i])
        for part in range(0, y.shape[1], PART):
            upstream, logs, result = dy[i][part : part + PART], y[i][part : part + PART], dx[i][part : part + PART]
            row = destination(result, values, direct)
            for j in range(row.size):
                row[j] = widen(upstream[j]) - exp(widen(logs[j])) * total
            if not direct:
                store(row, values.dtype.type(1), result)
