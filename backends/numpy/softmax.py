"""Softmax and its logarithm."""

import numpy as np

from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.numpy.pool import Scratch
from plugrad.backends.numpy.rows import (
    elements,
    largest,
    load,
    log_of_sum,
    over_rows,
    refine,
    row_sums,
    sums,
    work_in,
    write,
)


def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    over_rows(_softmax, axis, x, out)


@quietly
def _softmax(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    x = load(scratch, "x", x)
    e = np.subtract(x, largest(x)[:, None], out=work_in(in_out, out, scratch, "e", x))
    write(np.divide, np.exp(e, out=e), row_sums(e), out)


def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y * (dy - sum(dy * y))``."""
    over_rows(_softmax_backward, axis, dy, y, out)


@quietly
def _softmax_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    dy, y = load(scratch, "dy", dy), load(scratch, "y", y)
    work = work_in(in_out, out, scratch, "work", y)
    mean = row_sums(np.multiply(dy, y, out=work))
    np.subtract(dy, mean[:, None], out=work)
    np.multiply(work.reshape(out.shape), y.reshape(out.shape), out=out)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    over_rows(_log_softmax, axis, x, out)


@quietly
def _log_softmax(in_out: bool, scratch: Scratch, x: Array, out: Array) -> None:
    x = load(scratch, "x", x)
    top = largest(x)
    z = np.subtract(x, top[:, None], out=work_in(in_out, out, scratch, "z", x))
    e = np.exp(z, out=scratch.like("e", x))
    columns = z.argmax(axis=1)
    rest, single = sums(e, elements(e, columns))
    refine(rest, columns, x, top)
    write(np.subtract, z, log_of_sum(rest, single), out)


def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) * sum(dy)``."""
    over_rows(_log_softmax_backward, axis, dy, y, out)


@quietly
def _log_softmax_backward(in_out: bool, scratch: Scratch, dy: Array, y: Array, out: Array) -> None:
    dy, y = load(scratch, "dy", dy), load(scratch, "y", y)
    p = np.exp(y, out=work_in(in_out, out, scratch, "p", y))
    np.multiply(p, row_sums(dy)[:, None], out=p)
    np.subtract(dy.reshape(out.shape), p.reshape(out.shape), out=out)
