"""Compiled loops for the gradients of a loss by its upstream gradient: one number for all rows, or one for each."""

from typing import Any

from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.memory import fill, flattened, row_of, scratch, store
from plugrad.backends.numba.rows import total_of
from plugrad.backends.numba.targets import clear_ignored, fill_row, fill_tile, is_ignored, is_wrong, targets_for
from plugrad.backends.numba.tiles import (
    Place,
    add,
    flat_like,
    gather,
    memory_like,
    padded,
    place_of,
    scatter,
    tile_of,
    vectors_after,
)
from plugrad.backends.numba.vector import widen


@inlined()
def _step(upstream: Any) -> int:
    """The step from row to row in the upstream gradient."""
    return 1 if upstream.size > 1 else 0


@compiled(in_pieces=True)
def rows_of_softmax(
    start: int, stop: int, ignore: int, smoothing: float, x: Any, t: Any, weight: Any, upstream: Any, out: Any
) -> None:
    """``out = upstream (x sum(q) - q)``, of the softmax `x` and the targets `q` of each row."""
    q, values = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    targets, step = targets_for(x, x.shape[1], t, weight, ignore, smoothing), _step(upstream)
    for i in range(start, stop):
        if is_ignored(targets, i):
            fill(out[i], q.dtype.type(0))
            continue
        row = x[i]
        fill_row(targets, i, q)
        target_sum = total_of(q)
        factor = upstream[i * step]
        for j in range(q.size):
            values[j] = factor * (widen(row[j]) * target_sum - q[j])
        store(values, q.dtype.type(1), out[i])


@compiled(in_pieces=True)
def rows_of_probabilities(
    start: int, stop: int, ignore: int, smoothing: float, x: Any, t: Any, weight: Any, upstream: Any, out: Any
) -> bool:
    """``out = -upstream q / x``, of the probabilities `x` and the targets `q` of each row.

    Returns whether some number is no probability.
    """
    q, values = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    targets, step = targets_for(x, x.shape[1], t, weight, ignore, smoothing), _step(upstream)
    zero, wrong = q.dtype.type(0), False
    for i in range(start, stop):
        if is_ignored(targets, i):
            fill(out[i], zero)
            continue
        row = x[i]
        fill_row(targets, i, q)
        factor = upstream[i * step]
        for j in range(q.size):
            wrong |= is_wrong(widen(row[j]), q[j])
            values[j] = zero if q[j] == zero else -factor * q[j] / widen(row[j])
        store(values, q.dtype.type(1), out[i])
    return wrong


@inlined()
def _fill_upstream(upstream: Any, place: Place, factor: Any) -> None:
    """The upstream gradient of each row of a tile."""
    step = _step(upstream)
    for lane in range(place.rows):
        factor[lane] = upstream[(place.first + lane) * step]


@compiled(in_pieces=True)
def tiles_of_softmax(
    start: int,
    stop: int,
    inner: int,
    lanes: int,
    ignore: int,
    smoothing: float,
    x: Any,
    t: Any,
    weight: Any,
    upstream: Any,
    out: Any,
) -> None:
    """``out = upstream (x sum(q) - q)``, of the softmax `x` and the targets `q` of each row."""
    classes, flat_x, flat_out = x.shape[1] // inner, flattened(x), flattened(out)
    targets = targets_for(x, classes, t, weight, ignore, smoothing)
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 2, 3)
    p, q, vectors = tile_of(memory, 0, classes), tile_of(memory, 1, classes), vectors_after(memory, 2, classes)
    target_sum, factor, part = row_of(vectors, 0), row_of(vectors, 1), row_of(vectors, 2)
    fill(factor, p.dtype.type(0))
    fill(part, p.dtype.type(0))
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, p)
        fill_tile(targets, place, flat, q)
        _fill_upstream(upstream, place, factor)
        fill(target_sum, p.dtype.type(0))
        for k in range(len(q)):
            target = q[k]
            for lane in range(lanes):
                part[lane] += target[lane]
            add(target_sum, part, k, len(q))
        for k in range(len(q)):
            row, target = p[k], q[k]
            for lane in range(lanes):
                row[lane] = factor[lane] * (row[lane] * target_sum[lane] - target[lane])
        clear_ignored(targets, place, p)
        scatter(p, place, flat, flat_out)


@compiled(in_pieces=True)
def tiles_of_probabilities(
    start: int,
    stop: int,
    inner: int,
    lanes: int,
    ignore: int,
    smoothing: float,
    x: Any,
    t: Any,
    weight: Any,
    upstream: Any,
    out: Any,
) -> bool:
    """``out = -upstream q / x``, of the probabilities `x` and the targets `q` of each row.

    Returns whether some number is no probability.
    """
    classes, flat_x, flat_out = x.shape[1] // inner, flattened(x), flattened(out)
    targets = targets_for(x, classes, t, weight, ignore, smoothing)
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 2, 1)
    tile, q, factor = tile_of(memory, 0, classes), tile_of(memory, 1, classes), row_of(memory, 2 * padded(classes))
    zero, wrong = tile.dtype.type(0), False
    fill(factor, zero)
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, tile)
        fill_tile(targets, place, flat, q)
        _fill_upstream(upstream, place, factor)
        for k in range(len(q)):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                wrong |= is_wrong(row[lane], target[lane]) & (lane < place.rows)
                row[lane] = zero if target[lane] == zero else -factor[lane] * target[lane] / row[lane]
        clear_ignored(targets, place, tile)
        scatter(tile, place, flat, flat_out)
    return wrong
