"""The rectified linear unit."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Inputs, Mistake, Record, double


def sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Normal numbers, with zeros and large numbers among them."""
    x = rng.normal(size=(rows, classes))
    x[rng.random(x.shape) < 0.05] = 0.0
    x[rng.random(x.shape) < 0.05] *= 1e3
    return {"x": x.astype(dtype)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"dy": rng.normal(size=(rows, classes)).astype(dtype), "y": sample(rng, rows, classes, dtype)["x"]}


RECORDS = (
    Record(
        function=K.relu,
        sample=sample,
        oracle=lambda x: (np.where(double(x) < 0, 0.0, double(x)),),
        textbook=lambda x: np.maximum(x, 0),
        symbolic=lambda sympy, x: [sympy.Piecewise((a, a > 0), (0, True)) for a in x],
        mistakes=(
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "relu: x: expected .*float64.*, got dtype complex128"),
            Mistake({"x": "text"}, TypeError, "relu: x: expected .*, got dtype <U4"),
            Mistake({"x": np.array([None])}, TypeError, "relu: x: expected .*, got dtype object"),
            Mistake({"x": [[1.0], [1.0, 2.0]]}, TypeError, "relu: x: expected an array or numbers in nested sequences"),
            Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, r"relu: out: expected shape \(2, 3\)"),
            Mistake({"out": np.ones((2, 3), np.float64)}, TypeError, "relu: out: expected dtype float32"),
            Mistake({"out": [[0.0] * 3] * 2}, TypeError, "relu: out: expected a plain array of backend .*, got list"),
        ),
        passes=2,
        operations=1,
        tolerance=0,
    ),
    Record(
        function=K.relu_backward,
        sample=_sample_backward,
        oracle=lambda dy, y: (np.where(double(y) > 0, double(dy), 0.0),),
        textbook=lambda dy, y: dy * (y > 0),
        mistakes=(
            Mistake(
                {"y": np.ones((2, 2))},
                ValueError,
                r"relu_backward: y: expected the shape of dy, \(2, 3\), got \(2, 2\)",
            ),
            Mistake({"dy": np.ones((2, 3), complex)}, TypeError, "relu_backward: dy: expected .*got dtype complex128"),
            Mistake({"y": ["a"] * 3}, TypeError, "relu_backward: y: expected .*got dtype <U1"),
        ),
        passes=3,
        operations=1,
        tolerance=0,
    ),
)
