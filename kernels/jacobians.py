"""Explicit Jacobians of the kernels, for teaching and checking; backward kernels never build them.

Rows do not depend on each other, so each has a Jacobian of its own: ``jacobian[..., i, j]`` is the derivative of
element i of a row of results with respect to element j of the same row of arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.calls import follows_first
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.kernels._affine import fit
from plugrad.kernels._arguments import Array, ArrayLike, floating, promoted, real

__all__ = ["affine_jacobian", "relu_jacobian", "sigmoid_jacobian", "softmax_jacobian"]


@follows_first
def softmax_jacobian(y: ArrayLike) -> Array:
    """Jacobian of softmax, ``dy_i / dx_j = y_i (1 - y_i)`` for i = j, else ``-y_i y_j``.

    Parameters
    ----------
    y : array_like
        The result of `softmax`, shape ``(..., classes)``.

    Returns
    -------
    jacobian : array
        Shape ``(..., classes, classes)``, dtype of `y`. It is symmetric.

    Raises
    ------
    TypeError
        If `y` is complex, text or objects, or lies on another device than that of the backend.
    ValueError
        If `y` is a single number.

    Examples
    --------
    >>> from plugrad.kernels import softmax
    >>> from plugrad.kernels.jacobians import softmax_jacobian
    >>> softmax_jacobian(softmax([0.0, 0.0]))
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    backend, rows = _rows("softmax_jacobian", "y", y)
    work = rows.astype(COMPUTE[rows.dtype], copy=False)
    column, row = work[..., :, None], work[..., None, :]
    with np.errstate(all="ignore"):
        jacobian: Array = (column * (_identity(backend, work) - row)).astype(rows.dtype, copy=False)
        return jacobian


@follows_first
def relu_jacobian(y: ArrayLike) -> Array:
    """Jacobian of ReLU: 1 on the diagonal where ``y > 0``, else 0.

    Parameters
    ----------
    y : array_like
        The result of `relu`, or its argument, as only the sign counts; shape ``(..., n)``.

    Returns
    -------
    jacobian : array
        Shape ``(..., n, n)``, dtype of `y`. At 0, where the derivative does not exist, it is 0.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_jacobian`.

    Examples
    --------
    >>> from plugrad.kernels.jacobians import relu_jacobian
    >>> relu_jacobian([2.0, 0.0])
    array([[1., 0.],
           [0., 0.]])
    """
    backend, rows = _rows("relu_jacobian", "y", y)
    return diagonal(backend, (rows > 0).astype(rows.dtype))


@follows_first
def sigmoid_jacobian(y: ArrayLike) -> Array:
    """Jacobian of the logistic sigmoid: ``y (1 - y)`` on the diagonal.

    Parameters
    ----------
    y : array_like
        The result of `sigmoid`, shape ``(..., n)``.

    Returns
    -------
    jacobian : array
        Shape ``(..., n, n)``, dtype of `y`.

    Raises
    ------
    TypeError, ValueError
        As for `softmax_jacobian`.

    Examples
    --------
    >>> from plugrad.kernels.jacobians import sigmoid_jacobian
    >>> sigmoid_jacobian([0.5, 1.0])
    array([[0.25, 0.  ],
           [0.  , 0.  ]])
    """
    backend, rows = _rows("sigmoid_jacobian", "y", y)
    work = rows.astype(COMPUTE[rows.dtype], copy=False)
    with np.errstate(all="ignore"):
        return diagonal(backend, work * (1 - work)).astype(rows.dtype, copy=False)


@follows_first
def affine_jacobian(x: ArrayLike, w: ArrayLike) -> tuple[Array, Array, Array]:
    """Jacobians of ``y = x w + b`` with respect to `x`, `w` and `b`.

    ``dy_j / dx_i = w_ij``; ``dy_j / dw_ik = x_i`` for j = k, else 0; ``dy_j / db_k = 1`` for j = k, else 0.

    Parameters
    ----------
    x : array_like
        Inputs, shape ``(..., in)``.
    w : array_like
        Weights, shape ``(in, out)``.

    Returns
    -------
    dy_dx, dy_dw, dy_db : arrays
        Shapes ``(..., out, in)``, ``(..., out, in, out)`` and ``(..., out, out)``, in the promoted dtype of the
        arguments. The gradients of `w` and `b` are sums over the rows.

    Raises
    ------
    TypeError
        As for `softmax_jacobian`.
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> from plugrad.kernels.jacobians import affine_jacobian
    >>> dy_dx, dy_dw, dy_db = affine_jacobian([5.0], [[1.0, 2.0]])
    >>> dy_dx
    array([[1.],
           [2.]])
    >>> dy_dw
    array([[[5., 0.]],
    <BLANKLINE>
           [[0., 5.]]])
    """
    return _affine_jacobian(x, w)


def _affine_jacobian(x: Any, w: Any) -> tuple[Array, Array, Array]:
    """Check the arguments of `affine_jacobian` and compute it."""
    kernel = "affine_jacobian"
    refuse_in_capture(f"{kernel}: a capture does not record it; call it outside of the block")
    backend = backend_for(x)
    x, w = real(kernel, "x", x, backend), real(kernel, "w", w, backend)
    fit(kernel, x, w)
    x, w = promoted(kernel, backend, x=x, w=w)
    rows, (inputs, outputs) = x.shape[:-1], w.shape
    dy_dx, dy_dw, dy_db = (
        backend.empty((*rows, *shape), x.dtype)
        for shape in ((outputs, inputs), (outputs, inputs, outputs), (outputs, outputs))
    )
    dy_dx[...] = w.T
    dy_db[...] = _identity(backend, dy_db)
    dy_dw[...] = x[..., None, :, None] * dy_db[..., :, None, :]
    return dy_dx, dy_dw, dy_db


def _rows(kernel: str, name: str, y: Any) -> tuple[Backend, Any]:
    """Return the backend, and `y` as its array of at least one dimension."""
    refuse_in_capture(f"{kernel}: a capture does not record it; call it outside of the block")
    backend = backend_for(y)
    y = floating(kernel, name, y, backend)
    if not y.ndim:
        raise ValueError(f"{kernel}: {name}: expected shape (..., n), got a single number")
    return backend, y


def diagonal(backend: Backend, slopes: Any) -> Array:
    """Return the Jacobian of an elementwise function for each row of slopes: a matrix with the row as its diagonal."""
    jacobian: Array = _identity(backend, slopes) * slopes[..., None, :]
    return jacobian


def _identity(backend: Backend, like: Any) -> Any:
    """Return the identity matrix of the size of the last axis of an array, in its dtype."""
    return backend.asarray(np.eye(like.shape[-1], dtype=like.dtype))
