"""Cross-entropy and its gradients, over rows that lie side by side and over tiles of short rows.

Labels are class indices, or numbers for each class in the format that is computed in. The rows come in blocks of a
size that depends on the shape alone; the losses of each are added up in float64, so that their sum is the same for any
number of threads.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.lanes import (
    PART,
    add,
    flat_like,
    frames,
    gather,
    largest_of_lanes,
    place,
    rest_of_lanes,
    scatter,
    tile_like,
)
from plugrad.backends.numba.memory import fill, scratch, store
from plugrad.backends.numba.rows import CONFIDENT, exponentials, rest, total_of
from plugrad.backends.numba.vector import largest, log, log1p, narrow, widen

# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


@compiled()
def first_wrong(t: Any, classes: int, ignore: int, ignoring: bool) -> int:
    """The first row whose class index is neither ignored nor in ``[0, classes)``; -1 if there is none."""
    wrong = False
    for i in range(t.size):  # without a way out, so that it is done in vector registers
        wrong |= (t[i] < 0 or t[i] >= classes) and not (ignoring and t[i] == ignore)
    if wrong:
        for i in range(t.size):
            if (t[i] < 0 or t[i] >= classes) and not (ignoring and t[i] == ignore):
                return i
    return -1


@compiled()
def count(t: Any, weight: Any, ignore: int, ignoring: bool) -> float:
    """How many class indices count, or what their classes weigh in all."""
    total = 0.0
    for i in range(t.size):
        if not (ignoring and t[i] == ignore):
            total += np.float64(weight[t[i]]) if weight.size else 1.0
    return total


def is_ignored(t: Any, i: int, ignore: int, ignoring: bool) -> bool:
    """Whether row `i` does not count."""
    raise NotImplementedError


@overload(is_ignored, strict=False)
def _is_ignored(t: Any, i: int, ignore: int, ignoring: bool) -> Any:
    if isinstance(t.dtype, types.Integer):
        return lambda t, i, ignore, ignoring: ignoring and t[i] == ignore
    return lambda t, i, ignore, ignoring: False


def targets(t: Any, i: int, weight: Any, keep: Any, spread: Any, q: Any) -> None:
    """``q``: the labels of row `i`, smoothed and weighted."""
    raise NotImplementedError


@overload(targets, strict=False)
def _targets(t: Any, i: int, weight: Any, keep: Any, spread: Any, q: Any) -> Any:
    if isinstance(t.dtype, types.Integer):

        def of_class(t: Any, i: int, weight: Any, keep: Any, spread: Any, q: Any) -> None:
            if spread == q.dtype.type(0):  # the weights of other classes do not matter, be they infinite
                q[:] = spread
                q[t[i]] = keep * weight[t[i]] if weight.size else keep
                return
            q[:] = spread
            q[t[i]] += keep
            if weight.size:
                q *= weight

        return of_class

    def of_each_class(t: Any, i: int, weight: Any, keep: Any, spread: Any, q: Any) -> None:
        labels = t[i * q.size : (i + 1) * q.size]
        for j in range(q.size):
            q[j] = labels[j] * keep + spread
        if weight.size:
            q *= weight

    return of_each_class


# ---------------------------------------------------------------------------------------------------------------------
# Softmax with loss, over rows
# ---------------------------------------------------------------------------------------------------------------------


# Where the gradient of a row is multiplied by less than this, it is multiplied twice: one factor that also undoes the
# scale of the exponentials could be subnormal.
SMALL_SHARE = 2.0**-40


@compiled()
def softmax_loss_of_classes(
    start: int,
    stop: int,
    block: int,
    x: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    factor: Any,
    gradient: bool,
    losses: Any,
    sums: Any,
    y: Any,
) -> None:
    """For one class per row: ``loss = -weight log(softmax(x))``, and in `y` the softmax or the gradient."""
    e = scratch(x, x.shape[1])
    below, beside, scale = scratch(x, block), scratch(x, block), scratch(x, block)  # of the rows of a block
    zero, one = e.dtype.type(0), e.dtype.type(1)
    for b in range(start, stop):
        rows = min(block, len(x) - b * block)
        for r in range(rows):
            i = b * block + r
            label = t[i]
            below[r], beside[r], scale[r] = zero, zero, zero
            counts = not (ignoring and label == ignore)
            if counts or not gradient:
                row = x[i]
                top = largest(row)
                total = exponentials(row, top, e)
                each = one / total
            if counts:
                scale[r] = weight[label] if weight.size else one
                below[r] = top - widen(row[label])
                beside[r] = rest(row, top, e, total)
                slope = -beside[r] / (one + beside[r]) if below[r] == zero else e[label] * each - one
            if not gradient:
                store(e, each, y[i])
            elif counts:
                share = factor * scale[r]
                if abs(share) < SMALL_SHARE:
                    for j in range(e.size):
                        e[j] *= each
                    store(e, share, y[i])
                else:
                    store(e, share * each, y[i])
                y[i, label] = narrow(factor * scale[r] * slope, y[i, label])
            else:
                fill(y[i], zero)
        for r in range(rows):  # by themselves, so that the logarithms are taken in vector registers
            loss = below[r] + log1p(beside[r])
            beside[r] = zero if scale[r] == zero and loss == np.inf else loss * scale[r]
        total_loss = 0.0
        for r in range(rows):
            total_loss += np.float64(beside[r])
        sums[b] = total_loss
        if losses.size:
            losses[b * block : b * block + rows] = beside[:rows]


@inlined(SUM)
def inner_with_logs(q: Any, x: Any, top: Any, log_of_sum: Any) -> Any:
    """``-sum(q log(softmax(x)))``; a target of 0 adds 0, even to an infinite logarithm."""
    zero = q.dtype.type(0)
    total = zero
    for j in range(q.size):
        loss = (top - widen(x[j])) + log_of_sum
        total += zero if q[j] == zero and loss == np.inf else q[j] * loss
    return total


@compiled()
def softmax_loss_of_labels(
    start: int,
    stop: int,
    block: int,
    x: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    factor: Any,
    gradient: bool,
    losses: Any,
    sums: Any,
    y: Any,
) -> None:
    """For a target for each class: ``loss = -sum(q log(softmax(x)))``, and in `y` the softmax or the gradient."""
    e, q = scratch(x, x.shape[1]), scratch(x, x.shape[1])
    zero, one = e.dtype.type(0), e.dtype.type(1)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, len(x))):
            counts = not is_ignored(t, i, ignore, ignoring)
            loss = zero
            if counts or not gradient:
                row = x[i]
                top = largest(row)
                total = exponentials(row, top, e)
                each = one / total
            if counts:
                targets(t, i, weight, keep, spread, q)
                beside = rest(row, top, e, total)
                loss = inner_with_logs(q, row, top, log1p(beside))
            if counts and gradient:
                together = total_of(q)
                place = 0
                if beside < CONFIDENT:
                    while widen(row[place]) != top:
                        place += 1
                # The same as together * y - q, but no difference of like numbers where y is near 1.
                at_top = (together - q[place]) - together * (beside / (one + beside))
                for j in range(q.size):
                    e[j] = e[j] * each * together - q[j]
                if beside < CONFIDENT:
                    e[place] = at_top
                store(e, factor, y[i])
            elif gradient:
                fill(y[i], zero)
            else:
                store(e, each, y[i])
            total_loss += np.float64(loss)
            if losses.size:
                losses[i] = loss
        sums[b] = total_loss


# ---------------------------------------------------------------------------------------------------------------------
# Softmax with loss, over tiles
# ---------------------------------------------------------------------------------------------------------------------


@inlined()
def _loss_of_tile(losses: Any, rows: int) -> float:
    """The sum of the losses of the rows of a tile."""
    total, part = 0.0, 0.0
    for lane in range(rows):
        part += np.float64(losses[lane])
        if lane % PART == PART - 1 or lane == rows - 1:
            total, part = total + part, 0.0
    return total


@compiled()
def softmax_loss_of_class_lanes(
    start: int,
    stop: int,
    x: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    factor: Any,
    gradient: bool,
    losses: Any,
    sums: Any,
    classes: int,
    inner: int,
    lanes: int,
    y: Any,
) -> None:
    """For one class per row: ``loss = -weight log(softmax(x))``, and in `y` the softmax or the gradient."""
    flat, tile, e = flat_like(x, classes, lanes), tile_like(x, classes, lanes), tile_like(x, classes, lanes)
    top, beside, log_of_sum, each = scratch(x, lanes), scratch(x, lanes), scratch(x, lanes), scratch(x, lanes)
    each_loss, slope, share = scratch(x, lanes), scratch(x, lanes), np.ones(lanes, top.dtype)
    frame = frames(x, lanes)
    zero, one = top.dtype.type(0), top.dtype.type(1)
    for unit in range(start, stop):
        at, class_step, matrix, rows, first = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, matrix, rows, flat, tile)
        largest_of_lanes(tile, top)
        rest_of_lanes(tile, top, frame, e, beside, each)
        for lane in range(lanes):
            log_of_sum[lane] = log1p(beside[lane])
            each[lane] = one / ((one + beside[lane]) * each[lane])  # what makes a scaled exponential the softmax
        for lane in range(rows):
            label = t[first + lane]
            each_loss[lane] = zero
            if ignoring and label == ignore:
                share[lane] = one
                if gradient:
                    e[:, lane] = zero
                    each[lane] = zero
            else:
                scale = weight[label] if weight.size else one
                is_top = tile[label, lane] == top[lane]
                y_less_1 = -beside[lane] / (one + beside[lane]) if is_top else e[label, lane] * each[lane] - one
                loss = (top[lane] - tile[label, lane]) + log_of_sum[lane]
                each_loss[lane] = zero if scale == zero and loss == np.inf else loss * scale
                slope[lane] = factor * scale * y_less_1
                share[lane] = factor * scale if gradient else one
        for k in range(classes):
            row = e[k]
            for lane in range(lanes):
                row[lane] = row[lane] * each[lane] * share[lane]
        if gradient:
            for lane in range(rows):
                if not (ignoring and t[first + lane] == ignore):
                    e[t[first + lane], lane] = slope[lane]
        sums[unit] = _loss_of_tile(each_loss, rows)
        if losses.size:
            losses[first : first + rows] = each_loss[:rows]
        scatter(e, at, class_step, matrix, rows, flat, y)


def lane_targets(
    t: Any,
    first: int,
    at: int,
    class_step: int,
    matrix: int,
    rows: int,
    weight: Any,
    keep: Any,
    spread: Any,
    flat: Any,
    q: Any,
) -> None:
    """``q``: the labels of the rows of a tile, smoothed and weighted."""
    raise NotImplementedError


@overload(lane_targets, strict=False)
def _lane_targets(
    t: Any,
    first: int,
    at: int,
    class_step: int,
    matrix: int,
    rows: int,
    weight: Any,
    keep: Any,
    spread: Any,
    flat: Any,
    q: Any,
) -> Any:
    if isinstance(t.dtype, types.Integer):

        def of_class(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q):  # type: ignore[no-untyped-def]
            for k in range(len(q)):
                q[k, :] = weight[k] * spread if weight.size and spread != q.dtype.type(0) else spread
            for lane in range(rows):
                label = t[first + lane]
                if 0 <= label < len(q):  # else it is ignored
                    q[label, lane] += weight[label] * keep if weight.size else keep

        return of_class

    def of_each_class(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q):  # type: ignore[no-untyped-def]
        gather(t, at, class_step, matrix, rows, flat, q)
        for k in range(len(q)):
            row = q[k]
            for lane in range(row.size):
                row[lane] = row[lane] * keep + spread
            if weight.size:
                row *= weight[k]

    return of_each_class


@compiled()
def softmax_loss_of_lanes(
    start: int,
    stop: int,
    x: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    factor: Any,
    gradient: bool,
    losses: Any,
    sums: Any,
    classes: int,
    inner: int,
    lanes: int,
    y: Any,
) -> None:
    """``loss = -sum(q log(softmax(x)))`` for the targets `q` of each row, and in `y` the softmax or the gradient."""
    tile, e, q = tile_like(x, classes, lanes), tile_like(x, classes, lanes), tile_like(x, classes, lanes)
    top, beside, total = scratch(x, lanes), scratch(x, lanes), scratch(x, lanes)
    flat, frame, largest_e = flat_like(x, classes, lanes), frames(x, lanes), scratch(x, lanes)
    together, each_loss = scratch(x, lanes), scratch(x, lanes)
    part_together, part_loss = np.zeros(lanes, top.dtype), np.zeros(lanes, top.dtype)
    zero, one = top.dtype.type(0), top.dtype.type(1)
    for unit in range(start, stop):
        at, class_step, matrix, rows, first = place(unit, x.size, classes, inner, lanes)
        gather(x, at, class_step, matrix, rows, flat, tile)
        lane_targets(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q)
        largest_of_lanes(tile, top)
        rest_of_lanes(tile, top, frame, e, beside, largest_e)
        each_loss[:] = zero
        together[:] = zero
        for lane in range(lanes):
            total[lane] = log1p(beside[lane])
        for k in range(classes):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                part_together[lane] += target[lane]
                loss = (top[lane] - row[lane]) + total[lane]
                part_loss[lane] += zero if target[lane] == zero and loss == np.inf else target[lane] * loss
            add(together, part_together, k, classes)
            add(each_loss, part_loss, k, classes)
        for lane in range(lanes):
            total[lane] = one / (one + beside[lane])
            largest_e[lane] = total[lane] / largest_e[lane]  # what makes a scaled exponential the softmax
        for k in range(classes):
            row, target, values = tile[k], q[k], e[k]
            if gradient:
                for lane in range(lanes):
                    slope = values[lane] * largest_e[lane] * together[lane] - target[lane]
                    # The same, but no difference of like numbers where the softmax is near 1.
                    at_top = (together[lane] - target[lane]) - together[lane] * (beside[lane] * total[lane])
                    is_top = row[lane] == top[lane] and beside[lane] < one
                    values[lane] = factor * (at_top if is_top else slope)
            else:
                for lane in range(lanes):
                    values[lane] *= largest_e[lane]
        for lane in range(rows):
            if is_ignored(t, first + lane, ignore, ignoring):
                each_loss[lane] = zero
        if gradient:
            _clear_ignored(t, first, rows, ignore, ignoring, e)
        sums[unit] = _loss_of_tile(each_loss, rows)
        if losses.size:
            losses[first : first + rows] = each_loss[:rows]
        scatter(e, at, class_step, matrix, rows, flat, y)


# ---------------------------------------------------------------------------------------------------------------------
# Gradients and losses by themselves
# ---------------------------------------------------------------------------------------------------------------------


@compiled()
def softmax_gradient(
    start: int,
    stop: int,
    y: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    upstream: Any,
    upstream_step: int,
    dx: Any,
) -> None:
    """``dx = upstream (y sum(q) - q)``."""
    q, values = scratch(y, y.shape[1]), scratch(y, y.shape[1])
    zero, one = q.dtype.type(0), q.dtype.type(1)
    for i in range(start, stop):
        if is_ignored(t, i, ignore, ignoring):
            fill(dx[i], zero)
            continue
        row = y[i]
        targets(t, i, weight, keep, spread, q)
        together = total_of(q)
        factor = upstream[i * upstream_step]
        for j in range(q.size):
            values[j] = factor * (widen(row[j]) * together - q[j])
        store(values, one, dx[i])


@compiled()
def loss_of_classes(
    start: int,
    stop: int,
    block: int,
    p: Any,
    classes: int,
    inner: int,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    losses: Any,
    sums: Any,
) -> None:
    """``loss = -weight log(p)`` of one class per row, where only that one is read."""
    zero = losses.dtype.type(0)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, t.size)):
            loss = zero
            if not (ignoring and t[i] == ignore):
                at = (i // inner * classes + t[i]) * inner + i % inner
                loss = -log(widen(p[at]))
                scale = weight[t[i]] if weight.size else losses.dtype.type(1)
                loss = zero if scale == zero and loss == np.inf else loss * scale
            total_loss += np.float64(loss)
            if losses.size:
                losses[i] = loss
        sums[b] = total_loss


@inlined(SUM)
def inner_with_log(q: Any, p: Any) -> Any:
    """``-sum(q log(p))``; a target of 0 adds 0, even to an infinite logarithm."""
    zero = q.dtype.type(0)
    total = zero
    for j in range(q.size):
        loss = -log(widen(p[j]))
        total += zero if q[j] == zero and loss == np.inf else q[j] * loss
    return total


@compiled()
def loss_of_labels(
    start: int,
    stop: int,
    block: int,
    p: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    losses: Any,
    sums: Any,
) -> None:
    """``loss = -sum(q log(p))``."""
    q = scratch(p, p.shape[1])
    zero = q.dtype.type(0)
    for b in range(start, stop):
        total_loss = 0.0
        for i in range(b * block, min((b + 1) * block, len(p))):
            loss = zero
            if not is_ignored(t, i, ignore, ignoring):
                targets(t, i, weight, keep, spread, q)
                loss = inner_with_log(q, p[i])
            total_loss += np.float64(loss)
            if losses.size:
                losses[i] = loss
        sums[b] = total_loss


@compiled()
def loss_gradient(
    start: int,
    stop: int,
    p: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    upstream: Any,
    upstream_step: int,
    dp: Any,
) -> None:
    """``dp = -upstream q / p``."""
    q, values = scratch(p, p.shape[1]), scratch(p, p.shape[1])
    zero, one = q.dtype.type(0), q.dtype.type(1)
    for i in range(start, stop):
        if is_ignored(t, i, ignore, ignoring):
            fill(dp[i], zero)
            continue
        row = p[i]
        targets(t, i, weight, keep, spread, q)
        factor = upstream[i * upstream_step]
        for j in range(q.size):
            values[j] = zero if q[j] == zero else -factor * q[j] / widen(row[j])
        store(values, one, dp[i])


# ---------------------------------------------------------------------------------------------------------------------
# The same, over tiles
# ---------------------------------------------------------------------------------------------------------------------


@inlined()
def _fill_upstream(upstream: Any, step: int, first: int, rows: int, factor: Any) -> None:
    """The gradient that arrives at each row of a tile."""
    for lane in range(rows):
        factor[lane] = upstream[(first + lane) * step]


@inlined()
def _clear_ignored(t: Any, first: int, rows: int, ignore: int, ignoring: bool, tile: Any) -> None:
    """Zeros for the rows of a tile that do not count, whatever was computed for them."""
    for lane in range(rows):
        if is_ignored(t, first + lane, ignore, ignoring):
            tile[:, lane] = tile.dtype.type(0)


@compiled()
def softmax_gradient_of_lanes(
    start: int,
    stop: int,
    y: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    upstream: Any,
    upstream_step: int,
    classes: int,
    inner: int,
    lanes: int,
    dx: Any,
) -> None:
    """``dx = upstream (y sum(q) - q)``."""
    flat, p, q = flat_like(y, classes, lanes), tile_like(y, classes, lanes), tile_like(y, classes, lanes)
    together, factor = scratch(y, lanes), np.zeros(lanes, p.dtype)
    part = np.zeros(lanes, p.dtype)
    for unit in range(start, stop):
        at, class_step, matrix, rows, first = place(unit, y.size, classes, inner, lanes)
        gather(y, at, class_step, matrix, rows, flat, p)
        lane_targets(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q)
        _fill_upstream(upstream, upstream_step, first, rows, factor)
        together[:] = p.dtype.type(0)
        for k in range(classes):
            target = q[k]
            for lane in range(lanes):
                part[lane] += target[lane]
            add(together, part, k, classes)
        for k in range(classes):
            row, target = p[k], q[k]
            for lane in range(lanes):
                row[lane] = factor[lane] * (row[lane] * together[lane] - target[lane])
        _clear_ignored(t, first, rows, ignore, ignoring, p)
        scatter(p, at, class_step, matrix, rows, flat, dx)


@compiled()
def loss_of_lanes(
    start: int,
    stop: int,
    p: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    losses: Any,
    sums: Any,
    classes: int,
    inner: int,
    lanes: int,
) -> None:
    """``loss = -sum(q log(p))``."""
    flat, tile, q = flat_like(p, classes, lanes), tile_like(p, classes, lanes), tile_like(p, classes, lanes)
    each_loss, part = scratch(p, lanes), np.zeros(lanes, tile.dtype)
    zero = tile.dtype.type(0)
    for unit in range(start, stop):
        at, class_step, matrix, rows, first = place(unit, p.size, classes, inner, lanes)
        gather(p, at, class_step, matrix, rows, flat, tile)
        lane_targets(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q)
        each_loss[:] = zero
        for k in range(classes):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                loss = -log(row[lane])
                part[lane] += zero if target[lane] == zero and loss == np.inf else target[lane] * loss
            add(each_loss, part, k, classes)
        for lane in range(rows):
            if is_ignored(t, first + lane, ignore, ignoring):
                each_loss[lane] = zero
        sums[unit] = _loss_of_tile(each_loss, rows)
        if losses.size:
            losses[first : first + rows] = each_loss[:rows]


@compiled()
def loss_gradient_of_lanes(
    start: int,
    stop: int,
    p: Any,
    t: Any,
    weight: Any,
    ignore: int,
    ignoring: bool,
    keep: Any,
    spread: Any,
    upstream: Any,
    upstream_step: int,
    classes: int,
    inner: int,
    lanes: int,
    dp: Any,
) -> None:
    """``dp = -upstream q / p``."""
    flat, tile, q = flat_like(p, classes, lanes), tile_like(p, classes, lanes), tile_like(p, classes, lanes)
    factor, zero = np.zeros(lanes, tile.dtype), tile.dtype.type(0)
    for unit in range(start, stop):
        at, class_step, matrix, rows, first = place(unit, p.size, classes, inner, lanes)
        gather(p, at, class_step, matrix, rows, flat, tile)
        lane_targets(t, first, at, class_step, matrix, rows, weight, keep, spread, flat, q)
        _fill_upstream(upstream, upstream_step, first, rows, factor)
        for k in range(classes):
            row, target = tile[k], q[k]
            for lane in range(lanes):
                row[lane] = zero if target[lane] == zero else -factor[lane] * target[lane] / row[lane]
        _clear_ignored(t, first, rows, ignore, ignoring, tile)
        scatter(tile, at, class_step, matrix, rows, flat, dp)
