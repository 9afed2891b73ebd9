"""Elementwise kernels: activations and their gradients."""

from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.numpy.pool import Scratch, may_hold_work, run_blocks
from plugrad.backends.options import COMPUTE

# The work on one element, to that of softmax: to share so little of it among threads pays later.
LIGHT = 0.5

# bytes of a floating dtype -> the integers of that size, to move floating numbers as the bits they are
BITS: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}

# A number so large that LARGE / (1 + LARGE) is 1 in any dtype, which inf / inf is not.
LARGE = 1e30


def relu(x: Array, out: Array) -> None:
    """``out = max(x, 0)``."""
    run_blocks(_relu_16_bits if x.itemsize == 2 else _relu, (x, out), x.shape, LIGHT)


def _relu(scratch: Scratch, x: Array, out: Array) -> None:
    if x.size < 1024:
        np.maximum(x, 0, out=out)
    else:  # three times as fast as the maximum of an array and a number, but slower to start
        x.clip(0, np.inf, out)


@quietly
def _relu_16_bits(scratch: Scratch, x: Array, out: Array) -> None:
    # NumPy compares 16-bit floats fast but computes with them slowly
    keep = np.less_equal(x, 0, out=scratch.array("keep", x.shape, np.bool))
    np.logical_not(keep, out=keep)
    np.multiply(x.view(np.int16), keep.view(np.int8), out=out.view(np.int16))  # `x` times 0 or 1, also if not finite


def relu_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy where y > 0, else 0``."""
    task = _relu_backward_16_bits if y.itemsize == 2 else _relu_backward
    run_blocks(partial(task, out is not dy and may_hold_work(out)), (dy, y, out), y.shape, LIGHT)


def _relu_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    """It works in `out` if `in_out` says that it may; so do those below."""
    bits = BITS[dy.itemsize]
    keep = np.greater(y, 0, out=scratch.array("keep", y.shape, np.bool)).view(np.int8)
    target = out.view(bits)
    if in_out:
        np.copyto(target, keep)
        keep = target
    np.multiply(dy.view(bits), keep, out=target)  # `dy` times 0 or 1, also where it is not finite


_relu_backward_16_bits = quietly(_relu_backward)  # comparisons of NaN warn in these dtypes


def sigmoid(x: Array, out: Array) -> None:
    """``out = 1 / (1 + exp(-x))``, as ``exp(x) / (1 + exp(x))``."""
    run_blocks(partial(_sigmoid, may_hold_work(out)), (x, out), x.shape, 1)


@np.errstate(all="ignore", over="raise", invalid="raise")
def _sigmoid(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    compute = COMPUTE[x.dtype]
    e = scratch.array("e", x.shape, compute)
    total = out if in_out else scratch.array("total", x.shape, compute)
    try:
        np.exp(x, out=e, dtype=compute)
        np.divide(e, np.add(e, 1, out=total), out=out, casting="same_kind")
    except FloatingPointError:  # exp(x) overflowed or is infinite; it is raised when all of `e` is there
        e.clip(0, LARGE, e)
        np.divide(e, np.add(e, 1, out=total), out=out, casting="same_kind")


def sigmoid_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy * y * (1 - y)``."""
    run_blocks(
        partial(_sigmoid_backward, out is not dy and out is not y and may_hold_work(out)), (dy, y, out), y.shape, LIGHT
    )


@quietly
def _sigmoid_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    compute = COMPUTE[y.dtype]
    work = out if in_out else scratch.array("slope", y.shape, compute)
    slope = np.subtract(1, y, out=work, dtype=compute)
    np.multiply(np.multiply(slope, y, out=slope), dy, out=out)


def tanh(x: Array, out: Array) -> None:
    """``out = tanh(x)``."""
    run_blocks(_tanh, (x, out), x.shape, 1)


@quietly
def _tanh(scratch: Scratch, x: Array, out: Array) -> None:
    np.tanh(x, out=out, dtype=COMPUTE[x.dtype], casting="same_kind")


def tanh_backward(dy: Array, y: Array, out: Array) -> None:
    """``out = dy (1 - y) (1 + y)``."""
    run_blocks(_tanh_backward, (dy, y, out), y.shape, LIGHT)


@quietly
def _tanh_backward(scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    compute = COMPUTE[y.dtype]
    slope = np.subtract(1, y, out=scratch.array("slope", y.shape, compute), dtype=compute)
    slope *= np.add(1, y, out=scratch.array("sum", y.shape, compute), dtype=compute)
    np.multiply(slope, dy, out=out, casting="same_kind")
