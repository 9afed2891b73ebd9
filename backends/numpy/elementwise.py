"""ReLU and sigmoid."""

import numpy as np

from plugrad.backends.numpy.blocks import Array, Index, Scratch, cut, run
from plugrad.backends.options import COMPUTE

# dtype sizes in bytes -> the integers of that size: they keep NaN, infinities and all bits as they are
BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    x, out = _flat(x, out)

    def block(index: Index, scratch: Scratch) -> None:
        xb, yb = x[index], out[index]
        if x.dtype.itemsize == 2:  # NumPy compares 16-bit floats fast but computes with them slowly
            keep = scratch.array("keep", xb.shape, np.bool)
            np.logical_not(np.less_equal(xb, 0, out=keep), out=keep)
            _keep(xb, keep, yb)
        else:
            zeros = scratch.array("zeros", xb.shape, x.dtype)
            zeros[...] = 0  # the maximum of two arrays is three times as fast as that of an array and a scalar
            np.maximum(xb, zeros, out=yb)

    run(block, cut(x.shape, 1))


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    dy, y, out = _flat(dy, y, out)

    def block(index: Index, scratch: Scratch) -> None:
        yb = y[index]
        keep = np.greater(yb, 0, out=scratch.array("keep", yb.shape, np.bool))
        _keep(dy[index], keep, out[index])

    run(block, cut(dy.shape, 1))


def _keep(x: Array, keep: Array, out: Array) -> None:
    """``out = x where keep, else 0``, also where `x` is not finite: the bits of `x` times 0 or 1."""
    bits = BITS[x.dtype.itemsize]
    np.multiply(x.view(bits), keep.view(np.int8), out=out.view(bits))


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``."""
    x, out = _flat(x, out)
    compute = COMPUTE[x.dtype]

    def block(index: Index, scratch: Scratch) -> None:
        xb, yb = x[index], out[index]
        e = scratch.array("e", xb.shape, compute)
        try:
            _reciprocal_of_exp(xb, e, yb)
        except FloatingPointError:  # exp(-x) overflows for some very negative x, where the result is exp(x)
            tail = xb < -np.log(np.finfo(compute).max)
            small = np.exp(xb[tail], dtype=compute)
            _reciprocal_of_exp(np.where(tail, 0, xb), e, yb)
            yb[tail] = small

    run(block, cut(x.shape, 1))


@np.errstate(over="raise")  # costs less than looking for the smallest x
def _reciprocal_of_exp(x: Array, e: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))`` by way of the array `e`, which has the dtype to compute in."""
    np.exp(np.negative(x, out=e), out=e)
    np.reciprocal(np.add(e, 1, out=e), out=out)


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy * y * (1 - y)``."""
    dy, y, out = _flat(dy, y, out)
    compute = COMPUTE[dy.dtype]

    def block(index: Index, scratch: Scratch) -> None:
        yb = y[index]
        slope = np.subtract(1, yb, out=scratch.array("slope", yb.shape, compute), dtype=compute)
        np.multiply(slope, yb, out=slope)
        np.multiply(slope, dy[index], out=out[index])

    run(block, cut(dy.shape, 1))


def _flat(*arrays: Array) -> tuple[Array, ...]:
    """The arrays with one dimension, if they are contiguous: then blocks have no rows to start anew for."""
    if all(array.flags.c_contiguous for array in arrays):
        return tuple(array.reshape(-1) for array in arrays)
    return arrays
