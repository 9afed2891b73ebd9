"""ReLU and sigmoid, over pieces of flat arrays; where the way to the result is direct, over all pieces at once."""

from typing import Any

from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.memory import opened, scratch, store, target
from plugrad.backends.numba.vector import exp_in, frame_of

ELEMENTS = 2048  # in a piece: what is needed for one stays in the first-level cache


@compiled()
def relu(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = max(x, 0)``."""
    room, values = scratch(x, ELEMENTS), scratch(x, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        a = opened(x[piece * ELEMENTS : (piece + pieces) * ELEMENTS], room)
        result = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            b[j] = zero if a[j] <= zero else a[j]  # so written, NaN stays
        if not direct:
            store(b, one, result)


@compiled()
def relu_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = dy where y > 0, else 0``."""
    rooms, values = (scratch(y, ELEMENTS), scratch(y, ELEMENTS)), scratch(y, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        upstream = opened(dy[piece * ELEMENTS : (piece + pieces) * ELEMENTS], rooms[0])
        a = opened(y[piece * ELEMENTS : (piece + pieces) * ELEMENTS], rooms[1])
        result = dx[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            b[j] = upstream[j] if a[j] > zero else zero
        if not direct:
            store(b, one, result)


@compiled()
def sigmoid(start: int, stop: int, x: Any, direct: bool, y: Any) -> None:
    """``y = 1 / (1 + exp(-x))``, as ``exp(x) / (1 + exp(x))`` for negative numbers, so that nothing overflows.

    Both are scaled, so that nothing is lost where the exponential is subnormal.
    """
    room, values = scratch(x, ELEMENTS), scratch(x, ELEMENTS)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    shift, lowest, magic = frame_of(zero)
    unit = exp_in(zero, shift, lowest, magic)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        a = opened(x[piece * ELEMENTS : (piece + pieces) * ELEMENTS], room)
        result = y[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            e = exp_in(-abs(a[j]), shift, lowest, magic)
            b[j] = (e if a[j] < zero else unit) / (unit + e)
        if not direct:
            store(b, one, result)


@compiled()
def sigmoid_backward(start: int, stop: int, dy: Any, y: Any, direct: bool, dx: Any) -> None:
    """``dx = dy y (1 - y)``."""
    rooms, values = (scratch(y, ELEMENTS), scratch(y, ELEMENTS)), scratch(y, ELEMENTS)
    one = values.dtype.type(1)
    pieces = stop - start if direct else 1
    for piece in range(start, stop, pieces):
        upstream = opened(dy[piece * ELEMENTS : (piece + pieces) * ELEMENTS], rooms[0])
        a = opened(y[piece * ELEMENTS : (piece + pieces) * ELEMENTS], rooms[1])
        result = dx[piece * ELEMENTS : (piece + pieces) * ELEMENTS]
        b = target(result, values, direct)
        for j in range(b.size):
            b[j] = upstream[j] * a[j] * (one - a[j])
        if not direct:
            store(b, one, result)
