"""The logistic sigmoid."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Elementwise, "y = 1 / (1 + exp(-x))", results=("y",))
def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
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


@kernel(contract.ElementwiseBackward, "dx = dy * y * (1 - y)", results=("dx",))
def sigmoid_backward(dy: ArrayLike, y: ArrayLike, *, out: Array | None = None) -> Array:
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
