"""The leaky rectified linear unit."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Array, Mistake, Record, double
from plugrad.tests.records.relu import sample

VARIANTS = ({"negative_slope": 0.3}, {"negative_slope": -2}, {"negative_slope": 0.0})


def _leak(values: Any, x: Any, negative_slope: float) -> tuple[Array, ...]:
    return (np.where(double(x) > 0, double(values), negative_slope * double(values)),)


RECORDS = (
    Record(
        function=K.leaky_relu,
        sample=sample,
        oracle=lambda x, negative_slope=0.01: _leak(x, x, negative_slope),
        textbook=lambda x: np.where(x > 0, x, x.dtype.type(0.01) * x),
        symbolic=lambda sympy, x, negative_slope=0.01: [
            sympy.Piecewise((a, a > 0), (negative_slope * a, True)) for a in x
        ],
        variants=VARIANTS,
        mistakes=(
            Mistake({"x": "text"}, TypeError, "leaky_relu: x: expected .*, got dtype <U4"),
            Mistake(
                {"negative_slope": "0.1"}, TypeError, "leaky_relu: negative_slope: expected a finite number, got '"
            ),
            Mistake({"negative_slope": True}, TypeError, "leaky_relu: negative_slope: expected a finite number, got T"),
            Mistake(
                {"negative_slope": np.nan}, ValueError, "leaky_relu: negative_slope: expected a finite .*, got nan"
            ),
            Mistake(
                {"negative_slope": np.inf}, ValueError, "leaky_relu: negative_slope: expected a finite .*, got inf"
            ),
            Mistake({"negative_slope": 10**400}, ValueError, "leaky_relu: negative_slope: expected a finite number"),
        ),
        passes=2,
        operations=2,
        tolerance=1,
    ),
    Record(
        function=K.leaky_relu_backward,
        sample=lambda rng, *given: {"dy": sample(rng, *given)["x"], "x": sample(rng, *given)["x"]},
        oracle=lambda dy, x, negative_slope=0.01: _leak(dy, x, negative_slope),
        textbook=lambda dy, x: np.where(x > 0, dy, x.dtype.type(0.01) * dy),
        variants=VARIANTS,
        mistakes=(
            Mistake({"x": [1.0]}, ValueError, r"leaky_relu_backward: x: expected the shape of dy, \(2, 3\), got \(1"),
            Mistake({"negative_slope": None}, TypeError, "leaky_relu_backward: negative_slope: expected a finite numb"),
        ),
        passes=3,
        operations=2,
        tolerance=1,
    ),
)
