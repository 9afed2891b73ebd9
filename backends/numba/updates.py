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


@compiled()
def _descend(start: int, stop: int, lr: float, decay: float, p: Any, g: Any) -> None:
    rate, shrink, decays = real(p, lr), real(p, decay), decay != 0
    a, b = p[start * ELEMENTS : stop * ELEMENTS], g[start * ELEMENTS : stop * ELEMENTS]
    for j in range(a.size):
        number = widen(a[j])
        slope = widen(b[j])
        if decays:
            slope += shrink * number
        a[j] = narrow(number - rate * slope, a[j])


@compiled()
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
        if not (p.flags.carray and m.flags.carray and v.flags.carray):
            updates.adam((p,), (g,), (m,), (v,), *scalars)
            continue
        arrays = contiguous(p).ravel(), contiguous(g).ravel(), m.ravel(), v.ravel()
        share_work(_adam, -(-p.size // ELEMENTS), LIGHT * ELEMENTS, *scalars, *arrays)


@compiled()
def _adam(
    start: int,
    stop: int,
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
    p: Any,
    g: Any,
    m: Any,
    v: Any,
) -> None:
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
        a[j] = narrow(number - rate * mean / (np.sqrt(square) * scale + least), a[j])
