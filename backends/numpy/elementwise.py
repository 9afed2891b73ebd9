"""Elementwise kernels: activations and their gradients."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from plugrad.backends import normal
from plugrad.backends.cpu import blocks
from plugrad.backends.cpu.blocks import Array, quietly, with_errors
from plugrad.backends.numpy.pool import FRESH, Scratch, may_hold_work, run_blocks
from plugrad.backends.options import (
    COMPUTE,
    FLOAT32,
    FLOAT64,
    GELU_A,
    GELU_B,
    PHILOX,
    DropoutOptions,
    GeluOptions,
    LeakyReluOptions,
)

# The work on one element, to that of softmax: to share so little of it among threads pays later.
LIGHT = 0.5
DROPOUT = 4
HEAVY = 32  # blocks so small that some dozens of arrays for each stay in the second-level cache

# Elements below which the maximum of an array and 0 takes less time than `ndarray.clip`.
FEW = 2**13

# A function takes an array sooner than a number, which it converts to one.
ZEROS = {dtype: np.zeros((), dtype) for dtype in (FLOAT32, FLOAT64)}

# bytes of a floating dtype -> the integers of that size, to move floating numbers as the bits they are
BITS: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}

# A number so large that LARGE / (1 + LARGE) is 1 in any dtype, which inf / inf is not.
LARGE = 1e30

# So far below 0 that x exp(x) is 0 in any dtype, which -inf * 0 is not.
LOW = -2000.0


Task: TypeAlias = Callable[..., None]


def _elementwise(work: float) -> Callable[[Task], Task]:
    """Make a kernel of a function of blocks, ``task(in_out, scratch, x, out)``.

    `work` is that on one element, to that of softmax. The task gets whether it may work in the memory of the result
    before it writes the result there, which it may not if it reads that array as an argument.
    """

    def decorate(task: Task) -> Task:
        def kernel(x: Array, out: Array) -> None:
            in_out = may_hold_work(out) and out is not x
            if out.size * work <= blocks.BLOCK:
                task(in_out, FRESH, x, out)
            else:
                run_blocks(functools.partial(task, in_out), (x, out), out.shape, work)

        return _named_as(task, kernel)

    return decorate


def _elementwise_backward(work: float) -> Callable[[Task], Task]:
    """Make a kernel of ``task(in_out, scratch, dy, y, out)``; see `_elementwise`."""

    def decorate(task: Task) -> Task:
        def kernel(dy: Array, y: Array, out: Array) -> None:
            in_out = may_hold_work(out) and out is not dy and out is not y
            if out.size * work <= blocks.BLOCK:
                task(in_out, FRESH, dy, y, out)
            else:
                run_blocks(functools.partial(task, in_out), (dy, y, out), out.shape, work)

        return _named_as(task, kernel)

    return decorate


def _elementwise_with_options(work: float) -> Callable[[Task], Task]:
    """Make a kernel of ``task(options, in_out, scratch, x, out)``; see `_elementwise`."""

    def decorate(task: Task) -> Task:
        def kernel(x: Array, options: Any, out: Array) -> None:
            in_out = may_hold_work(out) and out is not x
            run_blocks(functools.partial(task, options, in_out), (x, out), out.shape, work)

        return _named_as(task, kernel)

    return decorate


def _elementwise_backward_with_options(work: float) -> Callable[[Task], Task]:
    """Make a kernel of ``task(options, in_out, scratch, dy, x, out)``; see `_elementwise`."""

    def decorate(task: Task) -> Task:
        def kernel(dy: Array, x: Array, options: Any, out: Array) -> None:
            in_out = may_hold_work(out) and out is not dy and out is not x
            run_blocks(functools.partial(task, options, in_out), (dy, x, out), out.shape, work)

        return _named_as(task, kernel)

    return decorate


def _named_as(task: Task, kernel: Task) -> Task:
    """`kernel` under the name of `task`, in tracebacks as well."""
    kernel.__name__, kernel.__qualname__, kernel.__doc__ = task.__name__, task.__qualname__, task.__doc__
    kernel.__code__ = kernel.__code__.replace(co_name=task.__name__, co_qualname=task.__qualname__)
    return kernel


@_elementwise(LIGHT)
def relu(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    if x.itemsize == 2:
        _relu_16_bits(scratch, x, out)
    elif x.size < FEW:
        np.maximum(x, ZEROS[x.dtype], out=out)
    else:  # up to three times as fast as the maximum, but a microsecond slower to start
        x.clip(0, np.inf, out)


@quietly
def _relu_16_bits(scratch: Scratch, x: Array, out: Array) -> None:
    # NumPy compares 16-bit floats fast but computes with them slowly
    keep = np.less_equal(x, 0, out=scratch.array("keep", x.shape, np.bool))
    np.logical_not(keep, out=keep)
    np.multiply(x.view(np.int16), keep.view(np.int8), out=out.view(np.int16))  # `x` times 0 or 1, also if not finite


@_elementwise_backward(LIGHT)
def relu_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    place = None if scratch is FRESH else scratch.array("keep", y.shape, np.bool)
    keep = _positive_16_bits(y, 0, place) if y.itemsize == 2 else np.greater(y, ZEROS[y.dtype], place)
    bits = BITS[dy.itemsize]
    target, factors = out.view(bits), keep.view(np.int8)
    if in_out:
        np.copyto(target, factors)
        factors = target
    np.multiply(dy.view(bits), factors, target)  # `dy` times 0 or 1, also where it is not finite


_positive_16_bits = quietly(np.greater)  # of NaN it warns in these dtypes


@_elementwise(1)
@with_errors(all="ignore", over="raise", invalid="raise")
def sigmoid(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``, as ``exp(x) / (1 + exp(x))``."""
    compute = COMPUTE[x.dtype]
    e = scratch.array("e", x.shape, compute)
    total = out if in_out else scratch.array("total", x.shape, compute)
    try:
        np.exp(x, out=e, dtype=compute)
        np.divide(e, np.add(e, 1, out=total), out=out, casting="same_kind")
    except FloatingPointError:  # exp(x) overflowed or is infinite; it is raised when all of `e` is there
        e.clip(0, LARGE, e)
        np.divide(e, np.add(e, 1, out=total), out=out, casting="same_kind")


@_elementwise_backward(LIGHT)
@quietly
def sigmoid_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    """``out = dy * y * (1 - y)``."""
    compute = COMPUTE[y.dtype]
    work = out if in_out else scratch.array("slope", y.shape, compute)
    slope = np.subtract(1, y, out=work, dtype=compute)
    np.multiply(np.multiply(slope, y, out=slope), dy, out=out)


@_elementwise(1)
@quietly
def tanh(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = tanh(x)``."""
    np.tanh(x, out=out, dtype=COMPUTE[x.dtype], casting="same_kind")


@_elementwise_backward(LIGHT)
@quietly
def tanh_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    """``out = dy (1 - y) (1 + y)``."""
    compute = COMPUTE[y.dtype]
    slope = np.subtract(1, y, out=scratch.array("slope", y.shape, compute), dtype=compute)
    slope *= np.add(1, y, out=scratch.array("sum", y.shape, compute), dtype=compute)
    np.multiply(slope, dy, out=out, casting="same_kind")


@_elementwise_with_options(LIGHT)
@quietly
def leaky_relu(options: LeakyReluOptions, in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = x where x > 0, else negative_slope x``."""
    _leak(options, scratch, x, x, out)


@_elementwise_backward_with_options(LIGHT)
@quietly
def leaky_relu_backward(
    options: LeakyReluOptions, in_out: bool, scratch: Scratch, dy: Array, x: Array, out: Array
) -> None:
    """``out = dy where x > 0, else negative_slope dy``."""
    _leak(options, scratch, dy, x, out)


def _leak(options: LeakyReluOptions, scratch: Scratch, values: Array, x: Array, out: Array) -> None:
    compute = COMPUTE[x.dtype]
    keep = np.greater(x, 0, out=scratch.array("keep", x.shape, np.bool))
    scaled = np.multiply(
        values, compute.type(options.negative_slope), out=scratch.array("scaled", x.shape, compute), dtype=compute
    )
    np.copyto(scaled, values, where=keep)
    np.copyto(out, scaled, casting="same_kind")


@_elementwise(1)
@with_errors(all="ignore", over="raise", invalid="raise")
def silu(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = x / (1 + exp(-x))``."""
    compute = COMPUTE[x.dtype]
    e = scratch.array("e", x.shape, compute)
    try:
        np.exp(np.negative(x, out=e, dtype=compute), out=e)
        np.divide(x, np.add(e, 1, out=e), out=e)
    except FloatingPointError:  # exp(-x) overflowed or is infinite
        _silu_of_low(x, e)
    np.copyto(out, e, casting="same_kind")


@quietly
def _silu_of_low(x: Array, y: Array) -> None:
    """The same with the root of an exponential, which is not subnormal where the result is normal."""
    wide = np.maximum(x, LOW, dtype=FLOAT64)
    root = np.exp(-0.5 * np.abs(wide))
    np.divide(np.where(wide < 0, wide * root * root, wide), 1 + root * root, out=y, casting="same_kind")


@_elementwise_backward(HEAVY)
@quietly
def silu_backward(in_out: bool, scratch: Scratch, dy: Array, x: Array, out: Array) -> None:
    """``out = dy s (1 + x (1 - s))`` with ``s = 1 / (1 + exp(-x))``."""
    compute = COMPUTE[x.dtype]
    size = np.minimum(np.abs(x, dtype=compute), -LOW, dtype=compute)
    _multiply_slope(dy, x < 0, np.exp(-size), size, out)


def _multiply_slope(dy: Array, negative: Array, e: Array, steep: Array, out: Array) -> None:
    """``out = dy s (1 + steep (1 - s))``, ``s = 1 / (1 + e)``; where negative, of ``s = e / (1 + e)`` and `-steep`."""
    large = 1 / (1 + e)
    small = e * large
    slope = np.where(negative, small * (1 - steep * large), large * (1 + steep * small))
    np.multiply(slope, dy, out=out, casting="same_kind")


@_elementwise_with_options(HEAVY)
@quietly
def gelu(options: GeluOptions, in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    """``out = x Phi(x)``, or the approximation by the hyperbolic tangent, in float64."""
    wide, size, tail = _sizes(x)
    if options.approximate == "none":
        e, (g, g_low) = np.exp(-0.5 * size * size), _normal_tail(size, tail)
        y = np.where(wide < 0, -(e * (size * g + size * g_low)), wide * ((1 - e * g) - e * g_low))
    else:
        root = np.exp(-0.5 * size * (GELU_A + GELU_B * size * size))
        y = np.where(wide < 0, -(size * root * root), wide) / (1 + root * root)
    np.copyto(out, y, casting="same_kind")


@_elementwise_backward_with_options(HEAVY)
@quietly
def gelu_backward(options: GeluOptions, in_out: bool, scratch: Scratch, dy: Array, x: Array, out: Array) -> None:
    """``out = dy (Phi(x) + x phi(x))``, or the derivative of the approximation, in float64."""
    wide, size, tail = _sizes(x)
    if options.approximate == "none":
        g, _ = _normal_tail(size, tail)
        slope = np.exp(-0.5 * size * size) * (g - normal.INVERSE_ROOT * size)
        np.multiply(np.where(wide < 0, slope, 1 - slope), dy, out=out, casting="same_kind")
    else:
        square = size * size
        e = np.exp(-size * (GELU_A + GELU_B * square))
        _multiply_slope(dy, wide < 0, e, size * (GELU_A + 3 * GELU_B * square), out)


def _sizes(x: Array) -> tuple[Array, Array, normal.Tail]:
    """`x` and its bounded magnitudes in float64, and the polynomial that is accurate enough for its dtype."""
    tail = normal.DOUBLE if x.dtype == FLOAT64 else normal.SINGLE
    wide = x.astype(FLOAT64)
    return wide, np.minimum(np.abs(wide), tail.end), tail


def _normal_tail(size: Array, tail: normal.Tail) -> tuple[Array, Array | float]:
    """``G(size)`` of `plugrad.backends.normal`, in two parts if it is to be accurate to the last places of float64."""
    total = size + normal.SHIFT
    r = 1 / total
    u = 1 - 2 * normal.SHIFT * r
    if tail is normal.SINGLE:
        return _polynomial(tail.coefficients, u) * r, 0.0
    back = total - size
    lost = (size - (total - back)) + (normal.SHIFT - back)
    r_low = -r * (_product_error(total, r, 1.0) + lost * r)
    u -= 2 * normal.SHIFT * r_low
    p = _polynomial(tail.coefficients[:-1], u) * u
    top = tail.coefficients[-1] + p
    g = top * r
    return g, _product_error(top, r, g) + top * r_low + ((tail.coefficients[-1] - top) + p) * r


def _polynomial(coefficients: tuple[float, ...], u: Array) -> Array:
    p = np.full_like(u, coefficients[0])
    for coefficient in coefficients[1:]:
        p *= u
        p += coefficient
    return p


def _product_error(x: Array, y: Array, p: Array | float) -> Any:
    """``x y - p`` for a number `p` next to the product, by Dekker's and Veltkamp's splitting."""
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    return ((x_high * y_high - p) + (x_high * y_low + x_low * y_high)) + x_low * y_low


def _halves(x: Array) -> tuple[Array, Array]:
    scaled = (2.0**27 + 1) * x
    high = scaled - (scaled - x)
    return high, x - high


def dropout(x: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor x`` where the random word is at least the threshold, else 0."""
    key = int(options.seed)
    run_blocks(functools.partial(_drop, options, key), (x, out), out.shape, DROPOUT, with_position=True)


def dropout_backward(dy: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor dy`` where `dropout` keeps the element, else 0."""
    dropout(dy, options, out)


@quietly
def _drop(options: DropoutOptions, key: int, scratch: Scratch, x: Array, out: Array, position: int) -> None:
    keep = (_words(key, position, x.size) >= options.threshold).reshape(x.shape)
    compute = COMPUTE[x.dtype]
    scaled = np.multiply(x, compute.type(options.factor), dtype=compute)
    np.copyto(out, np.where(keep, scaled, compute.type(0)), casting="same_kind")


def _words(key: int, position: int, count: int) -> Array:
    """The random words of so many elements from a position on: see `DropoutOptions`."""
    first, last = position // 4, -(-(position + count) // 4)
    half, low = np.uint64(32), np.uint64(2**32 - 1)
    counters = np.arange(first, last, dtype=np.uint64)
    a, b = counters & low, counters >> half
    c = d = np.zeros_like(counters)
    (m0, m1), (w0, w1) = map(np.uint64, PHILOX.multipliers), PHILOX.increments
    for i in range(PHILOX.rounds):
        k0, k1 = np.uint64((key + i * w0) % 2**32), np.uint64(((key >> 32) + i * w1) % 2**32)
        p, q = m0 * a, m1 * c
        a, b, c, d = (q >> half) ^ b ^ k0, q & low, (p >> half) ^ d ^ k1, p & low
    return np.stack([a, b, c, d], axis=1).reshape(-1)[position - 4 * first :][:count]
