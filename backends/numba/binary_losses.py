"""Sigmoid and binary cross-entropy in one pass over pieces of flat arrays."""

import functools
import math
from typing import Any

import numpy as np

from plugrad.backends.cpu.binary_labels import count, largest_of_few
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import LIGHT, contiguous, copy_result, result_array
from plugrad.backends.numba.compiling import SUM, compiled, inlined
from plugrad.backends.numba.elementwise import ELEMENTS, SMALL, read_ahead, written_ahead
from plugrad.backends.numba.labels import NO_WEIGHT
from plugrad.backends.numba.memory import scratch, store
from plugrad.backends.numba.targets import total_of_blocks
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import exp, log1p_to_1, widen
from plugrad.backends.options import COMPUTE, FLOAT64, BinaryLossOptions

WORK = 2  # on one element, to that of softmax


def sigmoid_cross_entropy(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
    """``y = sigmoid(x)`` and ``loss = -t log(y) - (1 - t) log(1 - y)``."""
    _loss_and(False, x, t, options, loss, y)


def sigmoid_cross_entropy_value_and_grad(
    x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array
) -> None:
    """The same loss and ``dx = sigmoid(x) - t``."""
    _loss_and(True, x, t, options, loss, dx)


def _loss_and(is_gradient: bool, x: Array, t: Array, options: BinaryLossOptions, loss: Array, out: Array) -> None:
    compute = COMPUTE[x.dtype]
    labels, divisor = _labels(t, x, options)
    units = -(-x.size // ELEMENTS)
    is_each = options.reduction == "none"
    each = result_array(loss).reshape(-1) if is_each else NO_WEIGHT[compute]
    sums, y = np.empty(0 if is_each else units, FLOAT64), result_array(out)
    scale = compute.type(1 / divisor if divisor else 0)
    flat = contiguous(x).reshape(-1)
    share_work(_forward, units, WORK * ELEMENTS, is_gradient, scale, flat, *labels, each, sums, y.reshape(-1))
    copy_result(y, out)
    if is_each:
        copy_result(each, loss)
    else:
        loss[...] = total_of_blocks(sums) / divisor if divisor else 0


def sigmoid_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: BinaryLossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    compute = COMPUTE[y.dtype]
    labels, divisor = _labels(t, y, options)
    with np.errstate(all="ignore"):
        upstream = np.array(dloss, compute, order="C").reshape(-1) / compute.type(divisor or 1)
    result = result_array(dx)
    units, flat = -(-y.size // ELEMENTS), contiguous(y).reshape(-1)
    share_work(_backward, units, LIGHT * ELEMENTS, upstream, flat, *labels, result.reshape(-1))
    copy_result(result, dx)


def _labels(t: Array, x: Array, options: BinaryLossOptions) -> tuple[tuple[Any, ...], int]:
    """The labels and options as compiled functions take them, and the divisor."""
    compute = COMPUTE[x.dtype]
    divisor = count(t, options, _largest)
    ignored_label = options.ignored_label(t.dtype)
    if t.dtype not in (x.dtype, compute) and t.dtype.kind != "b":
        kind = np.int8 if t.dtype.kind in "iu" else compute
        t, ignored_label = (
            (t.astype(kind), None) if ignored_label is None else (np.where(t == ignored_label, -1, t).astype(kind), -1)
        )
    t = contiguous(t.view(np.int8) if t.dtype.kind == "b" else t)
    weights = (*_periodic(options.weight, x), *_periodic(options.pos_weight, x))
    numbers = _numbers(compute, ignored_label, options.label_smoothing)
    return (t.reshape(-1), *numbers, *weights), divisor if options.reduction == "mean" else 1


@functools.lru_cache(256)
def _numbers(compute: np.dtype[Any], ignored_label: float | None, label_smoothing: float) -> tuple[Any, Any, Any]:
    """The ignored label, and the shares of a label that it keeps and that each class gets."""
    real = compute.type
    ignore = real(math.nan if ignored_label is None else ignored_label)  # no label is equal to NaN
    return ignore, real(1 - label_smoothing), real(label_smoothing / 2)


def _largest(t: Array) -> int:
    """The largest number, of unsigned integers in C order."""
    if t.size <= SMALL:
        return largest_of_few(t)
    units = -(-t.size // ELEMENTS)
    found = np.empty(units, np.uint64)
    share_work(_largest_of_pieces, units, LIGHT * ELEMENTS, contiguous(t).reshape(-1), found)
    return int(found.max())


@compiled(in_pieces=True)
def _largest_of_pieces(start: int, stop: int, t: Any, found: Any) -> None:
    for piece in range(start, stop):
        part = read_ahead(t, piece)
        top = part.dtype.type(0)
        for j in range(part.size):
            top = max(top, part[j])
        found[piece] = top


def _periodic(weight: Array | None, x: Array) -> tuple[Array, int]:
    """Weights as a flat array and `inner`: that of element `i` is at ``i // inner``, modulo the size of the array."""
    if weight is None:
        return NO_WEIGHT[COMPUTE[x.dtype]], 1
    shape = (1,) * (x.ndim - weight.ndim) + weight.shape
    several = [axis for axis, length in enumerate(shape) if length > 1]
    if not several:
        return contiguous(weight).reshape(-1), 1
    first, end = several[0], several[-1] + 1
    if shape[first:end] != x.shape[first:end]:
        return np.broadcast_to(weight, x.shape).reshape(-1), 1
    return contiguous(weight).reshape(-1), math.prod(x.shape[end:])


@inlined()
def _factors(
    first: int, t: Any, keep: Any, spread: Any, weight: Any, inner: int, pos_weight: Any, pos_inner: int, a: Any, b: Any
) -> None:
    """Compute the factors of both logarithms, for the labels `t` that begin with element `first`."""
    real, one = a.dtype.type, a.dtype.type(1)
    for j in range(t.size):
        label = real(widen(t[j]))
        a[j] = keep * label + spread
        b[j] = keep * (one - label) + spread
    if pos_weight.size:
        _multiply(first, pos_weight, pos_inner, a[: t.size])
    if weight.size:
        _multiply(first, weight, inner, a[: t.size])
        _multiply(first, weight, inner, b[: t.size])


@inlined()
def _multiply(first: int, weight: Any, inner: int, values: Any) -> None:
    place, left = (first // inner) % weight.size, inner - first % inner
    for j in range(values.size):
        values[j] *= weight[place]
        left -= 1
        if left == 0:
            left = inner
            place += 1
            if place == weight.size:
                place = 0


@inlined(SUM)
def _sum(values: Any) -> float:
    total = 0.0
    for j in range(values.size):
        total += np.float64(values[j])
    return total


@compiled(in_pieces=True)
def _forward(
    start: int,
    stop: int,
    is_gradient: bool,
    scale: Any,
    x: Any,
    t: Any,
    ignore: Any,
    keep: Any,
    spread: Any,
    weight: Any,
    inner: int,
    pos_weight: Any,
    pos_inner: int,
    each: Any,
    sums: Any,
    y: Any,
) -> None:
    a, b, losses, values = scratch(x, ELEMENTS), scratch(x, ELEMENTS), scratch(x, ELEMENTS), scratch(x, ELEMENTS)
    real = a.dtype.type
    zero, one = real(0), real(1)
    is_weighted = weight.size + pos_weight.size > 0
    for piece in range(start, stop):
        first = piece * ELEMENTS
        logits, labels, result = read_ahead(x, piece), read_ahead(t, piece), written_ahead(y, piece)
        if is_weighted:
            _factors(first, labels, keep, spread, weight, inner, pos_weight, pos_inner, a, b)
        for j in range(logits.size):
            logit, label = widen(logits[j]), real(widen(labels[j]))
            positive = a[j] if is_weighted else keep * label + spread
            negative = b[j] if is_weighted else keep * (one - label) + spread
            size = abs(logit)
            e = exp(-size)
            larger = one / (one + e)
            smaller = e * larger
            is_negative = logit < zero
            probability = smaller if is_negative else larger
            factor = positive if is_negative else negative
            linear = zero if factor == zero else factor * size
            loss = (positive + negative) * log1p_to_1(e) + linear
            gradient = (negative * probability - positive * (larger if is_negative else smaller)) * scale
            counts = label != ignore
            losses[j] = loss if counts else zero
            values[j] = (gradient if counts else zero) if is_gradient else probability
        if sums.size:
            sums[piece] = _sum(losses[: logits.size])
        else:
            store(losses, one, each[first : first + ELEMENTS])
        store(values, one, result)


@compiled(in_pieces=True)
def _backward(
    start: int,
    stop: int,
    upstream: Any,
    y: Any,
    t: Any,
    ignore: Any,
    keep: Any,
    spread: Any,
    weight: Any,
    inner: int,
    pos_weight: Any,
    pos_inner: int,
    dx: Any,
) -> None:
    a, b, values = scratch(y, ELEMENTS), scratch(y, ELEMENTS), scratch(y, ELEMENTS)
    real = a.dtype.type
    zero, one = real(0), real(1)
    is_each, whole = upstream.size > 1, upstream[0]
    for piece in range(start, stop):
        first = piece * ELEMENTS
        probabilities, labels, result = read_ahead(y, piece), read_ahead(t, piece), written_ahead(dx, piece)
        _factors(first, labels, keep, spread, weight, inner, pos_weight, pos_inner, a, b)
        for j in range(probabilities.size):
            probability = widen(probabilities[j])
            slope = (b[j] * probability - a[j] * (one - probability)) * (upstream[first + j] if is_each else whole)
            values[j] = slope if real(widen(labels[j])) != ignore else zero
        store(values, one, result)
