"""The Gaussian error linear unit."""

from __future__ import annotations

from typing import Any, Literal, cast, get_args, get_type_hints

from plugrad.backends import contract
from plugrad.backends.options import GeluOptions
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import ELEMENTWISE, backward, forward
from plugrad.kernels._kernel import kernel

APPROXIMATIONS = get_args(get_type_hints(GeluOptions)["approximate"])


@kernel(contract.ElementwiseWithOptions, "y = x (1 + erf(x / √2)) / 2", results=("y",))
def gelu(x: ArrayLike, *, approximate: Literal["none", "tanh"] = "none", out: Array | None = None) -> Array:
    """Gaussian error linear unit, ``y = x (1 + erf(x / sqrt(2))) / 2``, element by element.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    approximate : {"none", "tanh"}
        ``"tanh"`` computes ``y = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`` instead, as GPT-2 does.
    out : array, optional
        Where to write the result: same shape and dtype, any strides; may be `x` itself.

    Returns
    -------
    y : array
        Shape and dtype of `x`; 0 for ``-inf``. NaN stays NaN. Within 4 ulp, for large negative float64 numbers within
        4 ulp times ``|log(|y / x|)|``.

    Raises
    ------
    TypeError
        As for `relu`, and if `approximate` is no string.
    ValueError
        As for `relu`, and if `approximate` is another string.

    Notes
    -----
    Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415, 2016.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.gelu([0.0, 1.0, -30.0])
    array([ 0.00000000e+000,  8.41344746e-001, -1.47201418e-196])
    >>> K.gelu(1.0, approximate="tanh").round(6)
    np.float64(0.841192)
    """
    return forward("gelu", x, out, ELEMENTWISE, gelu_options("gelu", approximate))


@kernel(contract.ElementwiseBackwardWithOptions, "dx = dy (Φ(x) + x φ(x)), of the normal distribution", results=("dx",))
def gelu_backward(
    dy: ArrayLike, x: ArrayLike, *, approximate: Literal["none", "tanh"] = "none", out: Array | None = None
) -> Array:
    """Gradient of `gelu`: ``dx = dy (1 + erf(x / sqrt(2))) / 2 + dy x exp(-x^2 / 2) / sqrt(2 pi)``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, any shape.
    x : array_like
        The argument of `gelu`, same shape as `dy`.
    approximate : {"none", "tanh"}
        As for `gelu`: with ``"tanh"`` the derivative of that formula.
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
        As for `gelu`, and if the shapes differ.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.gelu_backward([1.0, 1.0], [0.0, -40.0])
    array([ 0.5, -0. ])
    """
    return backward("gelu_backward", dy, x, out, ELEMENTWISE, gelu_options("gelu_backward", approximate), "x")


def gelu_options(kernel: str, approximate: Any) -> GeluOptions:
    """The options of `gelu`, checked; `kernel` is the name in messages."""
    expected = f"{kernel}: approximate: expected {' or '.join(map(repr, APPROXIMATIONS))}, got {approximate!r}"
    if not isinstance(approximate, str):
        raise TypeError(expected)
    if approximate not in APPROXIMATIONS:
        raise ValueError(expected)
    return GeluOptions(cast(Literal["none", "tanh"], approximate))
