"""A backend for plugrad in terms of the array API standard.

Every kernel computes its formula in float64 and rounds the results to the dtype of the output. A result may be written
to the memory of an argument, so a kernel computes all results before it writes the first.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import array_api_compat
import numpy as np
from array_api_compat import array_namespace

from plugrad.backends.chunks import Layer, Results, functions
from plugrad.backends.normal import INVERSE_ROOT
from plugrad.backends.options import (
    GELU_A,
    GELU_B,
    PHILOX,
    BinaryLossOptions,
    DropoutOptions,
    GeluOptions,
    LeakyReluOptions,
    LossOptions,
    bad_label,
    bad_probability,
)
from plugrad.backends.workspace import Workspace
from plugrad.kernels import KERNELS

Array: TypeAlias = Any

FAR = -2000.0  # so far below 0 that x exp(x) is 0, which -inf * 0 is not

# NaN and infinities are valid results. The standard has no warnings; NumPy does.
silently = np.errstate(all="ignore")


def describe() -> Mapping[str, str]:
    """Return the properties that ``python -m plugrad.backends arrayapi`` prints."""
    return {"version": f"array-api-compat {array_api_compat.__version__}", "devices": "CPU"}


@silently
def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    xp, x = _in_float64(x)
    _write(out, xp.where(x < 0, 0.0, x))


@silently
def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    xp, dy, y = _in_float64(dy, y)
    _write(out, xp.where(y > 0, dy, 0.0))


@silently
def leaky_relu(x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = x where x > 0, else negative_slope x``."""
    xp, x = _in_float64(x)
    _write(out, xp.where(x > 0, x, options.negative_slope * x))


@silently
def leaky_relu_backward(dy: Array, x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = dy where x > 0, else negative_slope dy``."""
    xp, dy, x = _in_float64(dy, x)
    _write(out, xp.where(x > 0, dy, options.negative_slope * dy))


@silently
def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``, with an exponential that cannot overflow."""
    xp, x = _in_float64(x)
    e = xp.exp(-xp.abs(x))
    _write(out, xp.where(x < 0, e, 1.0) / (1 + e))


@silently
def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy y (1 - y)``."""
    _, dy, y = _in_float64(dy, y)
    _write(out, dy * y * (1 - y))


@silently
def tanh(x: Array, out: Array) -> None:
    """``out = tanh(x)``."""
    xp, x = _in_float64(x)
    _write(out, xp.tanh(x))


@silently
def tanh_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy (1 - y^2)``, without the square of a number that may be close to 1."""
    _, dy, y = _in_float64(dy, y)
    _write(out, dy * ((1 - y) * (1 + y)))


@silently
def silu(x: Array, out: Array) -> None:
    """``out = x / (1 + exp(-x))``, with the root of an exponential, which is normal where the result is."""
    xp, x = _in_float64(x)
    x = xp.where(x < FAR, FAR, x)
    root = xp.exp(-xp.abs(x) / 2)
    _write(out, xp.where(x < 0, x * root * root, x) / (1 + root * root))


@silently
def silu_backward(dy: Array, x: Array, out: Array) -> None:
    """``out = dy s (1 + x (1 - s))`` with ``s = 1 / (1 + exp(-x))``."""
    xp, dy, x = _in_float64(dy, x)
    size = xp.where(xp.abs(x) > -FAR, -FAR, xp.abs(x))
    _write(out, dy * _slope(xp, x < 0, xp.exp(-size), size))


@silently
def dropout(x: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor x`` where the random word is at least the threshold, else 0."""
    xp, x = _in_float64(x)
    words = xp.reshape(_words(xp, int(options.seed), math.prod(x.shape)), x.shape)
    _write(out, xp.where(words >= options.threshold, options.factor * x, 0.0))


def dropout_backward(dy: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor dy`` where `dropout` keeps the element, else 0."""
    dropout(dy, options, out)


def _words(xp: Any, key: int, count: int) -> Array:
    """The first words of Philox4x32-10."""
    block = xp.arange(-(-count // 4), dtype=xp.uint64)
    low, half = xp.asarray(2**32 - 1, dtype=xp.uint64), xp.asarray(32, dtype=xp.uint64)
    a, b, c, d = block & low, block >> half, xp.zeros_like(block), xp.zeros_like(block)
    m0, m1 = (xp.asarray(multiplier, dtype=xp.uint64) for multiplier in PHILOX.multipliers)
    for i in range(PHILOX.rounds):
        k0, k1 = (
            xp.asarray((part + i * increment) % 2**32, dtype=xp.uint64)
            for part, increment in zip((key, key >> 32), PHILOX.increments, strict=True)
        )
        p, q = m0 * a, m1 * c
        a, b, c, d = (q >> half) ^ b ^ k0, q & low, (p >> half) ^ d ^ k1, p & low
    return xp.reshape(xp.stack([a, b, c, d], axis=1), (-1,))[:count]


def _slope(xp: Any, negative: Array, e: Array, steep: Array) -> Array:
    """``s (1 + steep (1 - s))`` with ``s = 1 / (1 + e)``; where negative, of ``s = e / (1 + e)`` and `-steep`."""
    large, small = 1 / (1 + e), e / (1 + e)
    return xp.where(negative, small * (1 - steep * large), large * (1 + steep * small))


@silently
def gelu(x: Array, options: GeluOptions, out: Array) -> None:
    """``out = x Phi(x)``, or the approximation by the hyperbolic tangent.

    The standard has no error function. That of Python's library takes one number at a time.
    """
    xp, x = _in_float64(x)
    if options.approximate == "none":
        bounded = xp.where(x < FAR, FAR, x)
        _write(out, xp.where(bounded == FAR, -0.0, bounded * _normal(xp, x)))
        return
    size = xp.where(xp.abs(x) > -FAR, -FAR, xp.abs(x))
    root = xp.exp(-size * (GELU_A + GELU_B * size * size) / 2)
    _write(out, xp.where(x < 0, -size * root * root, x) / (1 + root * root))


@silently
def gelu_backward(dy: Array, x: Array, options: GeluOptions, out: Array) -> None:
    """``out = dy (Phi(x) + x phi(x))``, or the derivative of the approximation."""
    xp, dy, x = _in_float64(dy, x)
    size = xp.where(xp.abs(x) > -FAR, -FAR, xp.abs(x))
    if options.approximate == "none":
        bounded = xp.where(x < 0, -size, size)
        _write(out, dy * (_normal(xp, x) + bounded * INVERSE_ROOT * xp.exp(-size * size / 2)))
        return
    e = xp.exp(-size * (GELU_A + GELU_B * size * size))
    _write(out, dy * _slope(xp, x < 0, e, size * (GELU_A + 3 * GELU_B * size * size)))


def _normal(xp: Any, x: Array) -> Array:
    """The normal distribution, ``erfc(-x / sqrt(2)) / 2``, of each number."""
    flat = xp.reshape(x, (-1,))
    values = [math.erfc(-float(flat[i]) / math.sqrt(2)) / 2 for i in range(flat.shape[0])]
    return xp.reshape(xp.asarray(values, dtype=xp.float64), x.shape)


@silently
def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    y, _, _ = _softmax(x, axis)
    _write(out, y)


@silently
def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y (dy - sum(dy y))``."""
    xp, dy, y = _in_float64(dy, y)
    _write(out, y * (dy - xp.sum(dy * y, axis=axis, keepdims=True)))


@silently
def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    _, log_y, _ = _softmax(x, axis)
    _write(out, log_y)


@silently
def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) sum(dy)``."""
    xp, dy, y = _in_float64(dy, y)
    _write(out, dy - xp.exp(y) * xp.sum(dy, axis=axis, keepdims=True))


def _softmax(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """``y = softmax(x)``, ``log(y)`` and ``1 - y``, each of them accurate however small it is.

    The largest exponential is 1. In a confident row it would swallow the others, which are summed without it.
    """
    xp, x = _in_float64(x)
    top = xp.max(x, axis=axis, keepdims=True)
    is_top = _class_numbers(x, axis) == xp.argmax(x, axis=axis, keepdims=True)
    z = x - top
    e = xp.exp(z)
    # Between float64 logits z is rounded. Knuth's TwoSum gives the error, and exp(z + error) is about e (1 + error).
    back = z - x
    error = (x - (z - back)) - (top + back)
    e = xp.where(e > 0, e + e * error, e)
    rest = xp.sum(xp.where(is_top, z, e), axis=axis, keepdims=True)  # z of the largest is 0, or NaN if it is infinite
    y = e / (1 + rest)
    return y, z - xp.log1p(rest), xp.where(is_top, rest / (1 + rest), 1 - y)


@silently
def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    xp, x, w = _in_float64(x, w)
    y = xp.matmul(x, w)
    _write(out, y if b is None else y + xp.astype(b, xp.float64))


@silently
def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for what is not wanted."""
    xp, dy, x, w = _in_float64(dy, x, w)
    dys = xp.reshape(dy, (-1, dy.shape[-1]))
    results = []
    if dx is not None:
        results.append((dx, xp.matmul(dy, w.T)))
    if dw is not None:
        results.append((dw, xp.matmul(xp.reshape(x, (-1, x.shape[-1])).T, dys)))
    if db is not None:
        results.append((db, xp.sum(dys, axis=0)))
    for out, gradient in results:
        _write(out, gradient)


@silently
def cross_entropy(p: Array, t: Array, options: LossOptions, loss: Array) -> None:
    """``loss = -sum(q log(p))``."""
    q = _targets(t, p, options)
    xp, p = _in_float64(p)
    _check_probabilities(p, q, options)
    _write(loss, _loss(q, xp.log(p), options))


@silently
def cross_entropy_backward(dloss: Any, p: Array, t: Array, options: LossOptions, dp: Array) -> None:
    """``dp = -dloss q / p``."""
    q = _targets(t, p, options)
    xp, p = _in_float64(p)
    _check_probabilities(p, q, options)
    _write(dp, xp.where(q == 0, 0.0, -_upstream(dloss, q, options) * q / p))


@silently
def softmax_cross_entropy(x: Array, t: Array, options: LossOptions, loss: Array, y: Array) -> None:
    """``y = softmax(x)``, ``loss = -sum(q log(y))``."""
    q = _targets(t, x, options)
    probabilities, logs, _ = _softmax(x, options.axis)
    losses = _loss(q, logs, options)
    if options.z_loss:
        losses = losses + _reduced(_z_loss(t, x, options)[0], options)
    _write(loss, losses)
    _write(y, probabilities)


@silently
def softmax_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: LossOptions, dx: Array) -> None:
    """``dx = dloss (y sum(q) - q)``."""
    q = _targets(t, y, options)
    xp, y = _in_float64(y)
    slope = y * xp.sum(q, axis=options.axis, keepdims=True) - q
    _write(dx, _where_rows_count(q, _upstream(dloss, q, options) * slope, options))


@silently
def softmax_cross_entropy_value_and_grad(x: Array, t: Array, options: LossOptions, loss: Array, dx: Array) -> None:
    """``loss = -sum(q log(y))``, ``dx = y sum(q) - q`` with ``y = softmax(x)``."""
    q = _targets(t, x, options)
    xp = array_namespace(q)
    y, logs, others = _softmax(x, options.axis)
    # The same as y sum(q) - q, without the difference of like numbers where y is close to 1.
    slope = y * (xp.sum(q, axis=options.axis, keepdims=True) - q) - q * others
    losses, slope = _loss(q, logs, options), _where_rows_count(q, slope, options)
    if options.z_loss:
        each, share = _z_loss(t, x, options)
        share = xp.expand_dims(share, axis=options.axis)
        losses, slope = losses + _reduced(each, options), slope + xp.where(share == 0, 0.0, share * y)
    _write(loss, losses)
    _write(dx, slope)


@silently
def top_k_accuracy(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
    """``accuracy``: the share of the rows whose label has fewer than `k` logits before it."""
    xp, x = _in_float64(x)
    axis, numbers = options.axis, _class_numbers(x, options.axis)
    counts = _check(t, x.shape[axis], options)
    number = xp.expand_dims(xp.where(counts, xp.astype(t, xp.int64), 0), axis=axis)
    label = xp.sum(xp.where(numbers == number, x, 0.0), axis=axis, keepdims=True)
    is_before = (x > label) | ((x == label) & (numbers < number))
    rank = xp.sum(xp.astype(is_before, xp.int64), axis=axis)
    right = counts & (rank < k) & ~xp.any(xp.isnan(x), axis=axis)
    counted = float(xp.sum(xp.astype(counts, xp.float64)))
    accuracy[...] = xp.sum(xp.astype(right, xp.float64)) / (counted or 1.0)


@silently
def sigmoid_cross_entropy(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
    """``y = sigmoid(x)`` and ``loss = -t log(y) - (1 - t) log(1 - y)``."""
    losses, _, probabilities = _of_elements(x, t, options)
    _write(loss, losses)
    _write(y, probabilities)


@silently
def sigmoid_cross_entropy_value_and_grad(
    x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array
) -> None:
    """The same loss, and ``dx = y - t``."""
    losses, slopes, _ = _of_elements(x, t, options)
    _write(loss, losses)
    _write(dx, slopes)


@silently
def sigmoid_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: BinaryLossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    xp, y = _in_float64(y)
    positive, negative, counts, divisor = _factors(t, options)
    slope = (negative * y - positive * (1 - y)) * xp.asarray(dloss, dtype=xp.float64)
    _write(dx, xp.where(counts, slope / divisor, 0.0))


def _of_elements(x: Array, t: Array, options: BinaryLossOptions) -> tuple[Array, Array, Array]:
    """The loss of each element or of all of them, its gradient, and the probabilities.

    Of a probability and its complement, the smaller one is ``exp(-abs(x))`` times the larger one.
    """
    xp, x = _in_float64(x)
    positive, negative, counts, divisor = _factors(t, options)
    e = xp.exp(-xp.abs(x))
    larger, is_negative = 1 / (1 + e), x < 0
    y, rest = xp.where(is_negative, e * larger, larger), xp.where(is_negative, larger, e * larger)
    factor = xp.where(is_negative, positive, negative)
    losses = (positive + negative) * xp.log1p(e) + xp.where(factor == 0, 0.0, factor * xp.abs(x))
    losses = xp.where(counts, losses, 0.0)
    if options.reduction != "none":
        losses = xp.sum(losses) / divisor
    return losses, xp.where(counts, (negative * y - positive * rest) / divisor, 0.0), y


def _factors(t: Array, options: BinaryLossOptions) -> tuple[Array, Array, Array, float]:
    """The factors of both logarithms, the mask of the elements that count, and the divisor of the mean."""
    xp, labels = _in_float64(t)
    ignored = options.ignored_label(t.dtype)
    counts = xp.ones(t.shape, dtype=xp.bool) if ignored is None else t != ignored
    wrong = counts & ~((labels >= 0) & (labels <= 1))
    if xp.any(wrong):
        first = tuple(int(i[0]) for i in xp.nonzero(wrong)) if t.ndim else ()
        raise options.bad_label(t[first].item(), first)
    positive = (1 - options.label_smoothing) * labels + options.label_smoothing / 2
    negative = (1 - options.label_smoothing) * (1 - labels) + options.label_smoothing / 2
    if options.pos_weight is not None:
        positive = positive * xp.astype(options.pos_weight, xp.float64)
    if options.weight is not None:
        weight = xp.astype(options.weight, xp.float64)
        positive, negative = positive * weight, negative * weight
    counted = float(xp.sum(xp.astype(counts, xp.float64))) if options.reduction == "mean" else 1.0
    return positive, negative, counts, counted or 1.0  # where nothing counts, all is 0 anyway


@silently
def _in_chunks(layer: Layer, options: LossOptions, workspace: Workspace, results: Results) -> None:
    """Compute a layer with its loss and gradients, in chunks of as many rows as fit into the workspace."""
    x, w, b, t = layer
    xp, rows, w = _in_float64(x, w)
    inputs, classes = w.shape
    if layer.is_index:
        _check(t, classes, options)
    at_once = _rows_at_once(options.kernel, classes, workspace)
    rows, t = xp.reshape(rows, (-1, inputs)), xp.reshape(t, (-1,) if layer.is_index else (-1, classes))
    if options.sample_weight is not None:
        options = options._replace(sample_weight=xp.reshape(options.sample_weight, (-1,)))
    options = options._replace(axis=1)
    logits = xp.broadcast_to(xp.zeros((1, 1), dtype=xp.float64), (rows.shape[0], classes))
    options = options._replace(divisor=_divisors(t, logits, options))
    losses, slopes = [], []
    sums = [xp.zeros(shape, dtype=xp.float64) for shape in (w.shape, (classes,))]
    for start in range(0, rows.shape[0], at_once):
        chunk = slice(start, start + at_once)
        part, labels = rows[chunk, ...], t[chunk, ...]
        z = xp.matmul(part, w) if b is None else xp.matmul(part, w) + xp.astype(b, xp.float64)
        losses.append(xp.zeros(part.shape[:1] if options.reduction == "none" else (1,), dtype=xp.float64))
        target = losses[-1] if options.reduction == "none" else losses[-1][0, ...]
        u = xp.zeros_like(z) if options.softcap is None else xp.tanh(z / options.softcap)
        z = z if options.softcap is None else options.softcap * u
        of_chunk = None if options.sample_weight is None else options.sample_weight[chunk]
        softmax_cross_entropy_value_and_grad(z, labels, options._replace(sample_weight=of_chunk), target, z)
        counts = xp.any(z != 0, axis=1, keepdims=True)
        z = xp.where(counts, z * (1 - u) * (1 + u), 0.0)
        part = xp.where(counts, part, 0.0)  # 0 * inf is NaN
        sums[0] += xp.matmul(part.T, z)
        sums[1] += xp.sum(z, axis=0)
        slopes.append(xp.where(counts, xp.matmul(z, w.T), 0.0))
    each = xp.concat(losses)
    loss = each if options.reduction == "none" else xp.sum(each)
    for out, values in zip(results, (loss, xp.concat(slopes), *sums), strict=True):
        if out is not None:
            _write(out, xp.reshape(values, out.shape))


linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(_in_chunks)


@silently
def linear_top_k(
    x: Array, w: Array, b: Array | None, k: int, workspace: Workspace, values: Array, indices: Array
) -> None:
    """The `k` largest logits ``x w + b`` of each row, and their classes."""
    xp, rows, w = _in_float64(x, w)
    inputs, classes = w.shape
    at_once = _rows_at_once("linear_top_k", classes, workspace)
    rows = xp.reshape(rows, (-1, inputs)) if inputs else xp.zeros((math.prod(x.shape[:-1]), 0), dtype=xp.float64)
    largest, numbers = [], []
    for start in range(0, rows.shape[0], at_once):
        z = xp.matmul(rows[start : start + at_once, ...], w)
        z = z if b is None else z + xp.astype(b, xp.float64)
        order = xp.argsort(-z, axis=1, stable=True)
        # A stable sort by another key: NaN before all numbers, which the standard leaves undefined.
        is_number = xp.take_along_axis(~xp.isnan(z), order, axis=1)
        order = xp.take_along_axis(order, xp.argsort(xp.astype(is_number, xp.int8), axis=1, stable=True), axis=1)
        numbers.append(order[:, :k])
        largest.append(xp.take_along_axis(z, order[:, :k], axis=1))
    _write(values, xp.reshape(xp.concat(largest), values.shape))
    _write(indices, xp.reshape(xp.concat(numbers), indices.shape))


def _rows_at_once(kernel: str, classes: int, workspace: Workspace) -> int:
    """The number of rows whose logits, in float64, fit into the workspace."""
    a_row = 8 * classes  # bytes
    if workspace.size < a_row:
        raise ValueError(
            f"{kernel}: max_workspace: expected at least {a_row} bytes, for one row of {classes} classes, "
            f"got {workspace.size}"
        )
    return workspace.size // a_row


def _targets(t: Array, rows: Array, options: LossOptions) -> Array:
    """The targets: labels smoothed, weighted, and divided by the divisor of the mean.

    They are 0 in rows that do not count, and everywhere if no row counts.
    """
    xp = array_namespace(rows)
    numbers = _class_numbers(rows, options.axis)
    classes = numbers.size
    weight = xp.ones(numbers.shape, dtype=xp.float64)
    if options.weight is not None:
        weight = xp.reshape(xp.astype(options.weight, xp.float64), numbers.shape)
    of_rows = xp.expand_dims(_of_rows(t, rows, options), axis=options.axis)
    if t.ndim == rows.ndim:
        labels = xp.astype(t, xp.float64)
    else:
        is_label = (of_rows != 0) & (xp.expand_dims(xp.astype(t, xp.int64), axis=options.axis) == numbers)
        labels = xp.astype(is_label, xp.float64)
    if options.reduction == "mean":
        divisor = _divisors(t, rows, options)[0]
        weight = weight / divisor if divisor else xp.zeros_like(weight)
    smoothing = options.label_smoothing
    return xp.where(of_rows == 0, 0.0, of_rows * weight * ((1 - smoothing) * labels + smoothing / classes))


def _of_rows(t: Array, rows: Array, options: LossOptions) -> Array:
    """The weight of each row, 0 for rows that do not count."""
    xp = array_namespace(rows)
    shape = rows.shape[: options.axis] + rows.shape[options.axis + 1 :]
    weight = xp.ones(shape, dtype=xp.float64)
    if options.sample_weight is not None:
        weight = xp.astype(options.sample_weight, xp.float64)
    return weight if t.ndim == rows.ndim else xp.where(_check(t, rows.shape[options.axis], options), weight, 0.0)


def _z_loss(t: Array, rows: Array, options: LossOptions) -> tuple[Array, Array]:
    """The z loss of each row, and what its probabilities are multiplied by in the gradient, divided if it is a mean."""
    xp, x = _in_float64(rows)
    top = xp.max(x, axis=options.axis)
    z = top + xp.log(xp.sum(xp.exp(x - xp.expand_dims(top, axis=options.axis)), axis=options.axis))
    of_rows, divisor = _of_rows(t, rows, options), 1.0
    if options.reduction == "mean":
        divisor = _divisors(t, rows, options)[1]
    share = xp.where(of_rows == 0, 0.0, options.z_loss * of_rows * z) / (divisor or math.inf)
    return xp.where(of_rows == 0, 0.0, share * z), 2 * share


def _check(t: Array, classes: int, options: LossOptions) -> Array:
    """Return the mask of the class indices that count; raise an error if one of them is out of range."""
    xp = array_namespace(t)
    counts = xp.ones(t.shape, dtype=xp.bool) if options.ignore_index is None else t != options.ignore_index
    wrong = counts & ((t < 0) | (t >= classes))
    if xp.any(wrong):
        first = tuple(int(i[0]) for i in xp.nonzero(wrong)) if t.ndim else ()
        raise bad_label(int(t[first]), first, classes, options)
    return counts


def _check_probabilities(p: Array, q: Array, options: LossOptions) -> None:
    """Raise an error if a number that a target selects is no probability."""
    xp = array_namespace(p)
    wrong = xp.moveaxis((q != 0) & ((p < 0) | (p > 1.001)), options.axis, -1)
    if xp.any(wrong):
        first = tuple(int(i[0]) for i in xp.nonzero(wrong))
        raise bad_probability(float(xp.moveaxis(p, options.axis, -1)[first]), first[:-1], options)


def _divisors(t: Array, rows: Array, options: LossOptions) -> tuple[float, float]:
    """The divisors of the mean, and of its z loss."""
    if options.divisor is not None:  # of all rows, if `rows` is a chunk
        divisors: tuple[float, float] = options.divisor
        return divisors
    xp, of_rows = array_namespace(rows), _of_rows(t, rows, options)
    total = float(xp.sum(of_rows))
    if t.ndim == rows.ndim or options.weight is None:
        return total, total
    label = xp.reshape(xp.where(of_rows == 0, 0, xp.astype(t, xp.int64)), (-1,))
    weight = xp.reshape(xp.take(xp.astype(options.weight, xp.float64), label), of_rows.shape)
    return float(xp.sum(xp.where(of_rows == 0, 0.0, of_rows * weight))), total


def _loss(q: Array, logs: Array, options: LossOptions) -> Array:
    """The loss of each row, or the sum of the losses; a target of 0 adds 0 even to an infinite logarithm."""
    xp = array_namespace(q)
    terms = xp.where(q == 0, 0.0, q * logs)
    return 0 - xp.sum(terms, axis=options.axis if options.reduction == "none" else None)


def _reduced(losses: Array, options: LossOptions) -> Array:
    return losses if options.reduction == "none" else array_namespace(losses).sum(losses)


def _upstream(dloss: Any, q: Array, options: LossOptions) -> Array:
    """The upstream gradient, shaped to multiply rows; the targets `q` include the divisor of the mean."""
    xp = array_namespace(q)
    dloss = xp.asarray(dloss, dtype=xp.float64)
    return xp.expand_dims(dloss, axis=options.axis) if options.reduction == "none" else dloss


def _where_rows_count(q: Array, gradient: Array, options: LossOptions) -> Array:
    """The gradient in rows with a target, and zeros in other rows, even if those hold NaN."""
    xp = array_namespace(q)
    return xp.where(xp.any(q != 0, axis=options.axis, keepdims=True), gradient, 0.0)


def _in_float64(*arrays: Array) -> tuple[Any, ...]:
    """The namespace of the arrays, and the arrays in float64."""
    xp = array_namespace(*arrays)
    return xp, *(xp.astype(array, xp.float64, copy=False) for array in arrays)


def _class_numbers(rows: Array, axis: int) -> Array:
    """The numbers 0, 1, 2, ... along the axis of the classes, in a shape that broadcasts against the rows."""
    xp = array_namespace(rows)
    return xp.reshape(xp.arange(rows.shape[axis]), tuple(-1 if i == axis else 1 for i in range(rows.ndim)))


def _write(out: Array, values: Array) -> None:
    """Round results to the dtype of `out`, which may have any strides."""
    out[...] = array_namespace(out).astype(values, out.dtype)


# Kernels without a function above are computed by numpy, on the same arrays.
STAND_INS = {name: "numpy" for name in KERNELS if name not in globals()}
