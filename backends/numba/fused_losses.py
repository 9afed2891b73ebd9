"""Compiled loops for softmax with its loss: over rows and over tiles, for class indices and for labels per class.

Each writes the softmax or, if the mode says so, the gradient times `factor` to `y`. Rows come in blocks whose size
depends on the shape alone. The losses of a block are added in float64 to an entry of `sums`, so that their sum has the
same bits for any number of threads; a tile is such a block.

Python around a small call would take longer than the call. Where `sums` is empty, the loops for class indices do the
rest as well: they check the labels, return the first row with a wrong one before anything is written, or else -1, find
the factor, and write the loss to ``losses[0]``.
"""

from typing import Any

import numpy as np

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.memory import copy, fill, flattened, part_of, real, row_of, scratch, store
from plugrad.backends.numba.rows import CONFIDENT, exponentials, store_products, strip_of, sum_of_others, total_of
from plugrad.backends.numba.targets import (
    EACH,
    GRADIENT,
    MEAN,
    PER_ROW,
    checked,
    clear_ignored,
    fill_row,
    fill_tile,
    is_ignored,
    sum_of_losses,
    targets_for,
    total_of_blocks,
    weighted,
    weights_of_classes,
    z_of_row,
)
from plugrad.backends.numba.tiles import (
    add,
    exponentials_of_lanes,
    flat_like,
    gather,
    largest_of_lanes,
    memory_like,
    place_of,
    scatter,
    tile_of,
    vectors_after,
)
from plugrad.backends.numba.vector import largest, log1p, narrow, widen

# A row whose gradient is multiplied by less than this is multiplied twice: one factor that also undoes the scale of the
# exponentials could be subnormal.
SMALL_SHARE = 2.0**-40


@inlined()
def _store_gradient(e: Any, norm: Any, share: Any, least: Any, row: Any) -> None:
    """``row = e * norm * share``, given the least of the exponentials `e`."""
    if abs(share) < SMALL_SHARE:
        for j in range(e.size):
            e[j] *= norm
        store(e, share, row)
    else:
        store_products(e, share * norm, least, row)


@compiled(in_pieces=True)
def rows_of_class_indices(
    start: int,
    stop: int,
    inner: int,
    block: int,
    mode: int,
    ignore: int,
    factor: float,
    x: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
    y: Any,
) -> int:
    """``loss = -weight log(softmax(x))`` of one class per row."""
    gradient = mode & GRADIENT != 0
    whole, divisor = sums.size == 0, 1.0
    if weight.ndim != PER_ROW and whole:
        wrong, divisor = checked(t, x.shape[1], weight, ignore, mode)
        if wrong >= 0:
            return wrong
        divisor = divisor if mode & MEAN else 1.0
        factor, sums = 1 / divisor if divisor else 0.0, np.empty(stop)
    if weight.ndim == PER_ROW:
        of_classes, z_losses = weights_of_classes(weight, x.shape[1]), scratch(x, block)
    e, step = scratch(x, x.shape[1]), strip_of(x)
    below, others, scale = scratch(x, block), scratch(x, block), scratch(x, block)  # of the rows of a block
    zero, one, slope_factor = e.dtype.type(0), e.dtype.type(1), real(x, factor)
    for b in range(start, stop):
        rows = min(block, len(x) - b * block)
        for r in range(rows):
            i = b * block + r
            label = t[i]
            below[r], others[r], scale[r] = zero, zero, zero
            counts = label != ignore
            row, result = row_of(x, i), row_of(y, i)
            if counts or not gradient:
                top = largest(row)
                total, least = exponentials(row, top, e, result, step)
                norm = one / total
            if counts:
                if weight.ndim == PER_ROW:
                    scale[r] = of_classes[label] * weight[0, i]
                else:
                    scale[r] = weight[label] if weight.size else one
                below[r] = top - widen(row[label])
                others[r] = sum_of_others(row, top, e, total)
                slope = -others[r] / (one + others[r]) if below[r] == zero else e[label] * norm - one
                share, at_label = slope_factor * scale[r], slope_factor * scale[r] * slope
            if weight.ndim == PER_ROW:
                z_losses[r] = zero
                if counts:
                    z_losses[r], z_slope = z_of_row(weight, x.shape[1], i, top, others[r])
                    share += slope_factor * z_slope
                    at_label += slope_factor * z_slope * (e[label] * norm)
            if not gradient:
                store_products(e, norm, least, result)
            elif counts:
                _store_gradient(e, norm, share, least, result)
                result[label] = narrow(at_label, result[label])
            else:
                fill(result, zero)
        for r in range(rows):  # in a loop of their own, so that the logarithms are taken in vector registers
            others[r] = weighted(below[r] + log1p(others[r]), scale[r])
        if weight.ndim == PER_ROW:
            others[:rows] += z_losses[:rows]
        total_loss = 0.0
        for r in range(rows):
            total_loss += np.float64(others[r])
        sums[b] = total_loss
        if mode & EACH:
            copy(part_of(others, 0, rows), part_of(losses, b * block, b * block + rows))
    if whole and not mode & EACH:
        losses[0] = real(x, total_of_blocks(sums) / divisor if divisor else 0.0)
    return -1


@inlined(SUM)
def _inner_with_logs(q: Any, x: Any, top: Any, log_of_sum: Any) -> Any:
    """``-sum(q log(softmax(x)))``; a target of 0 adds 0, even to an infinite logarithm."""
    total = q.dtype.type(0)
    for j in range(q.size):
        total += weighted((top - widen(x[j])) + log_of_sum, q[j])
    return total


@compiled(in_pieces=True)
def rows_of_labels(
    start: int,
    stop: int,
    inner: int,
    block: int,
    mode: int,
    ignore: int,
    smoothing: float,
    factor: float,
    x: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
    y: Any,
) -> None:
    """``loss = -sum(q log(softmax(x)))`` for the targets `q` of each row."""
    targets, gradient = targets_for(x, x.shape[1], t, weight, ignore, smoothing), mode & GRADIENT != 0
    e, q, step = scratch(x, x.shape[1]), scratch(x, x.shape[1]), strip_of(x)
    zero, one = e.dtype.type(0), e.dtype.type(1)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, len(x))):
            counts = not is_ignored(targets, i)
            loss = zero
            row, result = row_of(x, i), row_of(y, i)
            if counts or not gradient:
                top = largest(row)
                total, least = exponentials(row, top, e, result, step)
                norm = one / total
            if counts:
                fill_row(targets, i, q)
                others = sum_of_others(row, top, e, total)
                loss = _inner_with_logs(q, row, top, log1p(others))
                if weight.ndim == PER_ROW:
                    z_loss, z_slope = z_of_row(weight, x.shape[1], i, top, others)
                    loss += z_loss
            if counts and gradient:
                if weight.ndim == PER_ROW:
                    _gradient_of_row(row, top, others, norm, q, z_slope, e)
                else:
                    _gradient_of_row(row, top, others, norm, q, None, e)
                store(e, real(x, factor), result)
            elif gradient:
                fill(result, zero)
            else:
                store_products(e, norm, least, result)
            total_loss += np.float64(loss)
            if mode & EACH:
                losses[i] = loss
        sums[b] = total_loss


@inlined()
def _gradient_of_row(row: Any, top: Any, others: Any, norm: Any, q: Any, z_slope: Any, e: Any) -> None:
    """``e = y (sum(q) + z_slope) - q``, where `e` holds the exponentials and ``y = e * norm``; None stands for 0."""
    target_sum, one = total_of(q), e.dtype.type(1)
    place = 0
    if others < CONFIDENT:
        while widen(row[place]) != top:
            place += 1
    # The same, but no difference of like numbers where y is near 1.
    at_top = (target_sum - q[place]) - target_sum * (others / (one + others))
    if z_slope is not None:
        at_top += z_slope * (e[place] * norm)
        target_sum += z_slope
    for j in range(q.size):
        e[j] = e[j] * norm * target_sum - q[j]
    if others < CONFIDENT:
        e[place] = at_top


@compiled(in_pieces=True)
def tiles_of_class_indices(
    start: int,
    stop: int,
    inner: int,
    lanes: int,
    mode: int,
    ignore: int,
    factor: float,
    x: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
    y: Any,
) -> int:
    """``loss = -weight log(softmax(x))`` of one class per row."""
    classes, flat_x, flat_y = x.shape[1] // inner, flattened(x), flattened(y)
    gradient = mode & GRADIENT != 0
    whole, divisor = sums.size == 0, 1.0
    if weight.ndim != PER_ROW and whole:
        wrong, divisor = checked(t, classes, weight, ignore, mode)
        if wrong >= 0:
            return wrong
        divisor = divisor if mode & MEAN else 1.0
        factor, sums = 1 / divisor if divisor else 0.0, np.empty(stop)
    if weight.ndim == PER_ROW:
        of_classes = weights_of_classes(weight, classes)
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 2, 12)
    tile, e, vectors = tile_of(memory, 0, classes), tile_of(memory, 1, classes), vectors_after(memory, 2, classes)
    top, others = row_of(vectors, 5), row_of(vectors, 6)
    log_of_sum, norm = row_of(vectors, 7), row_of(vectors, 8)
    loss_of, slope, share = row_of(vectors, 9), row_of(vectors, 10), row_of(vectors, 11)
    zero, one, slope_factor = top.dtype.type(0), top.dtype.type(1), real(x, factor)
    fill(share, one)
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, tile)
        largest_of_lanes(tile, top)
        exponentials_of_lanes(tile, top, vectors, e, others, norm)
        for lane in range(lanes):
            log_of_sum[lane] = log1p(others[lane])
            norm[lane] = one / ((one + others[lane]) * norm[lane])  # makes a scaled exponential the softmax
        for lane in range(place.rows):
            label = t[place.first + lane]
            loss_of[lane] = zero
            if label == ignore:
                share[lane] = one
                if gradient:
                    for k in range(classes):
                        e[k, lane] = zero
                    norm[lane] = zero
            else:
                if weight.ndim == PER_ROW:
                    scale = of_classes[label] * weight[0, place.first + lane]
                else:
                    scale = weight[label] if weight.size else one
                is_top = tile[label, lane] == top[lane]
                y_less_1 = -others[lane] / (one + others[lane]) if is_top else e[label, lane] * norm[lane] - one
                loss_of[lane] = weighted((top[lane] - tile[label, lane]) + log_of_sum[lane], scale)
                slope[lane] = slope_factor * scale * y_less_1
                share[lane] = slope_factor * scale if gradient else one
                if weight.ndim == PER_ROW:
                    z_loss, z_slope = z_of_row(weight, classes, place.first + lane, top[lane], others[lane])
                    loss_of[lane] += z_loss
                    slope[lane] += slope_factor * z_slope * (e[label, lane] * norm[lane])
                    share[lane] += slope_factor * z_slope if gradient else zero
        for k in range(classes):
            row = e[k]
            for lane in range(lanes):
                row[lane] = row[lane] * norm[lane] * share[lane]
        if gradient:
            for lane in range(place.rows):
                if t[place.first + lane] != ignore:
                    e[t[place.first + lane], lane] = slope[lane]
        sums[unit] = sum_of_losses(loss_of, place.rows)
        if mode & EACH:
            copy(part_of(loss_of, 0, place.rows), part_of(losses, place.first, place.first + place.rows))
        scatter(e, place, flat, flat_y)
    if whole and not mode & EACH:
        losses[0] = real(x, total_of_blocks(sums) / divisor if divisor else 0.0)
    return -1


@compiled(in_pieces=True)
def tiles_of_labels(
    start: int,
    stop: int,
    inner: int,
    lanes: int,
    mode: int,
    ignore: int,
    smoothing: float,
    factor: float,
    x: Any,
    t: Any,
    weight: Any,
    losses: Any,
    sums: Any,
    y: Any,
) -> None:
    """``loss = -sum(q log(softmax(x)))`` for the targets `q` of each row."""
    classes, flat_x, flat_y = x.shape[1] // inner, flattened(x), flattened(y)
    targets, gradient = targets_for(x, classes, t, weight, ignore, smoothing), mode & GRADIENT != 0
    flat, memory = flat_like(x, classes, lanes), memory_like(x, classes, lanes, 3, 14)
    tile, e, q = tile_of(memory, 0, classes), tile_of(memory, 1, classes), tile_of(memory, 2, classes)
    vectors = vectors_after(memory, 3, classes)
    top, others = row_of(vectors, 5), row_of(vectors, 6)
    total, norm = row_of(vectors, 7), row_of(vectors, 8)
    target_sum, loss_of = row_of(vectors, 9), row_of(vectors, 10)
    part_sum, part_loss = row_of(vectors, 11), row_of(vectors, 12)
    zero, one, slope_factor = top.dtype.type(0), top.dtype.type(1), real(x, factor)
    fill(part_sum, zero)
    fill(part_loss, zero)
    if weight.ndim == PER_ROW:
        z_slope = row_of(vectors, 13)
        fill(z_slope, zero)
    for unit in range(start, stop):
        place = place_of(unit, x, inner, lanes)
        gather(flat_x, place, flat, tile)
        fill_tile(targets, place, flat, q)
        largest_of_lanes(tile, top)
        exponentials_of_lanes(tile, top, vectors, e, others, norm)
        fill(loss_of, zero)
        fill(target_sum, zero)
        for lane in range(lanes):
            total[lane] = log1p(others[lane])
        for k in range(len(tile)):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                part_sum[lane] += target[lane]
                part_loss[lane] += weighted((top[lane] - row[lane]) + total[lane], target[lane])
            add(target_sum, part_sum, k, len(tile))
            add(loss_of, part_loss, k, len(tile))
        if weight.ndim == PER_ROW:
            for lane in range(place.rows):
                z_loss, z_slope[lane] = z_of_row(weight, classes, place.first + lane, top[lane], others[lane])
                loss_of[lane] += z_loss
        for lane in range(lanes):
            total[lane] = one / (one + others[lane])
            norm[lane] = total[lane] / norm[lane]  # makes a scaled exponential the softmax
        for k in range(len(tile)):
            row, target, values = tile[k], q[k], e[k]
            if gradient:
                for lane in range(lanes):
                    y_of_class = values[lane] * norm[lane]
                    slope = y_of_class * target_sum[lane] - target[lane]
                    # The same, but no difference of like numbers where the softmax is near 1.
                    at_top = (target_sum[lane] - target[lane]) - target_sum[lane] * (others[lane] * total[lane])
                    is_top = row[lane] == top[lane] and others[lane] < one
                    slope = at_top if is_top else slope
                    if weight.ndim == PER_ROW:
                        slope += z_slope[lane] * y_of_class
                    values[lane] = slope_factor * slope
            else:
                for lane in range(lanes):
                    values[lane] *= norm[lane]
        for lane in range(place.rows):
            if is_ignored(targets, place.first + lane):
                loss_of[lane] = zero
        if gradient:
            clear_ignored(targets, place, e)
        sums[unit] = sum_of_losses(loss_of, place.rows)
        if mode & EACH:
            copy(part_of(loss_of, 0, place.rows), part_of(losses, place.first, place.first + place.rows))
        scatter(e, place, flat, flat_y)
