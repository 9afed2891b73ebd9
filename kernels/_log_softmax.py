"""The logarithm of softmax."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Rowwise, "y_j = x_j − log Σ exp(x_k)", results=("y",))
def log_softmax(x: ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    """Logarithm of softmax along one axis, ``y_j = x_j - log(sum_k exp(x_k))``.

    Parameters
    ----------
    x : array_like
        Logits, at least one dimension; float16, bfloat16, float32 or float64. Integers,
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


@kernel(contract.RowwiseBackward, "dx_j = dy_j − exp(y_j) Σ dy_k", results=("dx",))
def log_softmax_backward(dy: ArrayLike, y: ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
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
