"""How optimizers update parameters where they are: what a backend's `sgd` and `adam` do, and the default for them.

`p` is a parameter and `g` its gradient, of one dtype; the state, `v` and `m`, is in the dtype that they are computed
in, and is updated as well. These defaults take any arrays that have NumPy's operators.
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
        m *= beta1
        m += (1 - beta1) * slope
        v *= beta2
        v += (1 - beta2) * slope * slope
        p[...] = p.astype(slope.dtype, copy=False) - step * m / (v**0.5 / root + eps)


def _slope(p: Array, g: Array, decay: float) -> Array:
    slope = g.astype(COMPUTE[p.dtype], copy=False)
    return slope + decay * p.astype(slope.dtype, copy=False) if decay else slope


DEFAULTS: dict[str, Callable[..., None]] = {"sgd": sgd, "adam": adam}
