"""Gradient descent on any function, for teaching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends.selection import refuse_in_capture
from plugrad.kernels._arguments import ArrayLike
from plugrad.kernels.gradcheck._arrays import Float64Array, as_argument, as_float64
from plugrad.kernels.gradcheck._differences import gradient


def gradient_descent(
    f: Callable[[Any], Any],
    x0: ArrayLike,
    *,
    lr: float = 0.01,
    steps: int = 1000,
    df: Callable[[Any], Any] | None = None,
    callback: Callable[[int, Any, float], Any] | None = None,
) -> Float64Array | float:
    """Minimise a function by gradient descent: ``x = x - lr df/dx`` in each step.

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x0` and returns one number.
    x0 : array_like
        The start. It is not changed.
    lr : float
        The learning rate.
    steps : int
        The number of steps.
    df : callable, optional
        The gradient of `f`; by default it is computed by central differences.
    callback : callable, optional
        Called as ``callback(step, x, f(x))`` before the first step and after each.

    Returns
    -------
    x : float64 array of the shape of `x0`, or number

    Raises
    ------
    ValueError
        If `lr` or `steps` is negative.
    FloatingPointError
        If a step leads to NaN or infinity.

    Examples
    --------
    >>> from plugrad.kernels.gradcheck import gradient_descent
    >>> round(gradient_descent(lambda x: (x - 3) ** 2, 0.0, lr=0.1, steps=100), 6)
    3.0
    """
    refuse_in_capture("gradcheck.gradient_descent: a capture does not record it; call it outside of the block")
    if not lr >= 0 or steps < 0:
        raise ValueError(f"gradient_descent: lr, steps: expected no negative numbers, got {lr}, {steps}")
    x = as_float64("x0", x0).copy()
    for step in range(steps + 1):
        if step:
            try:
                following = x - lr * np.asarray(gradient(f, x) if df is None else df(as_argument(x)))
            except OverflowError:  # Python's numbers, unlike NumPy's, do not become infinite
                following = np.full_like(x, np.inf)
            if not np.isfinite(following).all():
                raise FloatingPointError(
                    f"gradient_descent: step {step}: from {x} it leads to {following}; take a smaller lr than {lr}"
                )
            x = following
        if callback:
            callback(step, as_argument(x), float(f(as_argument(x))))
    return as_argument(x)
