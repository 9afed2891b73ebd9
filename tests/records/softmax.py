"""Softmax."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import UNIT, Array, Budget, Inputs, Mistake, Record, double


def sample_logits(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Logits of moderate size, with some rows far off zero and some far apart."""
    x = rng.normal(scale=3.0, size=(rows, classes))
    x[::5] += 100.0
    x[2::7] *= 10.0
    return {"x": x.astype(dtype)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    e = np.exp(rng.normal(scale=3.0, size=(rows, classes)))
    y = e / e.sum(axis=-1, keepdims=True)
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


def softmax(x: Any, axis: int = -1) -> tuple[Array, ...]:
    """The oracle."""
    x = double(x)
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis=axis, keepdims=True, initial=-np.inf))
        return (e / e.sum(axis=axis, keepdims=True),)


def _backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = double(dy), double(y)
    return (y * (dy - (dy * y).sum(axis=axis, keepdims=True)),)


def _backward_terms(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = abs(double(dy)), abs(double(y))
    return (y * (dy + (dy * y).sum(axis=axis, keepdims=True)),)


def textbook(x: Any) -> Array:
    """The textbook formula."""
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sum_of_others(mpmath: Any, x: list[Any]) -> Any:
    """``sum(exp(x - max(x))) - 1``: one of the largest terms, which is 1, is left out.

    Beside it, 50 digits would not hold the small ones.
    """
    top = max(x)
    return mpmath.fsum(mpmath.exp(v - top) for v in x) - 1


def _exact(mpmath: Any, x: list[Any], label: int) -> list[Any]:
    top, others = max(x), sum_of_others(mpmath, x)
    return [mpmath.exp(v - top) / (1 + others) for v in x]


RECORDS = (
    Record(
        function=K.softmax,
        sample=sample_logits,
        oracle=softmax,
        textbook=textbook,
        exact=_exact,
        symbolic=lambda sympy, x: [sympy.exp(a) / sum(sympy.exp(b) for b in x) for a in x],
        subnormal=lambda depth, normal, tiny: {"x": ([0.0, -depth, -depth - 0.7], -np.inf)},
        keeps_small_elements=True,
        mistakes=(
            Mistake({"x": np.float32(1)}, ValueError, "softmax: axis: expected an axis of an array of at least one"),
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "softmax: x: expected .*, got dtype complex128"),
            Mistake({"axis": 2}, ValueError, r"softmax: axis: expected an axis in \[-2, 2\), got 2"),
            Mistake({"axis": 0.5}, TypeError, "softmax: axis: expected one integer, got 0.5"),
            Mistake({"axis": (0, 1)}, TypeError, r"softmax: axis: expected one integer, got \(0, 1\)"),
            Mistake({"axis": None}, TypeError, "softmax: axis: expected one integer, got None"),
            Mistake({"axis": True}, TypeError, "softmax: axis: expected one integer, got True"),
            Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, r"softmax: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3), np.int32)}, TypeError, "softmax: out: expected dtype float32"),
        ),
        passes=2,
        operations=5,
        tolerance=8,
        budget=Budget(ulp=1.0, of="formula"),
    ),
    Record(
        function=K.softmax_backward,
        sample=_sample_backward,
        oracle=_backward,
        terms=_backward_terms,
        textbook=lambda dy, y: y * (dy - (dy * y).sum(1, keepdims=True)),
        domain={"y": UNIT},
        subnormal=lambda depth, normal, tiny: {
            "dy": ([1.0, -1.0, 0.5], 0.0),
            "y": ([normal / 2, normal / 4, 16 * tiny], 0.0),
        },
        mistakes=(
            Mistake({"y": np.ones((2, 2))}, ValueError, r"softmax_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"axis": 5}, ValueError, r"softmax_backward: axis: expected an axis in \[-2, 2\), got 5"),
        ),
        passes=3,
        operations=4,
        tolerance=16,
    ),
)
