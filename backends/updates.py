"""How optimizers update parameters where they are: what a backend's functions do, and the default for them.

`p` is a parameter and `g` its gradient, of one dtype; the states, such as `v` and `m`, are in the dtype that they are
computed in, and are updated as well. These defaults take any arrays that have NumPy's operators.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from plugrad.backends.options import COMPUTE

Array: TypeAlias = Any
quietly = np.errstate(all="ignore")  # NaN and infinity are results like any other


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
    """``d = g + decay p``, ``v = momentum v + d``, ``p -= lr v``, or with Nesterov ``p -= lr (d + momentum v)``.

    Without momentum each `v` is None, and ``p -= lr d``.
    """
    for p, g, v in zip(params, grads, velocities, strict=True):
        slope = _slope(p, g, decay)
        if v is not None:
            v *= momentum
            v += slope
            slope = slope + momentum * v if nesterov else v
        p[...] = p.astype(slope.dtype, copy=False) - lr * slope


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
    """``m`` and ``v``: the means of ``d = g + decay p`` and of its square; ``p -= step m / (sqrt(v) / root + eps)``.

    `step` and `root` have what makes up for means that began at 0.
    """
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        slope = _slope(p, g, decay)
        p[...] = p.astype(slope.dtype, copy=False) - _adam_step(slope, m, v, step, root, beta1, beta2, eps)


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
    for p, g, m, v in zip(params, grads, means, squares, strict=True):
        slope = _slope(p, g, 0.0)
        p[...] = keep * p.astype(slope.dtype, copy=False) - _adam_step(slope, m, v, step, root, beta1, beta2, eps)


def _adam_step(
    slope: Array, m: Array, v: Array, step: float, root: float, beta1: float, beta2: float, eps: float
) -> Array:
    """Update the means, and return what the step takes off the parameter."""
    m *= beta1
    m += (1 - beta1) * slope
    v *= beta2
    v += (1 - beta2) * slope * slope
    return step * m / (v**0.5 / root + eps)


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
    """``s``: the mean of the square of ``d = g + decay p``; ``p -= lr d / (sqrt(s) + eps)``.

    With means ``m`` of d, ``s - m^2``, at least 0, takes the place of s. With velocities ``v = momentum v + d / (...)``
    and ``p -= lr v``. Else they are None.
    """
    for p, g, s, m, v in zip(params, grads, squares, means, velocities, strict=True):
        slope = _slope(p, g, decay)
        s *= alpha
        s += (1 - alpha) * slope * slope
        variance = s
        if m is not None:
            m *= alpha
            m += (1 - alpha) * slope
            variance = s - m * m
            variance = variance * (variance > 0)  # rounding may leave less than 0; NaN stays NaN
        slope = slope / (variance**0.5 + eps)
        if v is not None:
            v *= momentum
            v += slope
            slope = v
        p[...] = p.astype(slope.dtype, copy=False) - lr * slope


def _slope(p: Array, g: Array, decay: float) -> Array:
    slope = g.astype(COMPUTE[p.dtype], copy=False)
    return slope + decay * p.astype(slope.dtype, copy=False) if decay else slope


DEFAULTS: dict[str, Callable[..., None]] = {"sgd": sgd, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}
