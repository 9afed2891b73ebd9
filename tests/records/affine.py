"""The affine layer."""

import math
from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Array, Inputs, Mistake, Record, double


def sample_layer(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Inputs, weights and biases."""
    inputs = min(classes, 256, 2**20 // max(1, classes)) + 3  # so that many classes do not make a square of weights
    return {
        "x": rng.normal(size=(rows, inputs)).astype(dtype),
        "w": (rng.normal(size=(inputs, classes)) / np.sqrt(inputs)).astype(dtype),
        "b": rng.normal(size=classes).astype(dtype),
    }


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
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


def affine(x: Any, w: Any, b: Any = None) -> tuple[Array, ...]:
    """The oracle."""
    y = np.einsum("...i,io->...o", double(x), double(w))
    return (y if b is None else y + double(b),)


def affine_backward(dy: Any, x: Any, w: Any, needs: tuple[str, ...] = ("dx", "dw", "db")) -> tuple[Array, ...]:
    """The oracle of the gradients."""
    dy, x, w = double(dy), double(x), double(w)
    rows = math.prod(x.shape[:-1])  # by number: -1 is refused where there are no columns
    xs, dys = x.reshape(rows, x.shape[-1]), dy.reshape(rows, dy.shape[-1])
    dx, dw, db = np.einsum("...o,io->...i", dy, w), np.einsum("ni,no->io", xs, dys), dys.sum(axis=0)
    return dx if "dx" in needs else None, dw if "dw" in needs else None, db if "db" in needs else None


def terms(x: Any, w: Any, b: Any = None) -> tuple[Array, ...]:
    """The sums of the magnitudes of the terms."""
    return affine(abs(double(x)), abs(double(w)), None if b is None else abs(double(b)))


def _backward_terms(dy: Any, x: Any, w: Any, **options: Any) -> tuple[Array, ...]:
    return affine_backward(abs(double(dy)), abs(double(x)), abs(double(w)), **options)


def textbook_backward(dy: Any, x: Any, w: Any) -> tuple[Array, ...]:
    """The textbook formula of the gradients."""
    return dy @ w.T, x.T @ dy, dy.sum(0)


RECORDS = (
    Record(
        function=K.affine,
        sample=sample_layer,
        oracle=affine,
        terms=terms,
        textbook=lambda x, w, b: x @ w + b,
        symbolic=lambda sympy, x, w, b: [sum(a * w[i, j] for i, a in enumerate(x)) + c for j, c in enumerate(b)],
        mistakes=(
            *mistakes_of_layers("affine"),
            Mistake({"out": np.ones((2, 6), np.float32)}, ValueError, r"affine: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3))}, TypeError, "affine: out: expected dtype float32"),
        ),
        passes=2,
        operations=0,
        tolerance=32,
    ),
    Record(
        function=K.affine_backward,
        sample=_sample_backward,
        oracle=affine_backward,
        terms=_backward_terms,
        textbook=textbook_backward,
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
