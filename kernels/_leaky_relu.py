"""The leaky rectified linear unit."""

from __future__ import annotations

import math
from typing import Any

from plugrad.backends import contract
from plugrad.backends.options import LeakyReluOptions
from plugrad.kernels._arguments import Array, ArrayLike, number
from plugrad.kernels._call import ELEMENTWISE, backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.ElementwiseWithOptions, "y = x where x > 0, else s x, with s the negative slope", results=("y",))
def leaky_relu(x: ArrayLike, *, negative_slope: float = 0.01, out: Array | None = None) -> Array:
    """Leaky rectified linear unit, ``y = x`` where ``x > 0``, else ``negative_slope * x``, element by element.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    negative_slope : float
        The slope where `x` is not positive: any finite number.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`. NaN stays NaN.

    Raises
    ------
    TypeError
        As for `relu`, and if `negative_slope` is no number.
    ValueError
        As for `relu`, and if `negative_slope` is NaN or infinite.

    Notes
    -----
    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.leaky_relu([-2.0, 0.0, 2.5], negative_slope=0.5)
    array([-1. ,  0. ,  2.5])
    """
    return forward("leaky_relu", x, out, ELEMENTWISE, leaky_relu_options("leaky_relu", negative_slope))


@kernel(contract.ElementwiseBackwardWithOptions, "dx = dy where x > 0, else s dy", results=("dx",))
def leaky_relu_backward(
    dy: ArrayLike, x: ArrayLike, *, negative_slope: float = 0.01, out: Array | None = None
) -> Array:
    """Gradient of `leaky_relu`: ``dx = dy`` where ``x > 0``, else ``negative_slope * dy``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    x : array_like
        The argument of `leaky_relu`: only its sign counts. Same shape as `dy`.
    negative_slope : float
        As for `leaky_relu`.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `dy` or `x` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the argument, in the promoted dtype of `dy` and `x`. The slope at 0 and at NaN is
        `negative_slope`, as in PyTorch.

    Raises
    ------
    TypeError, ValueError
        As for `leaky_relu`, and if the shapes differ.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.leaky_relu_backward([1.0, 1.0, 1.0], [-2.0, 0.0, 2.5], negative_slope=0.5)
    array([0.5, 0.5, 1. ])
    """
    return backward(
        "leaky_relu_backward", dy, x, out, ELEMENTWISE, leaky_relu_options("leaky_relu_backward", negative_slope), "x"
    )


def leaky_relu_options(name: str, negative_slope: Any) -> LeakyReluOptions:
    """The options of `leaky_relu`, checked; `name` is that of the kernel or the layer, in messages."""
    return LeakyReluOptions(number(name, "negative_slope", negative_slope, "a finite number", math.isfinite))
