"""Optimizers' updates (see `plugrad.backends.updates`), in pieces that stay in cache from one pass to the next."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import BLOCK, Array, quietly
from plugrad.backends.numpy.pool import Scratch, run_blocks
from plugrad.backends.options import COMPUTE

# Elements of a piece: with what belongs to it, it stays in the second-level cache. Of 2**13 to 2**17 the fastest for
# 784 x 512 weights in float32, on two cores of a Xeon.
PIECE = 2**15


@quietly
def sgd(
    params: Sequence[Array],
    grads: Sequence[Array],
    velocities: Sequence[Array | None],
    lr: float,
    momentum: float,
    nesterov: bool,
    decay: float,
) -> None:
    """``d = g + decay p``, ``v = momentum v + d``, ``p -= lr v``, or with Nesterov ``p -= lr (d + momentum v)``."""
    is_plain = not momentum and not decay
    dtype, rate, most = None, None, -1
    for p, g, v in zip(params, grads, velocities, strict=True):
        if p.dtype is not dtype:
            dtype = p.dtype
            rate = dtype.type(lr)  # an operator takes such a number sooner than a float
            most = PIECE if is_plain and dtype.itemsize > 2 else -1
        if v is None and p.size <= most:
            p -= g * rate
        elif v is None and most > 0 and p.size <= BLOCK:
            _descend(rate, p, g)
        else:
            _over(partial(_sgd, lr, momentum, nesterov, decay), p, g, v)


def _descend(rate: Any, p: Array, g: Array) -> None:
    """``p -= rate g``, on this thread: in larger pieces than those of `_over`, which take twice as long as these."""
    rows = max(1, 2 * PIECE * len(p) // p.size)
    work = np.empty((rows, *p.shape[1:]), p.dtype)
    for start in range(0, len(p), rows):
        piece = p[start : start + rows]
        np.subtract(piece, np.multiply(g[start : start + rows], rate, out=work[: len(piece)]), out=piece)


def _sgd(
    lr: float, momentum: float, nesterov: bool, decay: float, work: Array, p: Array, g: Array, v: Array | None
) -> None:
    slope = _slope(work, p, g, decay)
    if v is not None:
        np.multiply(v, momentum, out=v)
        np.add(v, slope, out=v)
        if nesterov:  # slope + momentum v, which has the slope in it already
            np.add(slope, np.multiply(v, momentum, out=work[1]), out=work[1])
            slope = work[1]
        else:
            slope = v
    np.subtract(p, np.multiply(slope, lr, out=work[0]), out=p, casting="same_kind")


@quietly
def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """``m`` and ``v``: the means of ``d = g + decay p`` and of its square; ``p -= step m / (sqrt(v) / root + eps)``."""
    task = partial(_adam, step, root, beta1, beta2, eps, decay, 1.0)
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        _over(task, p, g, m, v)


@quietly
def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    keep: float,
) -> None:
    """``m`` and ``v``: the means of ``g`` and of its square; ``p = keep p - step m / (sqrt(v) / root + eps)``."""
    task = partial(_adam, step, root, beta1, beta2, eps, 0.0, keep)
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        _over(task, p, g, m, v)


def _adam(
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    keep: float,
    work: Array,
    p: Array,
    g: Array,
    m: Array,
    v: Array,
) -> None:
    slope = _slope(work, p, g, decay)
    np.multiply(m, beta1, out=m)
    np.add(m, np.multiply(slope, 1 - beta1, out=work[1]), out=m)
    np.multiply(slope, np.multiply(slope, 1 - beta2, out=work[1]), out=work[1])
    np.add(np.multiply(v, beta2, out=v), work[1], out=v)
    divisor = np.sqrt(v, out=work[1])
    np.add(np.multiply(divisor, 1 / root, out=divisor), eps, out=divisor)
    np.multiply(np.divide(m, divisor, out=work[0]), step, out=work[0])
    kept = p if keep == 1 else np.multiply(p, keep, out=work[1], dtype=work.dtype)
    np.subtract(kept, work[0], out=p, casting="same_kind")


@quietly
def rmsprop(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    means: Sequence[Array | None],
    velocities: Sequence[Array | None],
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    decay: float,
) -> None:
    """``s``: the mean of the square of ``d = g + decay p``; ``p -= lr d / (sqrt(s) + eps)``; see the default."""
    task = partial(_rmsprop, lr, alpha, eps, momentum, decay)
    for p, g, s, m, v in zip(params, grads, squares, means, velocities, strict=True):
        _over(task, p, g, s, m, v)


def _rmsprop(
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    decay: float,
    work: Array,
    p: Array,
    g: Array,
    s: Array,
    m: Array | None,
    v: Array | None,
) -> None:
    slope, divisor = _slope(work, p, g, decay), work[1]
    np.multiply(slope, np.multiply(slope, 1 - alpha, out=divisor), out=divisor)
    np.add(np.multiply(s, alpha, out=s), divisor, out=s)
    if m is None:
        np.sqrt(s, out=divisor)
    else:
        np.add(np.multiply(m, alpha, out=m), np.multiply(slope, 1 - alpha, out=divisor), out=m)
        np.subtract(s, np.multiply(m, m, out=divisor), out=divisor)
        np.sqrt(np.maximum(divisor, 0, out=divisor), out=divisor)  # rounding may leave less than 0; NaN stays NaN
    slope = np.divide(slope, np.add(divisor, eps, out=divisor), out=work[0])
    if v is not None:
        slope = np.add(np.multiply(v, momentum, out=v), slope, out=v)
    np.subtract(p, np.multiply(slope, lr, out=work[0]), out=p, casting="same_kind")


def _slope(work: Array, p: Array, g: Array, decay: float) -> Array:
    """``g + decay p``, as it is computed in."""
    if not decay and g.dtype == work.dtype:
        return g
    slope: Array = np.multiply(p, decay, out=work[0], dtype=work.dtype) if decay else work[0]
    return np.add(g, slope if decay else 0, out=slope, dtype=work.dtype)


def _over(task: Any, p: Array, *others: Array | None) -> None:
    """Run a task on pieces of arrays, which it gets flat, with two arrays of their size to work in."""
    if (p.ndim and p.size <= PIECE) or not all(array is None or array.flags.c_contiguous for array in (p, *others)):
        task(np.empty((2, *p.shape), COMPUTE[p.dtype]), p, *others)
        return
    flat = [None if array is None else array.reshape(-1) for array in (p, *others)]
    run_blocks(partial(_pieces, task), flat, (p.size,), 1)


@quietly
def _pieces(task: Any, scratch: Scratch, p: Array, *others: Array | None) -> None:
    work = scratch.array("work", (2, min(p.size, PIECE)), COMPUTE[p.dtype])
    for start in range(0, p.size, PIECE):
        piece = slice(start, start + PIECE)
        target = p[piece]
        task(work[:, : target.size], target, *(None if array is None else array[piece] for array in others))
