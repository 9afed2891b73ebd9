"""The rectified linear unit."""

from typing import Any

import numpy as np

from plugrad.kernels._arguments import Array
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import Inputs, Kernel, Mistake


def relu(x: Any, *, out: Any = None) -> Array:
    """Rectified linear unit, ``y = max(x, 0)``, element by element.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`. NaN stays NaN.

    Raises
    ------
    TypeError
        If `x` is complex, text or objects, lies on another device than the backend computes on, or `out` has
        another dtype.
    ValueError
        If `out` has another shape, is read-only, or shares part of its memory with `x`.

    Notes
    -----
    Nair and Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.relu([-1.0, 0.0, 2.5])
    array([0. , 0. , 2.5])
    """
    return forward("relu", x, out)


def relu_backward(dy: Any, y: Any, *, out: Any = None) -> Array:
    """Gradient of `relu`: ``dx = dy`` where ``y > 0``, else 0.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    y : array_like
        The result of `relu`, or its argument: only the sign counts. Same shape as `dy`.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the promoted dtype of `dy` and `y`. Exactly 0 where `y` is 0,
        negative or NaN, whatever `dy` is there.

    Raises
    ------
    TypeError, ValueError
        As for `relu`, and if the shapes differ.

    Notes
    -----
    The derivative at 0, which does not exist, is taken as 0, as in PyTorch and TensorFlow.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.relu_backward([1.0, 2.0, 3.0], [0.0, 0.5, 4.0])
    array([0., 2., 3.])
    """
    return backward("relu_backward", dy, y, out)


def _sample(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(size=(rows, classes))
    x[rng.random(x.shape) < 0.05] = 0.0
    x[rng.random(x.shape) < 0.05] *= 1e3
    return {"x": x.astype(dtype)}


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"dy": rng.normal(size=(rows, classes)).astype(dtype), "y": _sample(rng, rows, classes, dtype)["x"]}


KERNELS = (
    Kernel(
        function=relu,
        formula="y = max(x, 0)",
        arguments=("x",),
        results=("y",),
        backward="relu_backward",
        sample=_sample,
        mistakes=(
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "relu: x: expected .*float64.*, got dtype complex128"),
            Mistake({"x": "text"}, TypeError, "relu: x: expected .*, got dtype <U4"),
            Mistake({"x": np.array([None])}, TypeError, "relu: x: expected .*, got dtype object"),
            Mistake({"x": [[1.0], [1.0, 2.0]]}, TypeError, "relu: x: expected an array or numbers in nested sequences"),
            Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, r"relu: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3), np.float64)}, TypeError, "relu: out: expected dtype float32"),
            Mistake({"out": [[0.0] * 3] * 2}, TypeError, "relu: out: expected a plain array of backend .*, got list"),
        ),
        passes=2,
        operations=1,
        tolerance=0,
    ),
    Kernel(
        function=relu_backward,
        formula="dx = dy where y > 0, else 0",
        arguments=("dy", "y"),
        results=("dx",),
        sample=_sample_backward,
        mistakes=(
            Mistake(
                {"y": np.ones((2, 2))},
                ValueError,
                r"relu_backward: y: expected the shape of dy, \(2, 3\), got \(2, 2\)",
            ),
            Mistake({"dy": np.ones((2, 3), complex)}, TypeError, "relu_backward: dy: expected .*got dtype complex128"),
            Mistake({"y": ["a"] * 3}, TypeError, "relu_backward: y: expected .*got dtype <U1"),
        ),
        passes=3,
        operations=1,
        tolerance=0,
    ),
)
