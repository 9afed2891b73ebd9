"""The rectified linear unit."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Elementwise, "y = max(x, 0)", results=("y",))
def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
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


@kernel(contract.ElementwiseBackward, "dx = dy where y > 0, else 0", results=("dx",))
def relu_backward(dy: ArrayLike, y: ArrayLike, *, out: Array | None = None) -> Array:
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
