"""ReLU and sigmoid, over pieces of flat arrays; where the way to the result is direct, over all pieces at once."""

from typing import Any

from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.memory import scratch, store, target
from plugrad.backends.numba.vector import exp_in, frame_of, widen

ELEMENTS = 2048  # in a piece: what is needed for one stays in the first-level cache


@compiled()
def relu(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = max(x, 0)``."""
    values = scratch(x, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        a = x[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        result = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            b[j] = zero if number <= zero else number  # so written, NaN stays
        if not direct:
            store(b, one, result)


@compiled()
def relu_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = dy where y > 0, else 0``."""
    values = scratch(y, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        upstream = dy[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        a = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        result = dx[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) if widen(a[j]) > zero else zero
        if not direct:
            store(b, one, result)


@compiled()
def sigmoid(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = 1 / (1 + exp(-x))``, as ``exp(x) / (1 + exp(x))`` for negative numbers, so that nothing overflows.

    Both are scaled, so that nothing is lost where the exponential is subnormal.
    """
    values = scratch(x, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    shift, lowest, magic = frame_of(zero)
    unit = exp_in(zero, shift, lowest, magic)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        a = x[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        result = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            number = widen(a[j])
            e = exp_in(-abs(number), shift, lowest, magic)
            b[j] = (e if number < zero else unit) / (unit + e)
        if not direct:
            store(b, one, result)


@compiled()
def sigmoid_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = dy y (1 - y)``."""
    values = scratch(y, ELEMENTS)
    one = values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        upstream = dy[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        a = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        result = dx[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            b[j] = widen(upstream[j]) * widen(a[j]) * (one - widen(a[j]))
        if not direct:
            store(b, one, result)
