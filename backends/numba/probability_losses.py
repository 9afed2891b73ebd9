"""Compiled loops for the cross-entropy of probabilities: over rows and over tiles.

The losses of a block of rows, or of a tile, are added in float64 (see `fused_losses`). A number that is no probability
makes its loss NaN, so that only then somebody has to look for it.
"""

from typing import Any

import numpy as np

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.memory import copy, fill, flattened, part_of, row_of, scratch
from plugrad.backends.numba.targets import (
    PER_ROW,
    fill_row,
    fill_tile,
    is_ignored,
    probability,
    sum_of_losses,
    targets_for,
    weighted,
    weights_of_classes,
)
from plugrad.backends.numba.tiles import add, flat_like, gather, memory_like, place_of, tile_of, vectors_after
from plugrad.backends.numba.vector import log, widen


@compiled(in_pieces=True)
def class_indices(
    start: int, stop: int, inner: int, block: int, ignore: int, p: Any, t: Any, weight: Any, losses: Any, sums: Any
) -> None:
    """``loss = -weight log(p)`` of one class per row of a matrix of `p`; no other probability is read."""
    classes, flat_p = p.shape[1] // inner, flattened(p)
    zero, one = losses.dtype.type(0), losses.dtype.type(1)
    if weight.ndim == PER_ROW:
        of_classes = weights_of_classes(weight, classes)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, t.size)):
            loss = zero
            if t[i] != ignore:
                at = (i // inner * classes + t[i]) * inner + i % inner
                if weight.ndim == PER_ROW:
                    scale = of_classes[t[i]] * weight[0, i]
                else:
                    scale = weight[t[i]] if weight.size else one
                loss = weighted(-log(probability(widen(flat_p[at]), scale)), scale)
            total_loss += np.float64(loss)
            if losses.size:
                losses[i] = loss
        sums[b] = total_loss


@inlined(SUM)
def _inner_with_log(q: Any, p: Any) -> Any:
    """``-sum(q log(p))``; a target of 0 adds 0, even to an infinite logarithm."""
    total = q.dtype.type(0)
    for j in range(q.size):
        total += weighted(-log(probability(widen(p[j]), q[j])), q[j])
    return total


@compiled(in_pieces=True)
def rows_of_labels(
    start: int,
    stop: int,
    inner: int,
    block: int,
    ignore: int,
    smoothing: float,
    p: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
) -> None:
    """``loss = -sum(q log(p))`` for the targets `q` of each row."""
    q, targets = scratch(p, p.shape[1]), targets_for(p, p.shape[1], t, weight, ignore, smoothing)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, len(p))):
            loss = q.dtype.type(0)
            if not is_ignored(targets, i):
                fill_row(targets, i, q)
                loss = _inner_with_log(q, p[i])
            total_loss += np.float64(loss)
            if losses.size:
                losses[i] = loss
        sums[b] = total_loss


@compiled(in_pieces=True)
def tiles_of_labels(
    start: int,
    stop: int,
    inner: int,
    lanes: int,
    ignore: int,
    smoothing: float,
    p: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
) -> None:
    """``loss = -sum(q log(p))`` for the targets `q` of each row."""
    classes, flat_p = p.shape[1] // inner, flattened(p)
    targets = targets_for(p, classes, t, weight, ignore, smoothing)
    flat, memory = flat_like(p, classes, lanes), memory_like(p, classes, lanes, 2, 2)
    tile, q, vectors = tile_of(memory, 0, classes), tile_of(memory, 1, classes), vectors_after(memory, 2, classes)
    loss_of, part, zero = row_of(vectors, 0), row_of(vectors, 1), tile.dtype.type(0)
    fill(part, zero)
    for unit in range(start, stop):
        place = place_of(unit, p, inner, lanes)
        gather(flat_p, place, flat, tile)
        fill_tile(targets, place, flat, q)
        fill(loss_of, zero)
        for k in range(len(tile)):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                part[lane] += weighted(-log(probability(row[lane], target[lane])), target[lane])
            add(loss_of, part, k, len(tile))
        for lane in range(place.rows):
            if is_ignored(targets, place.first + lane):
                loss_of[lane] = zero
        sums[unit] = sum_of_losses(loss_of, place.rows)
        if losses.size:
            copy(part_of(loss_of, 0, place.rows), part_of(losses, place.first, place.first + place.rows))
