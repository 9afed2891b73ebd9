"""Jacobians and optimizers in float64, independent of the library. The oracles of kernels are in their records."""

from typing import Any

import numpy as np

from plugrad.tests.records import RECORDS
from plugrad.tests.records._record import Array, double


def jacobian(name: str, *arguments: Any) -> tuple[Array, ...]:
    """The Jacobian called `name`: row i of each array is the gradient of the i-th result of a row."""
    if name == "affine_jacobian":
        x, w = map(double, arguments)
        identity = np.eye(w.shape[1])
        by_x, by_b = (np.broadcast_to(z, (*x.shape[:-1], *z.shape)) for z in (w.T, identity))
        return by_x, np.einsum("...i,jk->...jik", x, identity), by_b
    y = double(arguments[0])
    backward = RECORDS[name.replace("jacobian", "backward")].oracle
    rows = [backward(np.broadcast_to(upstream, y.shape), y)[0] for upstream in np.eye(y.shape[-1])]
    return (np.stack(rows, axis=-2) if rows else np.zeros((*y.shape, 0)),)


def sgd(
    p: Any, grads: Any, lr: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Array:
    """A parameter after a step for each gradient."""
    v = np.zeros_like(p)
    for step, g in enumerate(grads):
        d = g + weight_decay * p
        v = momentum * v + d
        p = p - (lr(step) if callable(lr) else lr) * (d + momentum * v if nesterov else v)
    return p


def adam(
    p: Any, grads: Any, lr: float = 0.001, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Array:
    """A parameter after a step for each gradient."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, g in enumerate(grads, 1):
        d = g + weight_decay * p
        m, v = betas[0] * m + (1 - betas[0]) * d, betas[1] * v + (1 - betas[1]) * d * d
        p = p - lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return p


def adamw(
    p: Any, grads: Any, lr: Any = 0.001, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
) -> Array:
    """A parameter after a step for each gradient."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, g in enumerate(grads, 1):
        rate = float(lr(step - 1) if callable(lr) else lr)
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        quotient = (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
        p = p - rate * (weight_decay * p) - rate * quotient
    return p


def rmsprop(
    p: Any,
    grads: Any,
    lr: Any = 0.01,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> Array:
    """A parameter after a step for each gradient."""
    s, m, v = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for step, g in enumerate(grads):
        d = g + weight_decay * p
        s, m = alpha * s + (1 - alpha) * d * d, alpha * m + (1 - alpha) * d
        variance = np.maximum(s - m * m, 0) if centered else s
        v = momentum * v + d / (np.sqrt(variance) + eps)
        p = p - (lr(step) if callable(lr) else lr) * v
    return p


def norm(arrays: Any) -> Any:
    """The norm of arrays as one vector, without overflow."""
    numbers = np.concatenate([np.ravel(array).astype(np.longdouble) for array in arrays])
    return np.sqrt((numbers * numbers).sum())
