"""Elementwise kernels: activations and their gradients."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from plugrad.backends.cpu import blocks
from plugrad.backends.cpu.blocks import Array, quietly, with_errors
from plugrad.backends.numpy.pool import FRESH, Scratch, may_hold_work, run_blocks
from plugrad.backends.options import COMPUTE, LeakyReluOptions

# The work on one element, to that of softmax: to share so little of it among threads pays later.
LIGHT = 0.5

# bytes of a floating dtype -> the integers of that size, to move floating numbers as the bits they are
BITS: dict[int, Any] = {2: np.int16, 4: np.int32, 8: np.int64}

# A number so large that LARGE / (1 + LARGE) is 1 in any dtype, which inf / inf is not.
LARGE = 1e30


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
    elif x.size < 1024:
        np.maximum(x, 0, out=out)
    else:  # three times as fast as the maximum of an array and a number, but slower to start
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
    keep = (_positive_16_bits if y.itemsize == 2 else np.greater)(y, 0, scratch.array("keep", y.shape, np.bool))
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
