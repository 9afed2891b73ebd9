"""The affine layer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from plugrad.backends import Backend, contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Out,
    can_take,
    fill,
    given_back,
    given_results,
    promoted,
    real,
    result,
    views,
)
from plugrad.kernels._kernel import kernel

GRADIENTS = ("dx", "dw", "db")

# Every value of `needs` in the order of GRADIENTS: a look-up takes less time than the checks of `needed`.
IN_ORDER = {names: names for count in range(3) for names in itertools.combinations(GRADIENTS, count)}
IN_ORDER[GRADIENTS] = GRADIENTS


@kernel(contract.Affine, "y = x w + b", results=("y",))
def affine(x: ArrayLike, w: ArrayLike, b: ArrayLike | None = None, *, out: Array | None = None) -> Array:
    """Affine layer, ``y = x w + b``.

    Parameters
    ----------
    x : array_like
        Inputs, shape ``(..., in)``.
    w : array_like
        Weights, shape ``(in, out)``.
    b : array_like, optional
        Biases, shape ``(out,)``.
    out : array, optional
        Where to write the result: shape ``(..., out)`` and dtype of the result, any strides; may be an argument of
        that shape.

    Returns
    -------
    y : array
        Shape ``(..., out)``, in the promoted dtype of the arguments; float16 and bfloat16 are multiplied and summed
        in float32. Integers and booleans become float64 alone; with floating arrays they are promoted as NumPy's
        ``@`` does.

    Raises
    ------
    TypeError
        If an argument is complex, text or objects, lies on another device than the backend computes on, or `out`
        has another dtype.
    ValueError
        If the shapes do not fit, or `out` has another shape, is read-only, or shares part of its memory with an
        argument.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> K.affine([[1.0, 2.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], [10.0, 20.0, 30.0])
    array([[11., 22., 33.]])
    """
    return _product(x, w, b, out)


def _product(x: Any, w: Any, b: Any, out: Any) -> Array:
    """Check the arguments of `affine` and compute it."""
    backend = backend_for(x)
    if type(x) is type(w) is backend.native and x.dtype is w.dtype and x.dtype in COMPUTE:
        is_ready = b is None or (type(b) is backend.native and b.dtype is x.dtype)
    else:
        if backend.foreign is not None:
            return in_library(backend.foreign, x, _product, x, w, b, out)
        is_ready = False
        x, w = real("affine", "x", x, backend), real("affine", "w", w, backend)
    rows, weights = x.shape, w.shape
    if len(weights) != 2 or not rows or rows[-1] != weights[0]:
        fit("affine", x, w)
    if not is_ready and b is None:
        x, w = promoted("affine", backend, x=x, w=w)
    elif not is_ready:
        x, w, b = promoted("affine", backend, x=x, w=w, b=biases("affine", b, w, backend))
    elif b is not None and b.shape != weights[1:]:
        biases("affine", b, w, backend)
    shape = (*rows[:-1], weights[1])
    if out is None:
        y: Any = backend.empty(shape, x.dtype)
    elif can_take(out, shape, x.dtype, x, w, b):
        y = out
    else:
        y, (x, w, b) = result("affine", "out", out, shape, x.dtype, backend, (x, w, b))
    if x.size and y.size:
        backend.functions["affine"](x, w, b, y)
    else:  # without inputs the sums are empty
        fill("affine", 0 if b is None else b, (y,), backend)
    return y if y.ndim else given_back(y, out, backend)


@kernel(contract.AffineBackward, "dx = dy wᵀ, dw = xᵀ dy, db = Σ_rows dy", results=GRADIENTS)
def affine_backward(
    dy: ArrayLike, x: ArrayLike, w: ArrayLike, *, needs: Iterable[str] = GRADIENTS, out: Out = None
) -> tuple[Array, Array, Array]:
    """Gradients of `affine`: ``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to the result, shape ``(..., out)``.
    x : array_like
        The inputs, shape ``(..., in)``.
    w : array_like
        The weights, shape ``(in, out)``.
    needs : iterable of str
        Which of ``"dx"``, ``"dw"`` and ``"db"`` to compute.
    out : tuple of arrays, optional
        Where to write ``(dx, dw, db)``, None for a new array; may be arguments of that shape. If one gradient only is
        needed, an array by itself will do.

    Returns
    -------
    dx, dw, db : array or None
        Gradients with respect to `x`, `w` and the biases, in the promoted dtype of the arguments; None where not
        needed. Sums over the rows keep their accuracy for any number of rows.

    Raises
    ------
    TypeError, ValueError
        As for `affine`, and if `needs` names anything else, or `out` has an array for what is not needed.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> dx, dw, db = K.affine_backward([[1.0, 2.0]], [[3.0]], [[1.0, 1.0]])
    >>> dx, dw, db
    (array([[3.]]), array([[3., 6.]]), array([1., 2.]))
    """
    return _backward(dy, x, w, needs, out)


def _backward(dy: Any, x: Any, w: Any, needs: Any, out: Any) -> tuple[Array, Array, Array]:
    """Check the arguments of `affine_backward` and compute it."""
    name = "affine_backward"
    backend = backend_for(dy)
    is_ready = (
        type(dy) is type(x) is type(w) is backend.native
        and dy.dtype is x.dtype
        and dy.dtype is w.dtype
        and dy.dtype in COMPUTE
    )
    if not is_ready:
        if backend.foreign is not None:
            return in_library(backend.foreign, dy, _backward, dy, x, w, needs, out)
        dy, x, w = real(name, "dy", dy, backend), real(name, "x", x, backend), real(name, "w", w, backend)
    rows, weights = x.shape, w.shape
    if len(weights) != 2 or not rows or rows[-1] != weights[0]:
        is_swapped = rows[-1:] == weights[1:] and dy.shape[-1:] == weights[:1]
        fit(name, x, w, "; dy comes first, then x" if is_swapped else None)
    shape = (*rows[:-1], weights[1])
    if dy.shape != shape:
        raise ValueError(f"{name}: dy: expected shape {shape} for x {x.shape} and w {w.shape}, got {dy.shape}")
    if not is_ready:
        dy, x, w = promoted(name, backend, dy=dy, x=x, w=w)
    wanted = needed(name, needs)
    dx: Any
    dw: Any
    db: Any
    if out is None:
        empty, dtype = backend.empty, dy.dtype
        dx = empty(rows, dtype) if "dx" in wanted else None
        dw = empty(weights, dtype) if "dw" in wanted else None
        db = empty(weights[1:], dtype) if "db" in wanted else None
    else:
        is_whole = type(out) is tuple and len(out) == 3
        given = out if is_whole else given_results(name, out, GRADIENTS, wanted[0] if len(wanted) == 1 else None)
        (dx, dw, db), (dy, x, w) = gradients(name, wanted, given, (rows, weights, weights[1:]), backend, (dy, x, w))
    compute = backend.functions[name]
    if dy.size and x.size:
        compute(dy, x, w, dx, dw, db)
    else:  # no rows, no inputs or no outputs: products are sums over nothing
        sums = db is not None and dy.size  # no inputs, but rows
        fill("" if sums else name, 0, (dx, dw) if sums else (dx, dw, db), backend)
        if sums:
            compute(dy, x, w, None, None, db)
    return dx, dw, db


def gradients(
    kernel: str,
    wanted: tuple[str, ...],
    given: tuple[Any, ...],
    shapes: tuple[tuple[int, ...], ...],
    backend: Backend,
    reads: tuple[Any, ...],
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arrays for the gradients, None where not wanted, and the arrays that are read (see `result`).

    An array that is given for a gradient that is not wanted is refused.
    """
    dtype = reads[0].dtype
    are_ready = backend.native is np.ndarray  # and then whether all that are given can be written as they are
    places: list[Any] = []
    for name, out, shape in zip(GRADIENTS, given, shapes, strict=True):
        if name not in wanted:
            if out is not None:
                raise ValueError(f"{kernel}: out: expected None for {name}, which needs={wanted} does not ask for")
        elif out is None:
            out = backend.empty(shape, dtype)
        elif are_ready:
            are_ready = can_take(out, shape, dtype)
        places.append(out)
    dx, dw, db = places
    if are_ready and (dx is None or (dx is not dw and dx is not db)) and (dw is None or dw is not db):
        for read in reads:
            if read is not None and read.base is not None and any(views(read, out) for out in given if out is not None):
                break
        else:
            return (dx, dw, db), reads
    for i, (name, out, shape) in enumerate(zip(GRADIENTS, given, shapes, strict=True)):
        if out is not None:
            places[i], reads = result(kernel, f"out: {name}", out, shape, dtype, backend, reads, tuple(places[:i]))
    return tuple(places), reads


def fit(kernel: str, x: Any, w: Any, hint: str | None = None) -> None:
    """Refuse inputs and weights that cannot be multiplied, with the remedy if it is known."""
    if w.ndim != 2:
        raise ValueError(f"{kernel}: w: expected shape (in, out), got {w.shape}")
    if not x.ndim:
        raise ValueError(f"{kernel}: x: expected shape (..., in) with in = {w.shape[0]}, got a single number")
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{kernel}: x: expected {w.shape[0]} inputs along the last axis, as many as w {w.shape} has rows, "
            f"got shape {x.shape}{_shape_hint(x, w) if hint is None else hint}"
        )


def _shape_hint(x: Any, w: Any) -> str:
    if x.ndim > 2 and math.prod(x.shape[1:]) == w.shape[0]:
        return "; pass x.reshape(len(x), -1)"
    if x.shape[-1] == w.shape[1]:
        return "; if w is (out, in), pass w.T"
    return ""


def biases(kernel: str, b: Any, w: Any, backend: Backend) -> Any:
    """The biases for weights `w`."""
    b = real(kernel, "b", b, backend)
    if b.shape != w.shape[1:]:
        raise ValueError(
            f"{kernel}: b: expected shape {w.shape[1:]}, one bias per column of w {w.shape}, got {b.shape}"
            f"{'; pass b.ravel()' if b.ndim > 1 and b.size == w.shape[1] else ''}"
        )
    return b


def needed(kernel: str, needs: Iterable[str]) -> tuple[str, ...]:
    """The names of the gradients asked for, in order."""
    if type(needs) is tuple:
        try:
            return IN_ORDER[needs]
        except (KeyError, TypeError):  # in another order, or wrong
            pass
    try:
        names = (needs,) if isinstance(needs, str) else tuple(needs)
    except TypeError as error:
        raise TypeError(f"{kernel}: needs: expected names out of {', '.join(GRADIENTS)}; got {needs!r}") from error
    for name in names:
        if name not in GRADIENTS:
            raise ValueError(f"{kernel}: needs: expected some of {', '.join(GRADIENTS)}; got {name!r}")
    return tuple(name for name in GRADIENTS if name in names)
