"""The hyperbolic tangent."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Elementwise, "y = tanh(x)", results=("y",))
def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Hyperbolic tangent, ``y = (exp(x) - exp(-x)) / (exp(x) + exp(-x))``, element by element.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`, in [-1, 1], within 4 ulp. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        As for `relu`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.tanh([0.0, 1e-9, -50.0])
    array([ 0.e+00,  1.e-09, -1.e+00])
    """
    return forward("tanh", x, out)


@kernel(contract.ElementwiseBackward, "dx = dy (1 − y²)", results=("dx",))
def tanh_backward(dy: ArrayLike, y: ArrayLike, *, out: Array | None = None) -> Array:
    """Gradient of `tanh`: ``dx = dy * (1 - y**2)``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    y : array_like
        The result of `tanh`, same shape as `dy`.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the promoted dtype of `dy` and `y`.

    Raises
    ------
    TypeError, ValueError
        As for `relu_backward`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.tanh_backward([1.0, 2.0], [0.0, 0.5])
    array([1. , 1.5])
    """
    return backward("tanh_backward", dy, y, out)
