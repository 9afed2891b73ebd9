"""The logistic sigmoid."""

from typing import Any

import numpy as np

from plugrad.kernels._arguments import Array
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import Budget, Inputs, Kernel, Mistake


def sigmoid(x: Any, *, out: Any = None) -> Array:
    """Logistic sigmoid, ``y = 1 / (1 + exp(-x))``, element by element.

    It neither overflows nor loses the small results: ``sigmoid(-100)`` in float32 is 3.8e-44.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`, values in [0, 1]. NaN stays NaN.

    Raises
    ------
    TypeError
        If `x` is complex, text or objects, lies on another device than the backend computes on, or `out` has
        another dtype.
    ValueError
        If `out` has another shape, is read-only, or shares part of its memory with `x`.

    Notes
    -----
    Computed from ``e = exp(-abs(x))``, which never overflows, as ``1 / (1 + e)`` for positive `x` and
    ``e / (1 + e)`` for negative.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.sigmoid([-1000.0, 0.0, 1000.0])
    array([0. , 0.5, 1. ])
    """
    return forward("sigmoid", x, out)


def sigmoid_backward(dy: Any, y: Any, *, out: Any = None) -> Array:
    """Gradient of `sigmoid`: ``dx = dy * y * (1 - y)``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    y : array_like
        The result of `sigmoid`, same shape as `dy`.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the promoted dtype of `dy` and `y`.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid`, and if the shapes differ.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.sigmoid_backward([1.0, 2.0], [0.5, 0.25])
    array([0.25 , 0.375])
    """
    return backward("sigmoid_backward", dy, y, out)


def _sample(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(scale=3.0, size=(rows, classes))
    x[rng.random(x.shape) < 0.05] *= 30.0
    return {"x": x.astype(dtype)}


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    y = 1.0 / (1.0 + np.exp(-rng.normal(scale=3.0, size=(rows, classes))))
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


KERNELS = (
    Kernel(
        function=sigmoid,
        formula="y = 1 / (1 + exp(-x))",
        arguments=("x",),
        results=("y",),
        backward="sigmoid_backward",
        sample=_sample,
        mistakes=(
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "sigmoid: x: expected .*, got dtype complex128"),
            Mistake({"out": np.ones((3, 2), np.float32)}, ValueError, r"sigmoid: out: expected shape \(2, 3\)"),
        ),
        passes=2,
        operations=4,
        tolerance=4,
        budget=Budget(ulp=3.0, of="result"),
    ),
    Kernel(
        function=sigmoid_backward,
        formula="dx = dy * y * (1 - y)",
        arguments=("dy", "y"),
        results=("dx",),
        sample=_sample_backward,
        mistakes=(
            Mistake({"y": np.ones((2, 2))}, ValueError, r"sigmoid_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"dy": ["a"] * 3}, TypeError, "sigmoid_backward: dy: expected .*, got dtype <U1"),
        ),
        passes=3,
        operations=3,
        tolerance=4,
    ),
)
