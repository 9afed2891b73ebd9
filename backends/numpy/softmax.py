"""Softmax and its logarithm."""

import numpy as np

from plugrad.backends.numpy.blocks import Array, Index, Scratch, cut, run
from plugrad.backends.numpy.rows import (
    classes_last,
    flat_rows,
    largest_elements,
    load,
    log_of_sum,
    per_row,
    shifted,
    sums,
)


def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    x, out = classes_last(x, axis), classes_last(out, axis)

    def block(index: Index, scratch: Scratch) -> None:
        e, _ = shifted(load(x[index], scratch, "x"), scratch, "e")
        np.exp(e, out=e)
        np.divide(e, np.add.reduce(e, axis=-1, keepdims=True), out=out[index])

    run(block, cut(x.shape[:-1], x.shape[-1]))


def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y * (dy - sum(dy * y))``."""
    dy, y, out = classes_last(dy, axis), classes_last(y, axis), classes_last(out, axis)

    def block(index: Index, scratch: Scratch) -> None:
        dyb, yb = load(dy[index], scratch, "dy"), load(y[index], scratch, "y")
        work = scratch.rows("work", yb, yb.dtype)
        mean = np.add.reduce(np.multiply(dyb, yb, out=work), axis=-1, keepdims=True)
        np.multiply(np.subtract(dyb, mean, out=work), yb, out=out[index])

    run(block, cut(y.shape[:-1], y.shape[-1]))


def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    x, out = classes_last(x, axis), classes_last(out, axis)

    def block(index: Index, scratch: Scratch) -> None:
        xb = load(x[index], scratch, "x")
        e, largest = shifted(xb, scratch, "e")
        rows = flat_rows(e)
        top = largest_elements(rows)
        np.exp(e, out=e)
        log = log_of_sum(*sums(rows, top, xb, largest))
        np.subtract(np.subtract(xb, largest, out=e), per_row(log, e), out=out[index])

    run(block, cut(x.shape[:-1], x.shape[-1]))


def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) * sum(dy)``."""
    dy, y, out = classes_last(dy, axis), classes_last(y, axis), classes_last(out, axis)

    def block(index: Index, scratch: Scratch) -> None:
        dyb = load(dy[index], scratch, "dy")
        p = scratch.rows("p", dyb, dyb.dtype)
        np.copyto(p, y[index])
        np.multiply(np.exp(p, out=p), np.add.reduce(dyb, axis=-1, keepdims=True), out=p)
        np.subtract(dyb, p, out=out[index])

    run(block, cut(y.shape[:-1], y.shape[-1]))
