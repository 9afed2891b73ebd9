"""Derivatives by central differences.

The step balances the two errors of a central difference: ``h^2 f'''/6`` of the truncated series and ``eps f / h`` of
rounding. It is the cube root of the machine epsilon of the results (Press et al., "Numerical recipes", section 5.7).
For arguments larger than 1 it grows with their root, as some functions vary on the scale of their argument and others
on a scale of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from plugrad.backends.options import FLOAT64
from plugrad.backends.selection import refuse_in_capture
from plugrad.kernels._arguments import ArrayLike
from plugrad.kernels.gradcheck._arrays import Float64Array, as_float64, evaluate, machine_epsilon

ULP = 4  # the error that a result of a function is assumed to have


def gradient(f: Callable[[Any], Any], x: ArrayLike, *, step: float | None = None) -> Float64Array | float:
    """Gradient of a scalar function, by central differences.

    ``df/dx_i = (f(x + h e_i) - f(x - h e_i)) / 2h``

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x` (a number if `x` is one) and returns one number.
    x : array_like
        The point.
    step : float, optional
        The step ``h``; by default about the cube root of the machine epsilon of the result.

    Returns
    -------
    gradient : float64 array of the shape of `x`, or number

    Raises
    ------
    TypeError
        If `x` is complex, text or objects.
    ValueError
        If `f` returns anything but one number, or `step` is not positive.

    Examples
    --------
    >>> from plugrad.kernels.gradcheck import gradient
    >>> round(gradient(lambda x: x**2 + 5, 1.0), 9)
    2.0
    >>> gradient(lambda x: x[0] ** 2 + x[1] ** 3 + 1, [2.0, 3.0]).round(6)
    array([ 4., 27.])
    """
    found = jacobian(f, x, step=step)
    if found.shape != np.shape(x):
        raise ValueError(f"gradient: f: expected one number, got shape {found.shape[: found.ndim - np.ndim(x)]}")
    return found if found.ndim else float(found)


def jacobian(f: Callable[[Any], Any], x: ArrayLike, *, step: float | None = None) -> Float64Array:
    """Jacobian of a function of an array, by central differences.

    Parameters
    ----------
    f : callable
        Takes an array of float64 of the shape of `x` and returns an array or a number.
    x : array_like
        The point.
    step : float, optional
        The step; by default as for `gradient`.

    Returns
    -------
    jacobian : float64 array
        Shape ``(*y.shape, *x.shape)`` with ``y = f(x)``: ``jacobian[i, j]`` is ``dy_i / dx_j``.

    Raises
    ------
    TypeError, ValueError
        As for `gradient`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> from plugrad.kernels.gradcheck import jacobian
    >>> jacobian(K.softmax, [0.0, 0.0]).round(6)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    refuse_in_capture("gradcheck.jacobian: a capture does not record it; call it outside of the block")
    point = as_float64("x", x)
    y = evaluate(f, point)
    found = np.empty((y.size, point.size))
    for column in range(point.size):
        slopes = Slopes(f, point, column, step, y)
        found[:, column] = slopes.central
    return found.reshape(y.shape + point.shape)


class Slopes:
    """The slopes of a function to both sides of a point, along one entry of its argument."""

    CLOSER = 16  # the factor between a step and the next smaller one

    def __init__(
        self, f: Callable[[Float64Array], Any], x: Float64Array, entry: int, step: float | None, y: Float64Array
    ) -> None:
        self._f, self._x, self._entry, self._y = f, x, entry, y
        self._value = value = float(x.reshape(-1)[entry])
        if step is not None and not step > 0:
            raise ValueError(f"gradcheck: step: expected a positive number, got {step}")
        least = math.cbrt(machine_epsilon(y))
        self.step = step or max(least * math.sqrt(max(1.0, abs(value))), least**2 * abs(value))
        # The results are assumed to have errors of a few ulp.
        self.rounding = ULP * machine_epsilon(y) * float(np.max(np.abs(y), initial=0.0)) / self.step
        right, self._up = self._at(value + self.step)
        left, self._down = self._at(value - self.step)
        self._widths = left - value, right - value
        with np.errstate(all="ignore"):  # the function may be infinite or NaN there
            self.central: Float64Array = (self._up - self._down).reshape(-1) / (right - left)

    @property
    def number(self) -> float:
        """The central difference of a scalar function."""
        return float(self.central.item())

    def _at(self, value: float) -> tuple[float, Float64Array]:
        x = self._x.copy()
        x.reshape(-1)[self._entry] = value
        return value, evaluate(self._f, x).astype(FLOAT64)

    def sides(self) -> tuple[float, float]:
        """Return the slopes to the left and to the right."""
        left, right = self._widths
        y = self._y.astype(FLOAT64)
        with np.errstate(all="ignore"):
            return float(((self._down - y) / left).item()), float(((self._up - y) / right).item())

    def others(self) -> Iterator[Slopes]:
        """Iterate over these slopes and those of other steps: smaller ones, one for a small argument, larger ones."""
        yield self
        for times in (1 / self.CLOSER, self.CLOSER**-2, self.CLOSER**-3):
            yield self._with(times * self.step)
        if 0 < abs(self._value) < 1:
            yield self._with(math.cbrt(machine_epsilon(self._y)) * abs(self._value))
        for times in (64, 64**2):
            yield self._with(times * self.step)

    def _with(self, step: float) -> Slopes:
        return Slopes(self._f, self._x, self._entry, step, self._y)

    def kink(self) -> tuple[float, float] | None:
        """Return the slopes to the left and to the right if they differ, and do not change with a smaller step.

        Where a function is smooth they approach each other; where it jumps or is noisy they grow.
        """
        smaller = self._with(self.step / self.CLOSER)
        sides, closer = self.sides(), smaller.sides()
        jump = abs(closer[1] - closer[0])
        stay = all(abs(a - b) <= 0.1 * jump for a, b in zip(sides, closer, strict=True))
        return closer if stay and jump > 2 * smaller.rounding else None
