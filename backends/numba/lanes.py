"""Kernels over many short rows at once, one in each lane of the vector registers.

They are for rows of few classes, which would leave most lanes idle, and for classes that do not lie side by side, such
as those of images along axis 1. A tile of so many rows is brought into the first-level cache with the classes along its
first axis, computed on, and written back.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.memory import scratch
from plugrad.backends.numba.vector import exp, exp_in, frame_of, log1p, muladd, narrow, widen


@inlined()
def place(unit: int, size: int, classes: int, inner: int, lanes: int) -> Any:
    """Where a tile lies in a flat array: its start, the steps from class to class and from matrix to matrix, its rows.

    Last comes the number of its first row, as labels are counted.
    """
    if inner < SIDE_BY_SIDE:
        first = unit * (lanes // inner) * inner
        return first * classes, inner, classes * inner, min(lanes // inner * inner, size // classes - first), first
    tiles = -(-inner // lanes)
    outer, column = unit // tiles, (unit % tiles) * lanes
    return outer * classes * inner + column, inner, 1, min(lanes, inner - column), outer * inner + column


# From so many rows on that lie side by side at each class, a tile holds some of them; else all of them, and those of
# several matrices of classes by rows.
SIDE_BY_SIDE = 16


@inlined()
def tile_like(x: Any, classes: int, lanes: int) -> Any:
    """Memory for a tile, the classes made up to whole blocks of those that are transposed."""
    return scratch(x, -(-classes // BLOCK) * BLOCK * lanes).reshape(-1, lanes)[:classes]


@inlined()
def flat_like(x: Any, classes: int, lanes: int) -> Any:
    """Memory for the rows of a tile as they lie side by side, and for what is moved with the last of them."""
    return scratch(x, classes * lanes + BLOCK)


@inlined()
def gather(x: Any, start: int, class_step: int, matrix: int, rows: int, flat: Any, tile: Any) -> None:
    """Bring a tile in."""
    if class_step >= SIDE_BY_SIDE:
        for k in range(len(tile)):
            first = start + k * class_step
            values, row = x[first : first + rows], tile[k]
            for lane in range(rows):
                row[lane] = widen(values[lane])
        return
    values = x[start : start + rows * len(tile)]
    for j in range(values.size):
        flat[j] = widen(values[j])
    lanes = tile.shape[1]
    if class_step == 1:
        for lane in range(0, rows, BLOCK):
            for k in range(0, len(tile), BLOCK):
                transpose(flat, lane * matrix + k, matrix, tile, k * lanes + lane, lanes)
    else:
        for lane in range(0, rows, class_step):
            for k in range(len(tile)):
                at = lane * len(tile) + k * class_step
                tile[k, lane : lane + class_step] = flat[at : at + class_step]


@inlined()
def scatter(tile: Any, start: int, class_step: int, matrix: int, rows: int, flat: Any, y: Any) -> None:
    """Write a tile back."""
    if class_step >= SIDE_BY_SIDE:
        for k in range(len(tile)):
            first = start + k * class_step
            values, row = y[first : first + rows], tile[k]
            for lane in range(rows):
                values[lane] = narrow(row[lane], values[lane])
        return
    lanes, last = tile.shape[1], (len(tile) - 1) // BLOCK * BLOCK
    if class_step == 1:
        for lane in range(0, rows, BLOCK):
            for k in range(last, -1, -BLOCK):  # what is written past the end of a row is written over by the next
                transpose(tile, k * lanes + lane, lanes, flat, lane * matrix + k, matrix)
    else:
        for lane in range(0, rows, class_step):
            for k in range(len(tile)):
                at = lane * len(tile) + k * class_step
                flat[at : at + class_step] = tile[k, lane : lane + class_step]
    values = y[start : start + rows * len(tile)]
    for j in range(values.size):
        values[j] = narrow(flat[j], values[j])


BLOCK = 8  # classes and lanes that are transposed at a time, in vector registers


@intrinsic
def transpose(
    typing_context: Any, source: Any, start: Any, source_step: Any, result: Any, to: Any, result_step: Any
) -> Any:
    """Transpose a block: so many numbers from each of so many places, a step apart, to as many places.

    In each of three stages, pairs of rows exchange halves, quarters and eighths. Element by element, the loads and
    stores of a tile take three times as long.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def row(array: int, start: int, step: int, number: int) -> Any:
            memory = context.make_array(signature.args[array])(context, builder, arguments[array]).data
            kind = ir.VectorType(memory.type.pointee, BLOCK)
            at = builder.add(arguments[start], builder.mul(arguments[step], ir.Constant(ir.IntType(64), number)))
            return builder.bitcast(builder.gep(memory, [at]), kind.as_pointer())

        def mixed(a: Any, b: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), places))

        size = source.dtype.bitwidth // 8
        rows = [builder.load(row(0, 1, 2, number), align=size) for number in range(BLOCK)]
        for half in (1, 2, 4):
            low = [place if not place & half else (place ^ half) + BLOCK for place in range(BLOCK)]
            high = [place | half if not place & half else place + BLOCK for place in range(BLOCK)]
            for number in range(BLOCK):
                if not number & half:
                    a, b = rows[number], rows[number | half]
                    rows[number], rows[number | half] = mixed(a, b, low), mixed(a, b, high)
        for number in range(BLOCK):
            builder.store(rows[number], row(3, 4, 5, number), align=size)
        return context.get_dummy_value()

    return types.none(source, types.intp, types.intp, result, types.intp, types.intp), generate


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
def frames(x: Any, lanes: int) -> Any:
    """Memory for the frame of each lane."""
    return scratch(x, lanes), scratch(x, lanes), scratch(x, lanes)


@inlined()
def fill_frames(top: Any, frame: Any) -> None:
    """The frame of each lane, whose largest number is given."""
    shift, lowest, magic = frame
    for lane in range(top.size):
        shift[lane], lowest[lane], magic[lane] = frame_of(top[lane])


@inlined()
def rest_of_lanes(tile: Any, top: Any, frame: Any, e: Any, rest: Any, one: Any) -> None:
    """``e = exp(tile - top)``, scaled, in `one` that of the largest, and in `rest` their sum, unscaled, less 1.

    The largest exponentials are exactly 1. They are counted; the others are summed by themselves.
    """
    shift, lowest, magic = frame
    zero, unit = top.dtype.type(0), top.dtype.type(1)
    ones, part = np.zeros(top.size, top.dtype), np.zeros(top.size, top.dtype)
    rest[:] = zero
    fill_frames(top, frame)
    for lane in range(top.size):
        one[lane] = exp_in(top[lane], shift[lane], lowest[lane], magic[lane])
    for k in range(len(tile)):
        row, values = tile[k], e[k]
        for lane in range(top.size):
            values[lane] = exp_in(row[lane], shift[lane], lowest[lane], magic[lane])
            is_one = row[lane] == top[lane]
            part[lane] += zero if is_one else values[lane]
            ones[lane] += unit if is_one else zero
        add(rest, part, k, len(tile))
    for lane in range(top.size):
        rest[lane] = rest[lane] / one[lane] + (ones[lane] - unit)  # NaN where the largest is infinite


@compiled()
def softmax(start: int, stop: int, x: Any, classes: int, inner: int, lanes: int, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``."""
    flat, tile, top = flat_like(x, classes, lanes), tile_like(x, classes, lanes), scratch(x, lanes)
    total, part = scratch(x, lanes), np.zeros(lanes, top.dtype)
    frame, one = frames(x, lanes), total.dtype.type(1)
    for unit in range(start, stop):
        at, class_step, matrix, rows, _ = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, matrix, rows, flat, tile)
        largest_of_lanes(tile, top)
        fill_frames(top, frame)
        shift, lowest, magic = frame
        total[:] = total.dtype.type(0)
        for k in range(classes):
            row = tile[k]
            for lane in range(lanes):
                row[lane] = exp_in(row[lane], shift[lane], lowest[lane], magic[lane])
                part[lane] += row[lane]
            add(total, part, k, classes)
        for lane in range(lanes):
            total[lane] = one / total[lane]
        for k in range(classes):
            row = tile[k]
            for lane in range(lanes):
                row[lane] *= total[lane]
        scatter(tile, at, class_step, matrix, rows, flat, y)


@compiled()
def softmax_backward(start: int, stop: int, dy: Any, y: Any, classes: int, inner: int, lanes: int, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    flat, mean = flat_like(y, classes, lanes), scratch(y, lanes)
    upstream, p = tile_like(y, classes, lanes), tile_like(y, classes, lanes)
    part = np.zeros(lanes, mean.dtype)
    for unit in range(start, stop):
        at, class_step, matrix, rows, _ = place(unit, y.size, classes, inner, lanes)
        gather(dy, at, class_step, matrix, rows, flat, upstream)
        gather(y, at, class_step, matrix, rows, flat, p)
        mean[:] = mean.dtype.type(0)
        for k in range(classes):
            for lane in range(lanes):
                part[lane] = muladd(upstream[k, lane], p[k, lane], part[lane])
            add(mean, part, k, classes)
        for k in range(classes):
            for lane in range(lanes):
                p[k, lane] *= upstream[k, lane] - mean[lane]
        scatter(p, at, class_step, matrix, rows, flat, dx)


@compiled()
def log_softmax(start: int, stop: int, x: Any, classes: int, inner: int, lanes: int, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    flat, tile, e = flat_like(x, classes, lanes), tile_like(x, classes, lanes), tile_like(x, classes, lanes)
    top, rest, one, frame = scratch(x, lanes), scratch(x, lanes), scratch(x, lanes), frames(x, lanes)
    for unit in range(start, stop):
        at, class_step, matrix, rows, _ = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, matrix, rows, flat, tile)
        largest_of_lanes(tile, top)
        rest_of_lanes(tile, top, frame, e, rest, one)
        for lane in range(lanes):
            rest[lane] = log1p(rest[lane])
        for k in range(classes):
            for lane in range(lanes):
                tile[k, lane] = (tile[k, lane] - top[lane]) - rest[lane]
        scatter(tile, at, class_step, matrix, rows, flat, y)


@compiled()
def log_softmax_backward(start: int, stop: int, dy: Any, y: Any, classes: int, inner: int, lanes: int, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    flat, total = flat_like(y, classes, lanes), scratch(y, lanes)
    upstream, logs = tile_like(y, classes, lanes), tile_like(y, classes, lanes)
    part = np.zeros(lanes, total.dtype)
    for unit in range(start, stop):
        at, class_step, matrix, rows, _ = place(unit, y.size, classes, inner, lanes)
        gather(dy, at, class_step, matrix, rows, flat, upstream)
        gather(y, at, class_step, matrix, rows, flat, logs)
        total[:] = total.dtype.type(0)
        for k in range(classes):
            for lane in range(lanes):
                part[lane] += upstream[k, lane]
            add(total, part, k, classes)
        for k in range(classes):
            for lane in range(lanes):
                upstream[k, lane] -= exp(logs[k, lane]) * total[lane]
        scatter(upstream, at, class_step, matrix, rows, flat, dx)
