"""The logistic sigmoid."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import UNIT, Array, Budget, Inputs, Mistake, Record, double


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(scale=3.0, size=(rows, classes))
    x[rng.random(x.shape) < 0.05] *= 30.0
    return {"x": x.astype(dtype)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    y = 1.0 / (1.0 + np.exp(-rng.normal(scale=3.0, size=(rows, classes))))
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


def sigmoid(x: Any) -> tuple[Array, ...]:
    """The oracle."""
    x = double(x)
    with np.errstate(all="ignore"):
        return (np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),)


RECORDS = (
    Record(
        function=K.sigmoid,
        sample=_sample,
        oracle=sigmoid,
        textbook=lambda x: 1 / (1 + np.exp(-x)),
        exact=lambda mpmath, x, label: [1 / (1 + mpmath.exp(-v)) for v in x],
        symbolic=lambda sympy, x: [1 / (1 + sympy.exp(-a)) for a in x],
        mistakes=(
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "sigmoid: x: expected .*, got dtype complex128"),
            Mistake({"out": np.ones((3, 2), np.float32)}, ValueError, r"sigmoid: out: expected shape \(2, 3\)"),
        ),
        passes=2,
        operations=4,
        tolerance=4,
        budget=Budget(ulp=3.0, of="result"),
    ),
    Record(
        function=K.sigmoid_backward,
        sample=_sample_backward,
        oracle=lambda dy, y: (double(dy) * double(y) * (1 - double(y)),),
        textbook=lambda dy, y: dy * y * (1 - y),
        domain={"y": UNIT},
        mistakes=(
            Mistake({"y": np.ones((2, 2))}, ValueError, r"sigmoid_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"dy": ["a"] * 3}, TypeError, "sigmoid_backward: dy: expected .*, got dtype <U1"),
        ),
        passes=3,
        operations=3,
        tolerance=4,
    ),
)
