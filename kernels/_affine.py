"""The affine layer."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, floating, given_results, promoted, result
from plugrad.kernels._kernel import Inputs, Kernel, Mistake

GRADIENTS = ("dx", "dw", "db")


def affine(x: Any, w: Any, b: Any = None, *, out: Any = None) -> Array:
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
        in float32.

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
    backend = backend_for(x)
    x = floating("affine", "x", x, backend)
    w = floating("affine", "w", w, backend)
    fit("affine", x, w)
    if b is None:
        if x.dtype != w.dtype:
            x, w = promoted((x, w))
    else:
        b = biases("affine", b, w, backend)
        if not x.dtype == w.dtype == b.dtype:
            x, w, b = promoted((x, w, b))
    reads = [x, w] if b is None else [x, w, b]
    y = result("affine", "out", out, x.shape[:-1] + w.shape[1:], x.dtype, backend, reads)
    if x.size and y.size:
        backend.functions["affine"](reads[0], reads[1], b if b is None else reads[2], y)
    elif y.size:  # no inputs: nothing is summed
        y[...] = 0 if b is None else reads[2]
    return y


def affine_backward(
    dy: Any, x: Any, w: Any, *, needs: Iterable[str] = GRADIENTS, out: Any = None
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
    kernel = "affine_backward"
    backend = backend_for(dy)
    dy = floating(kernel, "dy", dy, backend)
    x = floating(kernel, "x", x, backend)
    w = floating(kernel, "w", w, backend)
    fit(kernel, x, w)
    shape = x.shape[:-1] + w.shape[1:]
    if dy.shape != shape:
        raise ValueError(f"{kernel}: dy: expected shape {shape} for x {x.shape} and w {w.shape}, got {dy.shape}")
    if not dy.dtype == x.dtype == w.dtype:
        dy, x, w = promoted((dy, x, w))
    wanted = needed(kernel, needs)
    given = given_results(kernel, out, GRADIENTS, lone=wanted[0] if len(wanted) == 1 else None)
    refuse_unneeded(kernel, wanted, given)
    reads = [dy, x, w]
    dx = dw = db = None
    if "dx" in wanted:
        dx = result(kernel, "out: dx", given[0], x.shape, dy.dtype, backend, reads)
    if "dw" in wanted:
        dw = result(kernel, "out: dw", given[1], w.shape, dy.dtype, backend, reads, (dx,))
    if "db" in wanted:
        db = result(kernel, "out: db", given[2], w.shape[1:], dy.dtype, backend, reads, (dx, dw))
    if dy.size and x.size:
        backend.functions[kernel](*reads, dx, dw, db)
    else:
        _without_products(backend.functions[kernel], reads, dx, dw, db)
    return dx, dw, db


def _without_products(compute: Callable[..., None], reads: list[Array], dx: Any, dw: Any, db: Any) -> None:
    """The gradients where there are no rows, no inputs or no outputs: sums over nothing, unless there are rows."""
    for array in (dx, dw):
        if array is not None:
            array[...] = 0
    if db is not None and reads[0].size:
        compute(*reads, None, None, db)
    elif db is not None:
        db[...] = 0


def fit(kernel: str, x: Array, w: Array) -> None:
    """Refuse inputs and weights that cannot be multiplied."""
    if w.ndim != 2:
        raise ValueError(f"{kernel}: w: expected shape (in, out), got {w.shape}")
    if not x.ndim:
        raise ValueError(f"{kernel}: x: expected shape (..., in) with in = {w.shape[0]}, got a single number")
    if x.shape[-1] != w.shape[0]:
        raise ValueError(
            f"{kernel}: x: expected {w.shape[0]} inputs along the last axis, as many as w {w.shape} has rows, "
            f"got shape {x.shape}{'; if w is (out, in), pass w.T' if x.shape[-1] == w.shape[1] else ''}"
        )


def biases(kernel: str, b: Any, w: Array, backend: Backend) -> Array:
    """The biases for weights `w`."""
    b = floating(kernel, "b", b, backend)
    if b.shape != w.shape[1:]:
        raise ValueError(
            f"{kernel}: b: expected shape {w.shape[1:]}, one bias per column of w {w.shape}, got {b.shape}"
        )
    return b


def needed(kernel: str, needs: Iterable[str]) -> tuple[str, ...]:
    """The names of the gradients asked for, in order."""
    if needs is GRADIENTS:
        return GRADIENTS
    try:
        names = (needs,) if isinstance(needs, str) else tuple(needs)
    except TypeError as error:
        raise TypeError(f"{kernel}: needs: expected names out of {', '.join(GRADIENTS)}; got {needs!r}") from error
    for name in names:
        if name not in GRADIENTS:
            raise ValueError(f"{kernel}: needs: expected some of {', '.join(GRADIENTS)}; got {name!r}")
    return tuple(name for name in GRADIENTS if name in names)


def refuse_unneeded(kernel: str, wanted: tuple[str, ...], given: tuple[Any, ...]) -> None:
    """Refuse an array, one of those `given` for the gradients, for a gradient that is not wanted."""
    if wanted is not GRADIENTS:
        for name, array in zip(GRADIENTS, given, strict=True):
            if array is not None and name not in wanted:
                raise ValueError(f"{kernel}: out: expected None for {name}, which needs={wanted} does not ask for")


def sample_layer(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Inputs, weights and biases."""
    inputs = min(classes, 256, 2**20 // max(1, classes)) + 3  # so that many classes do not make a square of weights
    return {
        "x": rng.normal(size=(rows, inputs)).astype(dtype),
        "w": (rng.normal(size=(inputs, classes)) / np.sqrt(inputs)).astype(dtype),
        "b": rng.normal(size=classes).astype(dtype),
    }


def _sample_backward(rng: "np.random.Generator", rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    forward = sample_layer(rng, rows, classes, dtype)
    return {"dy": rng.normal(size=(rows, classes)).astype(dtype), "x": forward["x"], "w": forward["w"]}


def mistakes_of_layers(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with inputs, weights and biases."""
    return (
        Mistake({"x": np.ones((2, 5))}, ValueError, f"{kernel}: x: expected 6 inputs along the last axis"),
        Mistake({"x": 1.0}, ValueError, rf"{kernel}: x: expected shape \(..., in\) with in = 6, got a single number"),
        Mistake({"w": np.ones(6)}, ValueError, rf"{kernel}: w: expected shape \(in, out\), got \(6,\)"),
        Mistake({"b": np.ones(2)}, ValueError, rf"{kernel}: b: expected shape \(3,\), one bias per column"),
        Mistake({"b": np.ones((2, 3))}, ValueError, rf"{kernel}: b: expected shape \(3,\)"),
        Mistake({"w": np.ones((6, 3), complex)}, TypeError, f"{kernel}: w: expected .*, got dtype complex128"),
    )


KERNELS = (
    Kernel(
        function=affine,
        formula="y = x w + b",
        arguments=("x", "w", "b"),
        results=("y",),
        backward="affine_backward",
        sample=sample_layer,
        mistakes=(
            *mistakes_of_layers("affine"),
            Mistake({"out": np.ones((2, 6), np.float32)}, ValueError, r"affine: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3))}, TypeError, "affine: out: expected dtype float32"),
        ),
        passes=2,
        operations=0,
        tolerance=32,
    ),
    Kernel(
        function=affine_backward,
        formula="dx = dy wᵀ, dw = xᵀ dy, db = Σ_rows dy",
        arguments=("dy", "x", "w"),
        results=GRADIENTS,
        options=("needs",),
        sample=_sample_backward,
        mistakes=(
            Mistake({"dy": np.ones((2, 2))}, ValueError, r"affine_backward: dy: expected shape \(2, 3\) for x"),
            Mistake(
                {"needs": ("dx", "dy")}, ValueError, "affine_backward: needs: expected some of dx, dw, db; got 'dy'"
            ),
            Mistake(
                {"out": np.ones((2, 6), np.float32)}, TypeError, r"affine_backward: out: expected a tuple \(dx, dw"
            ),
            Mistake(
                {"out": (None, None)}, ValueError, "affine_backward: out: expected one entry for each of dx, dw, db"
            ),
            Mistake(
                {"needs": "dx", "out": (None, np.ones((6, 3), np.float32), None)},
                ValueError,
                "affine_backward: out: expected None for dw",
            ),
            Mistake(
                {"out": (None, np.ones((3, 6), np.float32), None)},
                ValueError,
                r"affine_backward: out: dw: expected shape \(6, 3\)",
            ),
        ),
        passes=4,
        operations=0,
        tolerance=32,
    ),
)
