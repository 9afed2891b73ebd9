"""Softmax."""

from typing import Any

import numpy as np

from plugrad.kernels._arguments import Array
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import Budget, Inputs, Kernel, Mistake


def softmax(x: Any, *, axis: int = -1, out: Any = None) -> Array:
    """Softmax along one axis, ``y_j = exp(x_j) / sum_k exp(x_k)``.

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
        Probabilities, shape and dtype of `x`. A row that holds NaN or ``+inf``, or nothing but ``-inf``, is NaN.

    Raises
    ------
    TypeError
        If `x` is complex, text or objects, lies on another device than the backend computes on, `axis` is no
        integer, or `out` has another dtype.
    ValueError
        If there is no class, `axis` is out of range, or `out` has another shape, is read-only, or shares part of its
        memory with `x`.

    Notes
    -----
    The largest logit is subtracted first, so that nothing overflows; the quotient is unchanged by it (Goodfellow,
    Bengio and Courville, "Deep Learning", section 4.1).

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.softmax([[1.0, 1.0], [0.0, 1e4]])
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    return forward("softmax", x, out, axis)


def softmax_backward(dy: Any, y: Any, *, axis: int = -1, out: Any = None) -> Array:
    """Gradient of `softmax`: ``dx_j = y_j * (dy_j - sum_k dy_k y_k)``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the probabilities, any shape.
    y : array_like
        The result of `softmax`, same shape as `dy`.
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

    Notes
    -----
    It is the product of `dy` with the Jacobian ``diag(y) - y y^T``, which is never built.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.softmax_backward([1.0, 0.0], [0.5, 0.5])
    array([ 0.25, -0.25])
    """
    return backward("softmax_backward", dy, y, out, axis)


def sample_logits(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Logits of moderate size with some rows far off zero and some far apart."""
    x = rng.normal(scale=3.0, size=(rows, classes))
    x[::5] += 100.0
    x[2::7] *= 10.0
    return {"x": x.astype(dtype)}


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    e = np.exp(rng.normal(scale=3.0, size=(rows, classes)))
    y = e / e.sum(axis=-1, keepdims=True)
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


KERNELS = (
    Kernel(
        function=softmax,
        formula="y_j = exp(x_j) / Σ exp(x_k)",
        arguments=("x",),
        results=("y",),
        options=("axis",),
        backward="softmax_backward",
        sample=sample_logits,
        mistakes=(
            Mistake({"x": np.ones((2, 0))}, ValueError, r"softmax: x: expected at least one class along axis 1, got"),
            Mistake({"x": np.float32(1)}, ValueError, "softmax: axis: expected an axis of an array of at least one"),
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "softmax: x: expected .*, got dtype complex128"),
            Mistake({"axis": 2}, ValueError, r"softmax: axis: expected an axis in \[-2, 2\), got 2"),
            Mistake({"axis": 0.5}, TypeError, "softmax: axis: expected one integer, got 0.5"),
            Mistake({"axis": (0, 1)}, TypeError, r"softmax: axis: expected one integer, got \(0, 1\)"),
            Mistake({"axis": None}, TypeError, "softmax: axis: expected one integer, got None"),
            Mistake({"axis": True}, TypeError, "softmax: axis: expected one integer, got True"),
            Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, r"softmax: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3), np.int32)}, TypeError, "softmax: out: expected dtype float32"),
        ),
        passes=2,
        operations=5,
        tolerance=8,
        budget=Budget(ulp=1.0, of="formula"),
    ),
    Kernel(
        function=softmax_backward,
        formula="dx_j = y_j (dy_j − Σ dy_k y_k)",
        arguments=("dy", "y"),
        results=("dx",),
        options=("axis",),
        sample=_sample_backward,
        mistakes=(
            Mistake({"y": np.ones((2, 2))}, ValueError, r"softmax_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"axis": 5}, ValueError, r"softmax_backward: axis: expected an axis in \[-2, 2\), got 5"),
        ),
        passes=3,
        operations=4,
        tolerance=16,
    ),
)
