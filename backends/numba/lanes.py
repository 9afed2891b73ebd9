"""Kernels over many short rows at once, one in each lane of the vector registers.

They are for rows of few classes, which would leave most lanes idle, and for classes that do not lie side by side, such
as those of images along axis 1. A tile of so many rows is brought into the first-level cache with the classes along its
first axis, computed on, and written back.
"""

from typing import Any

import numpy as np

from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.rows import scratch
from plugrad.backends.numba.vector import (
    exp,
    exp_of_difference,
    log1p,
    muladd,
    narrow,
    reciprocal,
    scaled_exp,
    unscaled,
    widen,
)


@inlined()
def place(unit: int, size: int, classes: int, inner: int, lanes: int) -> Any:
    """Where a tile lies in a flat array: its start, the steps from class to class and from row to row, its rows.

    Last comes the number of its first row, as labels are counted.
    """
    if inner == 1:
        first = unit * lanes
        return first * classes, 1, classes, min(lanes, size // classes - first), first
    tiles = -(-inner // lanes)
    outer, column = unit // tiles, (unit % tiles) * lanes
    return outer * classes * inner + column, inner, 1, min(lanes, inner - column), outer * inner + column


@inlined()
def gather(x: Any, start: int, class_step: int, lane_step: int, rows: int, tile: Any) -> None:
    """Bring a tile in."""
    if lane_step == 1:
        for k in range(len(tile)):
            for lane in range(rows):
                tile[k, lane] = widen(x[start + k * class_step + lane])
    else:
        for lane in range(rows):
            for k in range(len(tile)):
                tile[k, lane] = widen(x[start + lane * lane_step + k])


@inlined()
def scatter(tile: Any, start: int, class_step: int, lane_step: int, rows: int, y: Any) -> None:
    """Write a tile back."""
    if lane_step == 1:
        for k in range(len(tile)):
            for lane in range(rows):
                at = start + k * class_step + lane
                y[at] = narrow(tile[k, lane], y[at])
    else:
        for lane in range(rows):
            for k in range(len(tile)):
                at = start + lane * lane_step + k
                y[at] = narrow(tile[k, lane], y[at])


@inlined()
def tile_like(x: Any, classes: int, lanes: int) -> Any:
    """Memory for a tile."""
    return scratch(x, classes * lanes).reshape(classes, lanes)


# Classes that are summed up by themselves: sums of thousands of numbers, one after another, would lose digits.
PART = 32


@inlined()
def add(total: Any, part: Any, k: int, classes: int) -> None:
    """After class `k`, add the sums of a part to the totals where the part is complete, and begin a new one."""
    if k % PART == PART - 1 or k == classes - 1:
        for lane in range(total.size):
            total[lane] += part[lane]
            part[lane] = total.dtype.type(0)


@inlined()
def largest_of_lanes(tile: Any, top: Any) -> None:
    """The largest number in each lane."""
    top[:] = tile[0]
    for k in range(1, len(tile)):
        row = tile[k]
        for lane in range(top.size):
            top[lane] = row[lane] if row[lane] > top[lane] else top[lane]


@inlined()
def rest_of_lanes(tile: Any, top: Any, e: Any, rest: Any) -> None:
    """``e = exp(tile - top)``, scaled, and in `rest` their sum less 1, without the rounding of that sum.

    The largest exponentials are exactly 1. They are counted; the others are summed by themselves.
    """
    zero = top.dtype.type(0)
    one = scaled_exp(zero)
    ones, part = np.zeros(top.size, top.dtype), np.zeros(top.size, top.dtype)
    rest[:] = zero
    for k in range(len(tile)):
        row, values = tile[k], e[k]
        for lane in range(top.size):
            values[lane] = exp_of_difference(row[lane], top[lane])
            is_one = row[lane] == top[lane]
            part[lane] += zero if is_one else values[lane]
            ones[lane] += values[lane] if is_one else zero  # NaN where the largest is infinite
        add(rest, part, k, len(tile))
    for lane in range(top.size):
        rest[lane] = unscaled(rest[lane] + (ones[lane] - one))


@compiled()
def softmax(start: int, stop: int, x: Any, classes: int, inner: int, lanes: int, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``."""
    tile, top = tile_like(x, classes, lanes), scratch(x, lanes)
    total, each, error = scratch(x, lanes), scratch(x, lanes), scratch(x, lanes)
    part = np.zeros(lanes, total.dtype)
    for unit in range(start, stop):
        at, class_step, lane_step, rows, _ = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, lane_step, rows, tile)
        largest_of_lanes(tile, top)
        total[:] = total.dtype.type(0)
        for k in range(classes):
            row = tile[k]
            for lane in range(lanes):
                row[lane] = exp_of_difference(row[lane], top[lane])
                part[lane] += row[lane]
            add(total, part, k, classes)
        for lane in range(lanes):
            each[lane], error[lane] = reciprocal(total[lane])
        for k in range(classes):
            row = tile[k]
            for lane in range(lanes):
                row[lane] = muladd(row[lane], each[lane], row[lane] * error[lane])
        scatter(tile, at, class_step, lane_step, rows, y)


@compiled()
def softmax_backward(start: int, stop: int, dy: Any, y: Any, classes: int, inner: int, lanes: int, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    upstream, p, mean = tile_like(y, classes, lanes), tile_like(y, classes, lanes), scratch(y, lanes)
    part = np.zeros(lanes, mean.dtype)
    for unit in range(start, stop):
        at, class_step, lane_step, rows, _ = place(unit, y.size, classes, inner, lanes)
        gather(dy, at, class_step, lane_step, rows, upstream)
        gather(y, at, class_step, lane_step, rows, p)
        mean[:] = mean.dtype.type(0)
        for k in range(classes):
            for lane in range(lanes):
                part[lane] = muladd(upstream[k, lane], p[k, lane], part[lane])
            add(mean, part, k, classes)
        for k in range(classes):
            for lane in range(lanes):
                p[k, lane] *= upstream[k, lane] - mean[lane]
        scatter(p, at, class_step, lane_step, rows, dx)


@compiled()
def log_softmax(start: int, stop: int, x: Any, classes: int, inner: int, lanes: int, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    tile, e = tile_like(x, classes, lanes), tile_like(x, classes, lanes)
    top, rest = scratch(x, lanes), scratch(x, lanes)
    for unit in range(start, stop):
        at, class_step, lane_step, rows, _ = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, lane_step, rows, tile)
        largest_of_lanes(tile, top)
        rest_of_lanes(tile, top, e, rest)
        for lane in range(lanes):
            rest[lane] = log1p(rest[lane])
        for k in range(classes):
            for lane in range(lanes):
                tile[k, lane] = (tile[k, lane] - top[lane]) - rest[lane]
        scatter(tile, at, class_step, lane_step, rows, y)


@compiled()
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, classes: int, inner: int, lanes: int, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    upstream, logs, total = tile_like(y, classes, lanes), tile_like(y, classes, lanes), scratch(y, lanes)
    part = np.zeros(lanes, total.dtype)
    for unit in range(start, stop):
        at, class_step, lane_step, rows, _ = place(unit, y.size, classes, inner, lanes)
        gather(dy, at, class_step, lane_step, rows, upstream)
        gather(y, at, class_step, lane_step, rows, logs)
        total[:] = total.dtype.type(0)
        for k in range(classes):
            for lane in range(lanes):
                part[lane] += upstream[k, lane]
            add(total, part, k, classes)
        for k in range(classes):
            for lane in range(lanes):
                upstream[k, lane] -= exp(logs[k, lane]) * total[lane]
        scatter(upstream, at, class_step, lane_step, rows, dx)
