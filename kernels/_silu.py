"""The sigmoid linear unit."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Elementwise, "y = x / (1 + exp(-x))", results=("y",))
def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Sigmoid linear unit, or swish, ``y = x / (1 + exp(-x))``, element by element.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`, within 4 ulp; 0 for ``-inf``. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        As for `relu`.

    Notes
    -----
    Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in reinforcement
    learning", Neural Networks 107, 2018.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.silu([0.0, 50.0, -100.0])
    array([ 0.00000000e+00,  5.00000000e+01, -3.72007598e-42])
    """
    return forward("silu", x, out)


@kernel(contract.ElementwiseBackward, "dx = dy s (1 + x (1 − s)), s = sigmoid(x)", results=("dx",))
def silu_backward(dy: ArrayLike, x: ArrayLike, *, out: Array | None = None) -> Array:
    """Gradient of `silu`: ``dx = dy * s * (1 + x * (1 - s))`` with ``s = sigmoid(x)``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    x : array_like
        The argument of `silu`, same shape as `dy`.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `x` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the promoted dtype of `dy` and `x`, within 4 ulp of the larger of
        ``|dx|`` and ``|dy|``.

    Raises
    ------
    TypeError, ValueError
        As for `relu_backward`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.silu_backward([1.0, 2.0], [0.0, 50.0])
    array([0.5, 2. ])
    """
    return backward("silu_backward", dy, x, out, name="x")
