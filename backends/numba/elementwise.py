"""Elementwise kernels, each with its compiled loop, over pieces of flat arrays.

A loop that writes directly to the result takes all pieces at once; else a piece is computed in scratch memory, and
then stored.
"""

import math
from collections.abc import Callable
from typing import Any

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import LIGHT, contiguous, copy_result, result_array
from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.memory import destination, is_direct, scratch, store
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import exp, exp_scaling, scaled_exp, widen
from plugrad.backends.options import LeakyReluOptions

ELEMENTS = 2048  # in a piece: 8 KiB of float32, a few of which stay in the first-level cache

# Arrays of at most so many elements go to compiled code as they are, if it can read them: Python would take longer to
# prepare them than the loop takes. Pieces past the end are empty.
PIECES_OF_SMALL = 8
SMALL = PIECES_OF_SMALL * ELEMENTS


def _of_one(loop: Callable[..., None], work: float, x: Array, out: Array, *numbers: Any) -> None:
    """Run a compiled loop on an argument, the result and numbers; `work` to that of softmax."""
    if out.size <= SMALL and x.flags.carray and out.flags.carray and out.itemsize > 2:
        loop(0, PIECES_OF_SMALL, x.ravel(), out.ravel(), *numbers)
    else:
        _over_elements(loop, work, (x, out), numbers)


def _of_two(loop: Callable[..., None], work: float, dy: Array, y: Array, out: Array, *numbers: Any) -> None:
    """The same on two arguments, the result and numbers."""
    if out.size <= SMALL and dy.flags.carray and y.flags.carray and out.flags.carray and out.itemsize > 2:
        loop(0, PIECES_OF_SMALL, dy.ravel(), y.ravel(), out.ravel(), *numbers)
    else:
        _over_elements(loop, work, (dy, y, out), numbers)


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
def _finish(values: Any, direct: bool, result: Any) -> None:
    """Store what was computed in scratch memory."""
    if not direct:
        store(values, values.dtype.type(1), result)


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    _of_one(_relu, LIGHT, x, out)


@compiled()
def _relu(start: int, stop: int, x: Any, y: Any) -> None:
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero = values.dtype.type(0)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            b[j] = zero if number <= zero else number  # so written, NaN stays
        _finish(b, direct, result)


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    _of_two(_relu_backward, LIGHT, dy, y, out)


@compiled()
def _relu_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values, step = scratch(y, ELEMENTS), stop - start if direct else 1
    zero = values.dtype.type(0)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(y, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) if widen(a[j]) > zero else zero
        _finish(b, direct, result)


def leaky_relu(x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = x where x > 0, else negative_slope x``."""
    _of_one(_leaky_relu, LIGHT, x, out, options.negative_slope)


@compiled()
def _leaky_relu(start: int, stop: int, x: Any, y: Any, negative_slope: float) -> None:
    direct = is_direct(x, y)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero, slope = values.dtype.type(0), values.dtype.type(negative_slope)
    for piece in range(start, stop, step):
        a, result = _piece(x, piece, step), _piece(y, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            b[j] = number if number > zero else slope * number
        _finish(b, direct, result)


def leaky_relu_backward(dy: Array, x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = dy where x > 0, else negative_slope dy``."""
    _of_two(_leaky_relu_backward, LIGHT, dy, x, out, options.negative_slope)


@compiled()
def _leaky_relu_backward(start: int, stop: int, dy: Any, x: Any, dx: Any, negative_slope: float) -> None:
    direct = is_direct(dy, dx) and is_direct(x, dx)
    values, step = scratch(x, ELEMENTS), stop - start if direct else 1
    zero, slope = values.dtype.type(0), values.dtype.type(negative_slope)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(x, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            number = widen(upstream[j])
            b[j] = number if widen(a[j]) > zero else slope * number
        _finish(b, direct, result)


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``."""
    _of_one(_sigmoid, 1, x, out)


@compiled()
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


@compiled()
def _sigmoid_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values, step = scratch(y, ELEMENTS), stop - start if direct else 1
    one = values.dtype.type(1)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(y, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) * widen(a[j]) * (one - widen(a[j]))
        _finish(b, direct, result)


# tanh(x) = x + x^3 P(x^2) / Q(x^2) for |x| < SMALL_TANH, to 1e-17: Moshier, Cephes Mathematical Library, tanh.c.
SMALL_TANH = 0.625
P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
Q = (1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


def tanh(x: Array, out: Array) -> None:
    """``out = tanh(x)``."""
    _of_one(_tanh, 1, x, out)


@compiled()
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
            size, square = abs(number), number * number
            e = exp(real(-2) * size)
            p = (real(P[0]) * square + real(P[1])) * square + real(P[2])
            q = ((square + real(Q[0])) * square + real(Q[1])) * square + real(Q[2])
            b[j] = math.copysign(size + size * (square * (p / q)) if size < small else (one - e) / (one + e), number)
        _finish(b, direct, result)


def tanh_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy (1 - y) (1 + y)``."""
    _of_two(_tanh_backward, LIGHT, dy, y, out)


@compiled()
def _tanh_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    direct = is_direct(dy, dx) and is_direct(y, dx)
    values, step = scratch(y, ELEMENTS), stop - start if direct else 1
    one = values.dtype.type(1)
    for piece in range(start, stop, step):
        upstream, a, result = _piece(dy, piece, step), _piece(y, piece, step), _piece(dx, piece, step)
        b = destination(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) * ((one - widen(a[j])) * (one + widen(a[j])))
        _finish(b, direct, result)
