"""Optimizers' updates (see `plugrad.backends.updates`), in one pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from plugrad.backends import updates
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import LIGHT, contiguous
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.elementwise import ELEMENTS, PIECES_OF_SMALL, SMALL
from plugrad.backends.numba.memory import real
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import narrow, widen


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
    for p, g, v in zip(params, grads, velocities, strict=True):
        if v is None and p.size <= SMALL and p.flags.carray and g.flags.carray and p.itemsize > 2:
            _descend(0, PIECES_OF_SMALL, lr, decay, p.ravel(), g.ravel())
            continue
        if not p.flags.carray or (v is not None and not v.flags.carray):
            updates.sgd((p,), (g,), (v,), lr, momentum, nesterov, decay)
            continue
        pieces, x, slope = -(-p.size // ELEMENTS), contiguous(p).ravel(), contiguous(g).ravel()
        if v is None:
            share_work(_descend, pieces, LIGHT * ELEMENTS, lr, decay, x, slope)
        else:
            scalars = lr, momentum, 1 if nesterov else 0, decay
            share_work(_sgd, pieces, LIGHT * ELEMENTS, *scalars, x, slope, v.ravel())


@compiled(in_pieces=True)
def _descend(start: int, stop: int, lr: float, decay: float, p: Any, g: Any) -> None:
    rate, shrink, decays = real(p, lr), real(p, decay), decay != 0
    a, b = p[start * ELEMENTS : stop * ELEMENTS], g[start * ELEMENTS : stop * ELEMENTS]
    for j in range(a.size):
        number = widen(a[j])
        slope = widen(b[j])
        if decays:
            slope += shrink * number
        a[j] = narrow(number - rate * slope, a[j])


@compiled(in_pieces=True)
def _sgd(
    start: int, stop: int, lr: float, momentum: float, nesterov: int, decay: float, p: Any, g: Any, v: Any
) -> None:
    rate, keep, shrink, decays = real(v, lr), real(v, momentum), real(v, decay), decay != 0
    a, b = p[start * ELEMENTS : stop * ELEMENTS], g[start * ELEMENTS : stop * ELEMENTS]
    c = v[start * ELEMENTS : stop * ELEMENTS]
    for j in range(a.size):
        number = widen(a[j])
        slope = widen(b[j])
        if decays:
            slope += shrink * number
        velocity = keep * c[j] + slope
        c[j] = velocity
        a[j] = narrow(number - rate * (slope + keep * velocity if nesterov else velocity), a[j])


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
    scalars = step, root, beta1, beta2, eps, decay
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        if p.flags.carray and m.flags.carray and v.flags.carray:
            _share(_adam, (*scalars, 1.0), p, g, m, v)
        else:
            updates.adam((p,), (g,), (m,), (v,), *scalars)


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
    scalars = step, root, beta1, beta2, eps
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        if p.flags.carray and m.flags.carray and v.flags.carray:
            _share(_adam, (*scalars, 0.0, keep), p, g, m, v)
        else:
            updates.adamw((p,), (g,), (m,), (v,), *scalars, keep)


def _share(loop: Any, scalars: tuple[Any, ...], p: Array, g: Array, *states: Array) -> None:
    """Run a compiled loop over a parameter, its gradient and its states, all but `g` contiguous."""
    arrays = contiguous(p).ravel(), contiguous(g).ravel(), *[state.ravel() for state in states]
    share_work(loop, -(-p.size // ELEMENTS), LIGHT * ELEMENTS, *scalars, *arrays)


@compiled(in_pieces=True)
def _adam(
    start: int,
    stop: int,
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    keep: float,
    p: Any,
    g: Any,
    m: Any,
    v: Any,
) -> None:
    kept = real(v, keep)
    rate, scale, least, shrink, decays = real(v, step), real(v, 1 / root), real(v, eps), real(v, decay), decay != 0
    keep1, take1, keep2, take2 = real(v, beta1), real(v, 1 - beta1), real(v, beta2), real(v, 1 - beta2)
    a, b = p[start * ELEMENTS : stop * ELEMENTS], g[start * ELEMENTS : stop * ELEMENTS]
    c, d = m[start * ELEMENTS : stop * ELEMENTS], v[start * ELEMENTS : stop * ELEMENTS]
    for j in range(a.size):
        number = widen(a[j])
        slope = widen(b[j])
        if decays:
            slope += shrink * number
        mean = keep1 * c[j] + take1 * slope
        square = keep2 * d[j] + take2 * (slope * slope)
        c[j] = mean
        d[j] = square
        a[j] = narrow(kept * number - rate * mean / (np.sqrt(square) * scale + least), a[j])


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
    scalars = lr, alpha, eps, momentum, decay
    for p, g, s, m, v in zip(params, grads, squares, means, velocities, strict=True):
        if all(array is None or array.flags.carray for array in (p, s, m, v)):
            flags = 0 if m is None else 1, 0 if v is None else 1
            _share(_rmsprop, (*scalars, *flags), p, g, s, s if m is None else m, s if v is None else v)
        else:
            updates.rmsprop((p,), (g,), (s,), (m,), (v,), *scalars)


@compiled(in_pieces=True)
def _rmsprop(
    start: int,
    stop: int,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    decay: float,
    is_centered: int,
    has_velocity: int,
    p: Any,
    g: Any,
    s: Any,
    m: Any,
    v: Any,
) -> None:
    """Without means or velocities `m` or `v` is any array of their type, and not read."""
    rate, least, keep, shrink, decays = real(s, lr), real(s, eps), real(s, momentum), real(s, decay), decay != 0
    old, new, zero = real(s, alpha), real(s, 1 - alpha), real(s, 0.0)
    a, b = p[start * ELEMENTS : stop * ELEMENTS], g[start * ELEMENTS : stop * ELEMENTS]
    c, d = s[start * ELEMENTS : stop * ELEMENTS], m[start * ELEMENTS : stop * ELEMENTS]
    e = v[start * ELEMENTS : stop * ELEMENTS]
    for j in range(a.size):
        number = widen(a[j])
        slope = widen(b[j])
        if decays:
            slope += shrink * number
        variance = old * c[j] + new * (slope * slope)
        c[j] = variance
        if is_centered:
            mean = old * d[j] + new * slope
            d[j] = mean
            variance -= mean * mean
            variance = zero if variance < zero else variance  # by rounding; NaN stays NaN
        slope /= np.sqrt(variance) + least
        if has_velocity:
            slope += keep * e[j]
            e[j] = slope
        a[j] = narrow(number - rate * slope, a[j])
