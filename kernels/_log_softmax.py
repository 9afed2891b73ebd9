"""The logarithm of softmax."""

from typing import Any

import numpy as np

from plugrad.kernels._arguments import Array
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import Budget, Inputs, Kernel, Mistake
from plugrad.kernels._softmax import sample_logits


def log_softmax(x: Any, *, axis: int = -1, out: Any = None) -> Array:
    """Logarithm of softmax along one axis, ``y_j = x_j - log(sum_k exp(x_k))``.

    Parameters
    ----------
    x : array_like
        Logits, any shape with at least one class along `axis`; float16, bfloat16, float32 or float64. Integers,
        booleans and sequences become float64.
    axis : int
        The axis of the classes.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Logarithms of probabilities, shape and dtype of `x`; ``-inf`` where the logit is. A row that holds NaN or
        ``+inf``, or nothing but ``-inf``, is NaN.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`.

    Notes
    -----
    With ``m`` the largest logit, ``y_j = (x_j - m) - log1p(sum_{k != argmax} exp(x_k - m))``: the logarithm of a
    probability close to 1 keeps its relative accuracy, where ``log(sum)`` would give 0.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.log_softmax([50.0, 0.0])
    array([-1.92874985e-22, -5.00000000e+01])
    """
    return forward("log_softmax", x, out, axis)


def log_softmax_backward(dy: Any, y: Any, *, axis: int = -1, out: Any = None) -> Array:
    """Gradient of `log_softmax`: ``dx_j = dy_j - exp(y_j) * sum_k dy_k``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the log-probabilities, any shape.
    y : array_like
        The result of `log_softmax`, same shape as `dy`.
    axis : int
        The axis of the classes.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the logits, in the promoted dtype of `dy` and `y`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax`, and if the shapes differ.

    Examples
    --------
    >>> import math
    >>> from plugrad import kernels as K
    >>> K.log_softmax_backward([1.0, 0.0], [math.log(0.25), math.log(0.75)]).round(6)
    array([ 0.75, -0.75])
    """
    return backward("log_softmax_backward", dy, y, out, axis)


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(scale=3.0, size=(rows, classes))
    x -= x.max(axis=-1, keepdims=True)
    y = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


KERNELS = (
    Kernel(
        function=log_softmax,
        formula="y_j = x_j − log Σ exp(x_k)",
        arguments=("x",),
        results=("y",),
        options=("axis",),
        backward="log_softmax_backward",
        sample=sample_logits,
        mistakes=(
            Mistake({"x": np.ones((2, 0))}, ValueError, "log_softmax: x: expected at least one class along axis 1"),
            Mistake({"axis": -3}, ValueError, r"log_softmax: axis: expected an axis in \[-2, 2\), got -3"),
            Mistake({"x": np.ones((2, 3), object)}, TypeError, "log_softmax: x: expected .*, got dtype object"),
        ),
        passes=2,
        operations=5,
        tolerance=4,
        budget=Budget(ulp=3.0, of="logits"),
    ),
    Kernel(
        function=log_softmax_backward,
        formula="dx_j = dy_j − exp(y_j) Σ dy_k",
        arguments=("dy", "y"),
        results=("dx",),
        options=("axis",),
        sample=_sample_backward,
        mistakes=(
            Mistake({"y": np.ones((1, 3))}, ValueError, r"log_softmax_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"axis": "last"}, TypeError, "log_softmax_backward: axis: expected one integer, got 'last'"),
        ),
        passes=3,
        operations=4,
        tolerance=8,
    ),
)
