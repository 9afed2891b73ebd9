"""ReLU and sigmoid."""

from typing import Any

import numpy as np

from plugrad.backends.numpy.blocks import Array, Scratch, quietly, run
from plugrad.backends.options import COMPUTE

# The work on one element, to that of softmax: to share so little of it among threads pays later.
LIGHT = 0.5

# bytes of a floating dtype -> the integers of that size, to move floating numbers as the bits they are
BITS: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    run(_relu, (x, out), x.shape, LIGHT)


@quietly
def _relu(scratch: Scratch, x: Array, out: Array) -> None:
    if x.dtype.itemsize == 2:  # NumPy compares 16-bit floats fast but computes with them slowly
        keep = scratch.array("keep", x.shape, np.bool)
        _keep(x, np.logical_not(np.less_equal(x, 0, out=keep), out=keep), out)
    elif x.size < 1024:
        np.maximum(x, 0, out=out)
    else:  # the maximum of two arrays is three times as fast as that of an array and a number
        zeros = scratch.array("zeros", x.shape, x.dtype)
        zeros[...] = 0
        np.maximum(x, zeros, out=out)


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    run(_relu_backward, (dy, y, out), y.shape, LIGHT)


@quietly
def _relu_backward(scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    _keep(dy, np.greater(y, 0, out=scratch.array("keep", y.shape, np.bool)), out)


def _keep(x: Array, keep: Array, out: Array) -> None:
    """``out = x where keep, else 0``, also where `x` is not finite: the bits of `x` times 0 or 1."""
    bits = BITS[x.dtype.itemsize]
    np.multiply(x.view(bits), keep.view(np.int8), out=out.view(bits))


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``."""
    if x.flags.c_contiguous and out.flags.c_contiguous:  # one dimension makes the tail faster to find
        x, out = x.reshape(-1), out.reshape(-1)
    run(_sigmoid, (x, out), x.shape, 1)


# Asking whether exp(-x) overflows, for very negative x, costs less than looking for the smallest x.
@np.errstate(all="ignore", over="raise")
def _sigmoid(scratch: Scratch, x: Array, out: Array) -> None:
    e = np.negative(x, out=scratch.array("e", x.shape, COMPUTE[x.dtype]))
    try:
        np.exp(e, out=e)
        tail, small = None, None
    except FloatingPointError:  # raised when all of it is done: 1 / (1 + exp(-x)) is exp(x) where exp(-x) overflowed
        tail = np.isinf(e).nonzero()
        small = np.exp(x[tail], dtype=e.dtype)
    np.reciprocal(np.add(e, 1, out=e), out=out)
    if tail is not None:
        out[tail] = small


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy * y * (1 - y)``."""
    run(_sigmoid_backward, (dy, y, out), y.shape, LIGHT)


@quietly
def _sigmoid_backward(scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    compute = COMPUTE[y.dtype]
    slope = np.subtract(1, y, out=scratch.array("slope", y.shape, compute), dtype=compute)
    np.multiply(np.multiply(slope, y, out=slope), dy, out=out)
