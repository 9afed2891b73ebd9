"""Elementwise kernels, each with its compiled loop, over pieces of flat arrays.

A loop that writes directly to the result takes all pieces at once, unless it fetches pieces ahead. Else a piece is
computed in scratch memory, and then stored.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.normal import INVERSE_ROOT
from plugrad.backends.numba.arrays import LIGHT, contiguous, copy_result, result_array
from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.memory import destination, fetch, fetch_to_write, is_direct, part_of, scratch, store
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import (
    SMALL_TANH,
    exp,
    exp_scaling,
    gauss,
    muladd,
    normal_tail,
    product_error,
    scaled_exp,
    small_tanh,
    tail_end,
    widen,
)
from plugrad.backends.options import GELU_A, GELU_B, PHILOX, DropoutOptions, GeluOptions, LeakyReluOptions

ELEMENTS = 512  # in a piece: 2 KiB of float32, a dozen of which stay in the first-level cache

# Loops without an exponential wait for memory, and fetch the piece that is so many pieces ahead. Relu of 4096x1024
# takes 0.8 of the time on a Xeon with two threads; the sigmoid, which computes meanwhile, would take longer.
AHEAD = 2

# Arrays of at most so many elements go to compiled code as they are, if it can read them: Python would take longer to
# prepare them than the loop takes. Pieces past the end are empty.
PIECES_OF_SMALL = 32
SMALL = PIECES_OF_SMALL * ELEMENTS


def _of_one(loop: Callable[..., None], work: float, x: Array, out: Array, *numbers: Any) -> None:
    """Run a compiled loop on an argument, the result and numbers; `work` to that of softmax."""
    if not (x.flags.carray and out.flags.carray and out.itemsize > 2):
        _over_elements(loop, work, (x, out), numbers)
    elif out.size <= SMALL:
        loop(0, PIECES_OF_SMALL, x.ravel(), out.ravel(), *numbers)
    else:
        share_work(loop, -(-out.size // ELEMENTS), work * ELEMENTS, x.ravel(), out.ravel(), *numbers)


def _of_two(loop: Callable[..., None], work: float, dy: Array, y: Array, out: Array, *numbers: Any) -> None:
    """The same on two arguments, the result and numbers."""
    if not (dy.flags.carray and y.flags.carray and out.flags.carray and out.itemsize > 2):
        _over_elements(loop, work, (dy, y, out), numbers)
    elif out.size <= SMALL:
        loop(0, PIECES_OF_SMALL, dy.ravel(), y.ravel(), out.ravel(), *numbers)
    else:
        share_work(loop, -(-out.size // ELEMENTS), work * ELEMENTS, dy.ravel(), y.ravel(), out.ravel(), *numbers)


def _over_elements(loop: Callable[..., None], work: float, arrays: tuple[Array, ...], numbers: tuple[Any, ...]) -> None:
    """The same on arrays of any size, layout and dtype, the last one for the result."""
    out = arrays[-1]
    y = result_array(out)
    flat = [contiguous(array).reshape(-1) for array in arrays[:-1]]
    share_work(loop, -(-out.size // ELEMENTS), work * ELEMENTS, *flat, y.reshape(-1), *numbers)
    copy_result(y, out)


@inlined()
def _piece(x: Any, piece: int, step: int) -> Any:
    """The elements of `step` pieces, from piece `piece` on."""
    return x[piece * ELEMENTS : (piece + step) * ELEMENTS]


@inlined()
def _pieces(start: int, stop: int, y: Any) -> Any:
    """The numbers of the pieces that are not empty."""
    return range(start, min(stop, -(-y.size // ELEMENTS)))


@inlined()
def read_ahead(x: Any, piece: int) -> Any:
    """The elements of a piece, while one ahead is fetched."""
    fetch(x, (piece + AHEAD) * ELEMENTS, (piece + AHEAD + 1) * ELEMENTS)
    return part_of(x, piece * ELEMENTS, min((piece + 1) * ELEMENTS, x.size))


@inlined()
def written_ahead(y: Any, piece: int) -> Any:
    """The same of the result."""
    fetch_to_write(y, (piece + AHEAD) * ELEMENTS, (piece + AHEAD + 1) * ELEMENTS)
    return part_of(y, piece * ELEMENTS, min((piece + 1) * ELEMENTS, y.size))


@inlined()
def _finish(values: Any, direct: bool, result: Any) -> None:
    """Store what was computed in scratch memory."""
    if not direct:
        store(values, values.dtype.type(1), result)


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    _of_one(_relu, LIGHT, x, out)


@compiled(in_pieces=True)
def _relu(start: int, stop: int, x: Any, y: Any) -> None:
    direct = is_direct(x, y)
    values = scratch(x, ELEMENTS)
    zero = values.dtype.type(0)
    for piece in _pieces(start, stop, y):
        a, result = read_ahead(x, piece), written_ahead(y, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            b[j] = zero if number <= zero else number  # so written, NaN stays
        _finish(b, direct, result)


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    _of_two(_relu_backward, LIGHT, dy, y, out)


@compiled(in_pieces=True)
def _relu_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values = scratch(y, ELEMENTS)
    zero = values.dtype.type(0)
    for piece in _pieces(start, stop, dx):
        upstream, a, result = read_ahead(dy, piece), read_ahead(y, piece), written_ahead(dx, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) if widen(a[j]) > zero else zero
        _finish(b, direct, result)


def leaky_relu(x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = x where x > 0, else negative_slope x``."""
    _of_one(_leaky_relu, LIGHT, x, out, options.negative_slope)


@compiled(in_pieces=True)
def _leaky_relu(start: int, stop: int, x: Any, y: Any, negative_slope: float) -> None:
    direct = is_direct(x, y)
    values = scratch(x, ELEMENTS)
    zero, slope = values.dtype.type(0), values.dtype.type(negative_slope)
    for piece in _pieces(start, stop, y):
        a, result = read_ahead(x, piece), written_ahead(y, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            b[j] = number if number > zero else slope * number
        _finish(b, direct, result)


def leaky_relu_backward(dy: Array, x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = dy where x > 0, else negative_slope dy``."""
    _of_two(_leaky_relu_backward, LIGHT, dy, x, out, options.negative_slope)


@compiled(in_pieces=True)
def _leaky_relu_backward(start: int, stop: int, dy: Any, x: Any, dx: Any, negative_slope: float) -> None:
    direct = is_direct(dy, dx) and is_direct(x, dx)
    values = scratch(x, ELEMENTS)
    zero, slope = values.dtype.type(0), values.dtype.type(negative_slope)
    for piece in _pieces(start, stop, dx):
        upstream, a, result = read_ahead(dy, piece), read_ahead(x, piece), written_ahead(dx, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(upstream[j])
            b[j] = number if widen(a[j]) > zero else slope * number
        _finish(b, direct, result)


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``."""
    _of_one(_sigmoid, 1, x, out)


@compiled(in_pieces=True)
def _sigmoid(start: int, stop: int, x: Any, y: Any) -> None:
    """As ``exp(x) / (1 + exp(x))`` for negative numbers, so that nothing overflows.

    Both exponentials are scaled, so that no digits are lost where they are subnormal.
    """
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero = values.dtype.type(0)
    shift, lowest, magic = exp_scaling(zero)
    one = scaled_exp(zero, shift, lowest, magic)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            e = scaled_exp(-abs(number), shift, lowest, magic)
            b[j] = (e if number < zero else one) / (one + e)
        _finish(b, direct, result)


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy y (1 - y)``."""
    _of_two(_sigmoid_backward, LIGHT, dy, y, out)


@compiled(in_pieces=True)
def _sigmoid_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values = scratch(y, ELEMENTS)
    one = values.dtype.type(1)
    for piece in _pieces(start, stop, dx):
        upstream, a, result = read_ahead(dy, piece), read_ahead(y, piece), written_ahead(dx, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) * widen(a[j]) * (one - widen(a[j]))
        _finish(b, direct, result)


def tanh(x: Array, out: Array) -> None:
    """``out = tanh(x)``."""
    _of_one(_tanh, 1, x, out)


@compiled(in_pieces=True)
def _tanh(start: int, stop: int, x: Any, y: Any) -> None:
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    real = values.dtype.type
    one, small = real(1), real(SMALL_TANH)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            e = exp(real(-2) * size)
            b[j] = math.copysign(small_tanh(size) if size < small else (one - e) / (one + e), number)
        _finish(b, direct, result)


def tanh_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy (1 - y) (1 + y)``."""
    _of_two(_tanh_backward, LIGHT, dy, y, out)


@compiled(in_pieces=True)
def _tanh_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values = scratch(y, ELEMENTS)
    one = values.dtype.type(1)
    for piece in _pieces(start, stop, dx):
        upstream, a, result = read_ahead(dy, piece), read_ahead(y, piece), written_ahead(dx, piece)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) * ((one - widen(a[j])) * (one + widen(a[j])))
        _finish(b, direct, result)


# x exp(x) is not 0 for some numbers whose exponential is less than half the smallest number, down to this much less.
BEYOND = 8.0


def silu(x: Array, out: Array) -> None:
    """``out = x / (1 + exp(-x))``."""
    _of_one(_silu, 1, x, out)


@compiled(in_pieces=True)
def _silu(start: int, stop: int, x: Any, y: Any) -> None:
    """With scaled exponentials, as the sigmoid; of negative numbers ``x exp(x)`` is divided, so as to be rounded once.

    A number whose exponential is 0 is bounded, since infinity times 0 would be NaN.
    """
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero = values.dtype.type(0)
    shift, lowest, magic = exp_scaling(zero)
    lowest -= values.dtype.type(BEYOND)
    one = scaled_exp(zero, shift, lowest, magic)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            e = scaled_exp(-abs(number), shift, lowest, magic)
            part = ((lowest if number < lowest else number) * e if number < zero else one) / (one + e)
            b[j] = part if number < zero else number * part
        _finish(b, direct, result)


def silu_backward(dy: Array, x: Array, out: Array) -> None:
    """``out = dy s (1 + x (1 - s))`` with ``s = 1 / (1 + exp(-x))``."""
    _of_two(_silu_backward, 1, dy, x, out)


@compiled(in_pieces=True)
def _silu_backward(start: int, stop: int, dy: Any, x: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(x, dx)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero, unit = values.dtype.type(0), values.dtype.type(1)
    shift, lowest, magic = exp_scaling(zero)
    one = scaled_exp(zero, shift, lowest, magic)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(x, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            size = -lowest if size > -lowest else size
            e = scaled_exp(-size, shift, lowest, magic)
            inverse = unit / (one + e)
            large, small = one * inverse, e * inverse
            slope = small * (unit - size * large) if number < zero else large * (unit + size * small)
            b[j] = widen(upstream[j]) * slope
        _finish(b, direct, result)


def gelu(x: Array, options: GeluOptions, out: Array) -> None:
    """``out = x Phi(x)``, or the approximation by the hyperbolic tangent."""
    _of_one(_gelu if options.approximate == "none" else _gelu_tanh, 1, x, out)


@compiled(in_pieces=True)
def _gelu(start: int, stop: int, x: Any, y: Any) -> None:
    """Of negative numbers the tail is multiplied with the number first: a subnormal exponential has few digits."""
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero, one = values.dtype.type(0), values.dtype.type(1)
    end = tail_end(zero)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            size = end if size > end else size
            e = gauss(size)
            g, g_low = normal_tail(size)
            moment = size * g
            moment_low = muladd(size, g, -moment) + size * g_low
            tail = muladd(e, moment_low, e * moment)
            b[j] = -tail if number < zero else number * (muladd(-e, g, one) - e * g_low)
        _finish(b, direct, result)


def gelu_backward(dy: Array, x: Array, options: GeluOptions, out: Array) -> None:
    """``out = dy (Phi(x) + x phi(x))``, or the derivative of the approximation."""
    _of_two(_gelu_backward if options.approximate == "none" else _gelu_tanh_backward, 1, dy, x, out)


@compiled(in_pieces=True)
def _gelu_backward(start: int, stop: int, dy: Any, x: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(x, dx)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero, one, density = values.dtype.type(0), values.dtype.type(1), values.dtype.type(INVERSE_ROOT)
    end = tail_end(zero)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(x, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            size = end if size > end else size
            g, _ = normal_tail(size)
            slope = gauss(size) * (g - size * density)
            b[j] = widen(upstream[j]) * (slope if number < zero else one - slope)
        _finish(b, direct, result)


@compiled(in_pieces=True)
def _gelu_tanh(start: int, stop: int, x: Any, y: Any) -> None:
    """As `_silu`, of ``v = x (A + B x**2)``, with what its rounding loses: far from 0 that would cost 100 ulp."""
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    real = values.dtype.type
    zero = real(0)
    shift, lowest, magic = exp_scaling(zero)
    lowest -= real(BEYOND)
    one, end = scaled_exp(zero, shift, lowest, magic), tail_end(zero)
    first, second = real(GELU_A), real(GELU_B)
    first_rest, second_rest = real(GELU_A - float(first)), real(GELU_B - float(second))
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            size = end if size > end else size
            square = size * size
            cubic = second * square
            rest = product_error(second, square, cubic) + (
                second * product_error(size, size, square) + second_rest * square
            )
            total = first + cubic
            back = total - first
            rest += (first - (total - back)) + (cubic - back) + first_rest
            v = size * total
            rest = product_error(size, total, v) + size * rest
            e = scaled_exp(-v, shift, lowest, magic)
            e -= e * rest
            part = (-(size * e) if number < zero else one) / (one + e)
            b[j] = part if number < zero else number * part
        _finish(b, direct, result)


@compiled(in_pieces=True)
def _gelu_tanh_backward(start: int, stop: int, dy: Any, x: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(x, dx)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    real = values.dtype.type
    zero, unit = real(0), real(1)
    shift, lowest, magic = exp_scaling(zero)
    one, end = scaled_exp(zero, shift, lowest, magic), tail_end(zero)
    first, second = real(GELU_A), real(GELU_B)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(x, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            size = abs(number)
            size = end if size > end else size
            square = size * size
            e = scaled_exp(-(size * (first + second * square)), shift, lowest, magic)
            inverse = unit / (one + e)
            large, small = one * inverse, e * inverse
            steep = size * (first + real(3) * second * square)
            slope = small * (unit - steep * large) if number < zero else large * (unit + steep * small)
            b[j] = widen(upstream[j]) * slope
        _finish(b, direct, result)


def dropout(x: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor x`` where the random word is at least the threshold, else 0."""
    if options.threshold:
        below = np.uint32(options.threshold - 1)
        _of_one(_dropout, 1, x, out, np.uint64(int(options.seed)), below, options.factor)
    else:
        np.copyto(out, x)


def dropout_backward(dy: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor dy`` where `dropout` keeps the element, else 0."""
    dropout(dy, options, out)


M0, M1 = map(np.uint64, PHILOX.multipliers)
W0, W1 = map(np.uint64, PHILOX.increments)
ROUNDS, HALF, LOW = PHILOX.rounds, np.uint64(32), np.uint64(2**32 - 1)


@compiled(in_pieces=True)
def _dropout(start: int, stop: int, x: Any, y: Any, seed: Any, below: Any, factor: float) -> None:
    """Keeps elements whose words are larger than `below`. A piece begins at the first word of a block."""
    direct = is_direct(x, y)
    values, words = scratch(x, ELEMENTS), np.empty((ELEMENTS // 4, 4), np.uint32)
    flat = words.reshape(ELEMENTS)
    zero, scale = values.dtype.type(0), values.dtype.type(factor)
    for piece in range(start, stop):
        a, result = _piece(x, piece, 1), _piece(y, piece, 1)
        b = destination(result, values, direct)
        _fill_with_words(seed, np.uint64(piece) * np.uint64(ELEMENTS // 4), words[: (b.size + 3) // 4])
        for j in range(b.size):
            b[j] = scale * widen(a[j]) if flat[j] > below else zero
        _finish(b, direct, result)


@inlined()
def _fill_with_words(seed: Any, first: Any, words: Any) -> None:
    """Write the blocks of Philox4x32-10 whose counters begin with `first`."""
    for j in range(len(words)):
        counter = first + np.uint64(j)
        p, q, r, s = counter & LOW, counter >> HALF, np.uint64(0), np.uint64(0)
        k0, k1 = seed & LOW, seed >> HALF
        for _ in range(ROUNDS):
            m, n = M0 * p, M1 * r
            p, q, r, s = (n >> HALF) ^ q ^ k0, n & LOW, (m >> HALF) ^ s ^ k1, m & LOW
            k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
        words[j, 0], words[j, 1], words[j, 2], words[j, 3] = np.uint32(p), np.uint32(q), np.uint32(r), np.uint32(s)
