"""Softmax."""

from __future__ import annotations

from plugrad.backends import contract
from plugrad.kernels._arguments import Array, ArrayLike
from plugrad.kernels._call import backward, forward
from plugrad.kernels._kernel import kernel


@kernel(contract.Rowwise, "y_j = exp(x_j) / Σ exp(x_k)", results=("y",))
def softmax(x: ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
    """Softmax along one axis, ``y_j = exp(x_j) / sum_k exp(x_k)``.

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
        Probabilities, shape and dtype of `x`. A row that holds NaN or ``+inf``, or nothing but ``-inf``, is NaN.

    Raises
    ------
    TypeError
        If `x` is complex, text or objects, lies on another device than the backend computes on, `axis` is no
        integer, or `out` has another dtype.
    ValueError
        If `axis` is out of range, or `out` has another shape, is read-only, or shares part of its
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


@kernel(contract.RowwiseBackward, "dx_j = y_j (dy_j − Σ dy_k y_k)", results=("dx",))
def softmax_backward(dy: ArrayLike, y: ArrayLike, *, axis: int = -1, out: Array | None = None) -> Array:
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
