"""The sigmoid linear unit."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import Array, Budget, Mistake, Record, double
from plugrad.tests.records.relu import sample

FAR = 2000.0  # the exponential of so large a negative number is 0, but not its product with infinity


def _oracle(x: Any) -> tuple[Array, ...]:
    x = np.maximum(double(x), -FAR)
    root = np.exp(-np.abs(x) / 2)
    return (np.where(x < 0, x * root * root, x) / (1 + root**2),)


def _oracle_backward(dy: Any, x: Any) -> tuple[Array, ...]:
    x = np.clip(double(x), -FAR, FAR)
    s = np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x)))
    rest = np.where(x < 0, 1 / (1 + np.exp(x)), np.exp(-x) / (1 + np.exp(-x)))
    return (double(dy) * (s * (1 + x * rest)),)


def terms_of_slope(oracle: Any) -> Any:
    """The larger of the gradient and the upstream gradient, which errors are relative to."""
    return lambda dy, x, **options: (np.fmax(np.abs(double(dy)), np.abs(oracle(dy, x, **options)[0])),)


def _slope(mpmath: Any, v: Any) -> Any:
    s = 1 / (1 + mpmath.exp(-v))
    return s * (1 + v * (1 - s))


RECORDS = (
    Record(
        function=K.silu,
        sample=sample,
        oracle=_oracle,
        textbook=lambda x: x / (1 + np.exp(-x)),
        exact=lambda mpmath, x, label: [v / (1 + mpmath.exp(-v)) for v in x],
        symbolic=lambda sympy, x: [a / (1 + sympy.exp(-a)) for a in x],
        mistakes=(Mistake({"x": "text"}, TypeError, "silu: x: expected .*, got dtype <U4"),),
        passes=2,
        operations=5,
        tolerance=4,
        budget=Budget(ulp=4.0, of="exponent"),
    ),
    Record(
        function=K.silu_backward,
        sample=lambda rng, *given: {"dy": sample(rng, *given)["x"], "x": sample(rng, *given)["x"]},
        oracle=_oracle_backward,
        textbook=lambda dy, x: dy * (1 / (1 + np.exp(-x))) * (1 + x * (1 - 1 / (1 + np.exp(-x)))),
        terms=terms_of_slope(_oracle_backward),
        exact=lambda mpmath, x, label: [_slope(mpmath, v) for v in x],
        mistakes=(Mistake({"x": [1.0]}, ValueError, r"silu_backward: x: expected the shape of dy, \(2, 3\), got \(1"),),
        passes=3,
        operations=9,
        tolerance=4,
        budget=Budget(ulp=4.0, of="upstream"),
    ),
)
