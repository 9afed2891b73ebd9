"""Compiled loops over contiguous rows, with so many classes that a row fills the vector registers.

Each takes a range of rows, and computes a row in a few passes over a few kilobytes that stay in the first-level cache.
A result that replaces an argument is computed in scratch memory, and stored at the end.
"""

from typing import Any

import numpy as np

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.memory import (
    FETCHES,
    destination,
    fetch,
    fetch_to_write,
    is_direct,
    part_of,
    real,
    row_of,
    scratch,
    store,
)
from plugrad.backends.numba.vector import (
    bits,
    exp,
    exp_scaling,
    largest,
    log1p,
    muladd,
    narrow,
    number,
    product_rounding,
    rounded_product,
    scaled_exp,
    widen,
)

# ---------------------------------------------------------------------------------------------------------------------
# Sums of exponentials
# ---------------------------------------------------------------------------------------------------------------------

# A row is confident if its exponentials but the largest, which is 1, sum to less than this.
CONFIDENT = 0.25


# The next row is fetched while one is computed: processors fetch ahead themselves, but not beyond a page of memory.
# Softmax of 4096x1024 takes 0.8 of the time on a Xeon, for rows of 50,000 classes it made no difference.
NEAR = 2**18  # elements of an array that stays in the second-level cache
STRIP = 256  # elements that are fetched at a time; for many more the processor would have to wait
LONG = 2**13  # elements of a row that leaves no room in the cache for the next one

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


@inlined(SUM)
def _total_and_least_of_part(a: Any) -> Any:
    """The sum, and the bits of the least of numbers that are not negative."""
    total, least = real(a, 0), bits(real(a, np.inf))
    for j in range(a.size):
        total += a[j]
        least = min(least, bits(a[j]))
    return total, least


@inlined()
def total_of(a: Any) -> Any:
    """``sum(a)``."""
    total = real(a, 0)
    for start in range(0, a.size, PART):
        total += _total_of_part(part_of(a, start, min(start + PART, a.size)))
    return total


@inlined()
def exponentials(x: Any, top: Any, e: Any, y: Any, step: int) -> Any:
    """``e = exp(x - top)``, scaled, their sum, and the least of them.

    They are computed in strips of `step` elements. If that is not the whole row, the next row of the array of `x`, and
    the row `y` of the result, are fetched meanwhile.
    """
    shift, lowest, magic = exp_scaling(top)
    start = 0
    while start < x.size:
        stop = min(start + step, x.size)
        if step < x.size:
            fetch(x, x.size + start, x.size + stop)
            fetch_to_write(y, start, stop)
        values, row = part_of(e, start, stop), part_of(x, start, stop)
        for j in range(row.size):
            values[j] = scaled_exp(widen(row[j]), shift, lowest, magic)
        start = stop
    total, least = real(x, 0), bits(real(x, np.inf))
    for start in range(0, x.size, PART):
        total_of_part, least_of_part = _total_and_least_of_part(part_of(e, start, min(start + PART, e.size)))
        total += total_of_part
        least = min(least, least_of_part)
    return total, number(least)


@inlined()
def strip_of(x: Any) -> int:
    """The number of elements of a row of `x` that are computed at a time: a part of it, if rows come from memory."""
    return STRIP if FETCHES and x.size > NEAR and STRIP < x.shape[1] <= LONG else x.shape[1]


@inlined()
def store_products(e: Any, factor: Any, least: Any, row: Any) -> None:
    """``row = e * factor``, given the least of the exponentials `e`.

    Multiplication takes a hundred times as long where a product is subnormal, on processors of Intel: rows with such
    products, and no others, are computed by `rounded_product`.
    """
    limit, sign, up, magic = product_rounding(factor)
    if least < limit:
        for j in range(row.size):
            row[j] = narrow(rounded_product(e[j], factor, limit, sign, up, magic), row[j])
    else:
        store(e, factor, row)


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
            stop = min(start + PART, x.size)
            scaled += _others_of_part(part_of(x, start, stop), top, part_of(e, start, stop))
        others = scaled / one
    return others


# ---------------------------------------------------------------------------------------------------------------------
# Softmax
# ---------------------------------------------------------------------------------------------------------------------


@compiled(in_pieces=True)
def softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``, the exponentials always in scratch memory."""
    e, step = scratch(x, x.shape[1]), strip_of(x)
    for i in range(start, stop):
        row, result = row_of(x, i), row_of(y, i)
        total, least = exponentials(row, largest(row), e, result, step)
        store_products(e, e.dtype.type(1) / total, least, result)


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
        stop = min(start + PART, a.size)
        total += _inner_of_part(part_of(a, start, stop), part_of(b, start, stop))
    return total


@inlined()
def strips(dy: Any, y: Any, dx: Any, start: int, ahead: bool) -> Any:
    """A strip of each row; if `ahead`, those of the next rows are fetched."""
    stop, size = min(start + STRIP, y.size), y.size
    if ahead:
        fetch(dy, size + start, size + stop)
        fetch(y, size + start, size + stop)
        fetch_to_write(dx, size + start, size + stop)
    return part_of(dy, start, stop), part_of(y, start, stop), part_of(dx, start, stop)


@compiled(in_pieces=True)
def softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    values, direct, ahead = scratch(y, STRIP), is_direct(dy, dx) and is_direct(y, dx), strip_of(y) < y.shape[1]
    for i in range(start, stop):
        row_of_dy, row_of_y, row_of_dx = row_of(dy, i), row_of(y, i), row_of(dx, i)
        mean = inner(row_of_dy, row_of_y)
        for first in range(0, y.shape[1], STRIP):
            upstream, p, result = strips(row_of_dy, row_of_y, row_of_dx, first, ahead)
            row = destination(result, values, direct)
            for j in range(row.size):
                row[j] = widen(p[j]) * (widen(upstream[j]) - mean)
            if not direct:
                store(row, values.dtype.type(1), result)


@compiled(in_pieces=True)
def log_softmax(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    e, direct, step = scratch(x, x.shape[1]), is_direct(x, y), strip_of(x)
    for i in range(start, stop):
        row, result = row_of(x, i), row_of(y, i)
        top = largest(row)
        total, _ = exponentials(row, top, e, result, step)
        log_of_sum = log1p(sum_of_others(row, top, e, total))
        logs = destination(result, e, direct)
        for j in range(logs.size):
            logs[j] = (widen(row[j]) - top) - log_of_sum
        if not direct:
            store(logs, e.dtype.type(1), result)


@compiled(in_pieces=True)
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    values, direct, ahead = scratch(y, STRIP), is_direct(dy, dx) and is_direct(y, dx), strip_of(y) < y.shape[1]
    for i in range(start, stop):
        row_of_dy, row_of_y, row_of_dx = row_of(dy, i), row_of(y, i), row_of(dx, i)
        total = total_of(row_of_dy)
        for first in range(0, y.shape[1], STRIP):
            upstream, logs, result = strips(row_of_dy, row_of_y, row_of_dx, first, ahead)
            row = destination(result, values, direct)
            for j in range(row.size):
                row[j] = widen(upstream[j]) - exp(widen(logs[j])) * total
            if not direct:
                store(row, values.dtype.type(1), result)
