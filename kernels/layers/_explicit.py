"""Gradients by explicit Jacobians, ``use_jacobian=True``: slow, for teaching and checking."""

import math
from collections.abc import Callable
from typing import Any

from plugrad.backends.options import COMPUTE
from plugrad.kernels._arguments import Array


def gradient_along(axis: int, dy: Any, y: Any, jacobian: Callable[[Any], Array]) -> Any:
    """Compute the gradient of a kernel whose rows lie along an axis; `jacobian` takes rows along the last one."""
    if not y.ndim:
        raise ValueError("use_jacobian: expected an array of at least one dimension, got a single number")
    if y.ndim < 2:
        return gradient_of_rows(dy, jacobian(y), y.shape).astype(y.dtype, copy=False)
    rows = y.swapaxes(axis, -1)
    if dy.shape == y.shape:
        dy = dy.swapaxes(axis, -1)
    return gradient_of_rows(dy, jacobian(rows), rows.shape).swapaxes(axis, -1).astype(y.dtype, copy=False)


def gradient_of_rows(dy: Any, jacobian: Any, expected: tuple[int, ...]) -> Any:
    """Multiply the upstream gradient of each row by the row's Jacobian: ``sum_i dy_i jacobian_i``.

    `expected` is the shape of `dy`. The result has the shape of the argument for each row.
    """
    if dy.shape != expected:
        raise ValueError(f"use_jacobian: dy: expected shape {expected}, got {dy.shape}")
    dtype, arguments = COMPUTE[jacobian.dtype], jacobian.shape[len(expected) :]
    rows, outputs, inputs = math.prod(expected[:-1]), expected[-1], math.prod(arguments)
    factors = dy.astype(dtype, copy=False).reshape(rows, 1, outputs)
    found = factors @ jacobian.astype(dtype, copy=False).reshape(rows, outputs, inputs)
    return found.reshape(*expected[:-1], *arguments)
