"""Compiled loops over tiles: many short rows at once, one in each lane of the vector registers.

They compute rows of few classes, which would leave most lanes idle, and classes that are not contiguous, such as those
of images along axis 1. An array is a stack of matrices, with the classes along the first axis of a matrix and the rows
along its columns, `inner` of them. Each matrix is one row of the array that compiled code takes (see `tiling.cut`). A
*tile* has the classes along its first axis and a row in each column, which is called a *lane*. It is copied to the
first-level cache, computed on, and copied back.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.memory import copy, fill, flattened, part_of, row_of, rows_of, scratch
from plugrad.backends.numba.vector import exp, exp_scaling, log1p, muladd, narrow, scaled_exp, widen

# From so many contiguous rows of a matrix on, a tile holds rows of one matrix; below, all rows of several matrices.
CONTIGUOUS = 16


class Place(NamedTuple):
    """Where a tile is in the flat array."""

    start: int  # its first element
    class_step: int  # from class to class
    matrix_step: int  # from matrix to matrix
    rows: int  # in the tile
    first: int  # the number of its first row, in the order of the labels


@inlined()
def place_of(unit: int, x: Any, inner: int, lanes: int) -> Any:
    """The place of a tile of `lanes` lanes in the stack `x`."""
    outer, classes = len(x), x.shape[1] // inner
    if inner < CONTIGUOUS:
        first = unit * (lanes // inner) * inner
        rows = min(lanes // inner * inner, outer * inner - first)
        return Place(first * classes, inner, classes * inner, rows, first)
    tiles = -(-inner // lanes)
    matrix, column = unit // tiles, (unit % tiles) * lanes
    start = matrix * classes * inner + column
    return Place(start, inner, 1, min(lanes, inner - column), matrix * inner + column)


@inlined()
def padded(classes: int) -> int:
    """The number of classes, padded to whole blocks of `transpose`."""
    return -(-classes // BLOCK) * BLOCK


@inlined()
def memory_like(x: Any, classes: int, lanes: int, tiles: int, vectors: int) -> Any:
    """Memory for tiles, each with its classes padded, and after them for vectors of one number for each lane.

    It comes at once, because each array of its own takes time to allocate, and more to compile.
    """
    return scratch(x, (tiles * padded(classes) + vectors, lanes))


@inlined()
def tile_of(memory: Any, number: int, classes: int) -> Any:
    """A tile in the memory."""
    start = number * padded(classes)
    return rows_of(memory, start, start + classes)


@inlined()
def vectors_after(memory: Any, tiles: int, classes: int) -> Any:
    """The vectors in memory for so many tiles."""
    return rows_of(memory, tiles * padded(classes), len(memory))


@inlined()
def flat_like(x: Any, classes: int, lanes: int) -> Any:
    """Memory for the rows of a tile in the order of the stack, padded by a block of `transpose`."""
    return scratch(x, classes * lanes + BLOCK)


@inlined()
def gather(x: Any, place: Place, flat: Any, tile: Any) -> None:
    """Copy a tile from the flat array `x`."""
    start, class_step, matrix, rows = place.start, place.class_step, place.matrix_step, place.rows
    if class_step >= CONTIGUOUS:
        for k in range(len(tile)):
            first = start + k * class_step
            values, row = part_of(x, first, first + rows), row_of(tile, k)
            for lane in range(rows):
                row[lane] = widen(values[lane])
        return
    values = part_of(x, start, start + rows * len(tile))
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
                copy(part_of(flat, at, at + class_step), part_of(row_of(tile, k), lane, lane + class_step))


@inlined()
def scatter(tile: Any, place: Place, flat: Any, y: Any) -> None:
    """Copy a tile to the flat array `y`."""
    start, class_step, matrix, rows = place.start, place.class_step, place.matrix_step, place.rows
    if class_step >= CONTIGUOUS:
        for k in range(len(tile)):
            first = start + k * class_step
            values, row = part_of(y, first, first + rows), row_of(tile, k)
            for lane in range(rows):
                values[lane] = narrow(row[lane], values[lane])
        return
    lanes, last = tile.shape[1], (len(tile) - 1) // BLOCK * BLOCK
    if class_step == 1:
        for lane in range(0, rows, BLOCK):
            for k in range(last, -1, -BLOCK):  # the next row overwrites what is written past the end
                transpose(tile, k * lanes + lane, lanes, flat, lane * matrix + k, matrix)
    else:
        for lane in range(0, rows, class_step):
            for k in range(len(tile)):
                at = lane * len(tile) + k * class_step
                copy(part_of(row_of(tile, k), lane, lane + class_step), part_of(flat, at, at + class_step))
    values = part_of(y, start, start + rows * len(tile))
    for j in range(values.size):
        values[j] = narrow(flat[j], values[j])


BLOCK = 8  # classes and lanes that are transposed at a time: eight vector registers of eight float32


@intrinsic
def transpose(
    typing_context: Any, source: Any, start: Any, source_step: Any, result: Any, to: Any, result_step: Any
) -> Any:
    """Transpose a block of `BLOCK` x `BLOCK` numbers, the rows of which are a step apart.

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


# Classes in a partial sum: sums of thousands of numbers, one after another, would lose digits.
PART = 32


@inlined()
def add(total: Any, part: Any, k: int, classes: int) -> None:
    """After class `k`, add the partial sums to the totals if the part is complete, and begin a new part."""
    if k % PART == PART - 1 or k == classes - 1:
        for lane in range(total.size):
            total[lane] += part[lane]
            part[lane] = total.dtype.type(0)


@inlined()
def largest_of_lanes(tile: Any, top: Any) -> None:
    """The largest number in each lane."""
    copy(row_of(tile, 0), top)
    for k in range(1, len(tile)):
        row = row_of(tile, k)
        for lane in range(top.size):
            top[lane] = row[lane] if row[lane] > top[lane] else top[lane]


@inlined()
def fill_scalings(top: Any, scalings: Any) -> None:
    """The scaling of the exponentials of each lane (see `vector.exp_scaling`), whose largest number is given."""
    shift, lowest, magic = row_of(scalings, 0), row_of(scalings, 1), row_of(scalings, 2)
    for lane in range(top.size):
        shift[lane], lowest[lane], magic[lane] = exp_scaling(top[lane])


@inlined()
def exponentials_of_lanes(tile: Any, top: Any, vectors: Any, e: Any, others: Any, one: Any) -> None:
    """``e = exp(tile - top)``, scaled, in `one` that of the largest, and in `others` their sum, unscaled, less 1.

    The largest exponentials are exactly 1. They are counted, and the others summed without them. `vectors` are five of
    scratch memory.
    """
    fill_scalings(top, vectors)
    shift, lowest, magic = row_of(vectors, 0), row_of(vectors, 1), row_of(vectors, 2)
    ones, part = row_of(vectors, 3), row_of(vectors, 4)
    zero, unit = top.dtype.type(0), top.dtype.type(1)
    for lane in range(top.size):
        others[lane], ones[lane], part[lane] = zero, zero, zero
        one[lane] = scaled_exp(top[lane], shift[lane], lowest[lane], magic[lane])
    for k in range(len(tile)):
        row, values = row_of(tile, k), row_of(e, k)
        for lane in range(top.size):
            values[lane] = scaled_exp(row[lane], shift[lane], lowest[lane], magic[lane])
            is_one = row[lane] == top[lane]
            part[lane] += zero if is_one else values[lane]
            ones[lane] += unit if is_one else zero
        add(others, part, k, len(tile))
    for lane in range(top.size):
        others[lane] = others[lane] / one[lane] + (ones[lane] - unit)  # NaN where the largest is infinite


@compiled(in_pieces=True)
def softmax(start: int, stop: int, inner: int, lanes: int, x: Any, y: Any) -> None:
    """``y = exp(x) / sum(exp(x))``."""
    classes, flat_x, flat_y = x.shape[1] // inner, flattened(x), flattened(y)
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 1, 6)
    tile, vectors = tile_of(memory, 0, classes), vectors_after(memory, 1, classes)
    shift, lowest, magic = row_of(vectors, 0), row_of(vectors, 1), row_of(vectors, 2)
    top, total, part = row_of(vectors, 3), row_of(vectors, 4), row_of(vectors, 5)
    zero, one = total.dtype.type(0), total.dtype.type(1)
    fill(part, zero)
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, tile)
        largest_of_lanes(tile, top)
        fill_scalings(top, vectors)
        fill(total, zero)
        for k in range(classes):
            row = row_of(tile, k)
            for lane in range(lanes):
                row[lane] = scaled_exp(row[lane], shift[lane], lowest[lane], magic[lane])
                part[lane] += row[lane]
            add(total, part, k, classes)
        for lane in range(lanes):
            total[lane] = one / total[lane]
        for k in range(classes):
            row = row_of(tile, k)
            for lane in range(lanes):
                row[lane] *= total[lane]
        scatter(tile, place, flat, flat_y)


@compiled(in_pieces=True)
def softmax_backward(start: int, stop: int, inner: int, lanes: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = y (dy - sum(dy y))``."""
    classes, flat_dy, flat_y, flat_dx = y.shape[1] // inner, flattened(dy), flattened(y), flattened(dx)
    flat, memory = flat_like(y, classes, lanes), memory_like(y, classes, lanes, 2, 2)
    upstream, p, vectors = tile_of(memory, 0, classes), tile_of(memory, 1, classes), vectors_after(memory, 2, classes)
    mean, part = row_of(vectors, 0), row_of(vectors, 1)
    fill(part, part.dtype.type(0))
    for unit in range(start, stop):
        place = place_of(unit, y, inner, lanes)
        gather(flat_dy, place, flat, upstream)
        gather(flat_y, place, flat, p)
        fill(mean, mean.dtype.type(0))
        for k in range(classes):
            row_of_dy, row_of_y = row_of(upstream, k), row_of(p, k)
            for lane in range(lanes):
                part[lane] = muladd(row_of_dy[lane], row_of_y[lane], part[lane])
            add(mean, part, k, classes)
        for k in range(classes):
            row_of_dy, row_of_y = row_of(upstream, k), row_of(p, k)
            for lane in range(lanes):
                row_of_y[lane] *= row_of_dy[lane] - mean[lane]
        scatter(p, place, flat, flat_dx)


@compiled(in_pieces=True)
def log_softmax(start: int, stop: int, inner: int, lanes: int, x: Any, y: Any) -> None:
    """``y = x - log(sum(exp(x)))``."""
    classes, flat_x, flat_y = x.shape[1] // inner, flattened(x), flattened(y)
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 2, 8)
    tile, e, vectors = tile_of(memory, 0, classes), tile_of(memory, 1, classes), vectors_after(memory, 2, classes)
    top, others, one = row_of(vectors, 5), row_of(vectors, 6), row_of(vectors, 7)
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, tile)
        largest_of_lanes(tile, top)
        exponentials_of_lanes(tile, top, vectors, e, others, one)
        for lane in range(lanes):
            others[lane] = log1p(others[lane])
        for k in range(classes):
            for lane in range(lanes):
                tile[k, lane] = (tile[k, lane] - top[lane]) - others[lane]
        scatter(tile, place, flat, flat_y)


@compiled(in_pieces=True)
def log_softmax_backward(start: int, stop: int, inner: int, lanes: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy - exp(y) sum(dy)``."""
    classes, flat_dy, flat_y, flat_dx = y.shape[1] // inner, flattened(dy), flattened(y), flattened(dx)
    flat, memory = flat_like(y, classes, lanes), memory_like(y, classes, lanes, 2, 2)
    upstream, logs, vectors = (
        tile_of(memory, 0, classes),
        tile_of(memory, 1, classes),
        vectors_after(memory, 2, classes),
    )
    total, part = row_of(vectors, 0), row_of(vectors, 1)
    fill(part, part.dtype.type(0))
    for unit in range(start, stop):
        place = place_of(unit, y, inner, lanes)
        gather(flat_dy, place, flat, upstream)
        gather(flat_y, place, flat, logs)
        fill(total, total.dtype.type(0))
        for k in range(classes):
            for lane in range(lanes):
                part[lane] += upstream[k, lane]
            add(total, part, k, classes)
        for k in range(classes):
            for lane in range(lanes):
                upstream[k, lane] -= exp(logs[k, lane]) * total[lane]
        scatter(upstream, place, flat, flat_dx)
