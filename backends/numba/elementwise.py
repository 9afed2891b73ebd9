"""ReLU and sigmoid, over pieces of flat arrays; results are worked out apart and stored, as those of `rows` are."""

from typing import Any

from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.rows import opened, scratch, store
from plugrad.backends.numba.vector import exp

ELEMENTS = 2048  # in a piece: what is needed for one stays in the first-level cache


@compiled()
def relu(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = max(x, 0)``."""
    room, values = scratch(x, ELEMENTS), scratch(x, ELEMENTS)
    for piece in range(start, stop):
        a = opened(x[piece * ELEMENTS : (piece + 1) * ELEMENTS], room)
        b = y[piece * ELEMENTS : (piece + 1) * ELEMENTS]
        zero = values.dtype.type(0)
        for j in range(b.size):
            values[j] = zero if a[j] <= zero else a[j]  # so written, NaN stays
        store(values, values.dtype.type(1), b)


@compiled()
def relu_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy where y > 0, else 0``."""
    rooms = scratch(y, ELEMENTS), scratch(y, ELEMENTS)
    values = scratch(y, ELEMENTS)
    for piece in range(start, stop):
        upstream = opened(dy[piece * ELEMENTS : (piece + 1) * ELEMENTS], rooms[0])
        a = opened(y[piece * ELEMENTS : (piece + 1) * ELEMENTS], rooms[1])
        b = dx[piece * ELEMENTS : (piece + 1) * ELEMENTS]
        zero = values.dtype.type(0)
        for j in range(b.size):
            values[j] = upstream[j] if a[j] > zero else zero
        store(values, values.dtype.type(1), b)


@compiled()
def sigmoid(start: int, stop: int, x: Any, y: Any) -> None:
    """``y = 1 / (1 + exp(-x))``, as ``exp(x) / (1 + exp(x))`` for negative numbers, so that nothing overflows."""
    room, values = scratch(x, ELEMENTS), scratch(x, ELEMENTS)
    for piece in range(start, stop):
        a = opened(x[piece * ELEMENTS : (piece + 1) * ELEMENTS], room)
        b = y[piece * ELEMENTS : (piece + 1) * ELEMENTS]
        zero, one = values.dtype.type(0), values.dtype.type(1)
        for j in range(b.size):
            e = exp(-abs(a[j]))
            values[j] = (e if a[j] < zero else one) / (one + e)
        store(values, one, b)


@compiled()
def sigmoid_backward(start: int, stop: int, dy: Any, y: Any, dx: Any) -> None:
    """``dx = dy y (1 - y)``."""
    rooms = scratch(y, ELEMENTS), scratch(y, ELEMENTS)
    values = scratch(y, ELEMENTS)
    for piece in range(start, stop):
        upstream = opened(dy[piece * ELEMENTS : (piece + 1) * ELEMENTS], rooms[0])
        a = opened(y[piece * ELEMENTS : (piece + 1) * ELEMENTS], rooms[1])
        b = dx[piece * ELEMENTS : (piece + 1) * ELEMENTS]
        one = values.dtype.type(1)
        for j in range(b.size):
            values[j] = upstream[j] * a[j] * (one - a[j])
        store(values, one, b)
