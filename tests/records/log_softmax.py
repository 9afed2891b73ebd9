"""Log-softmax."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._record import (
    LOGARITHMS_OF_PROBABILITIES,
    Array,
    Budget,
    Inputs,
    Mistake,
    Record,
    double,
)
from plugrad.tests.records.softmax import sample_logits, sum_of_others


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(scale=3.0, size=(rows, classes))
    x -= x.max(axis=-1, keepdims=True)
    y = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return {"dy": rng.normal(size=y.shape).astype(dtype), "y": y.astype(dtype)}


def log_softmax(x: Any, axis: int = -1) -> tuple[Array, ...]:
    """The oracle."""
    x = double(x)
    with np.errstate(all="ignore"):
        z = x - x.max(axis=axis, keepdims=True, initial=-np.inf)
        # The largest term is 1: log1p of the others keeps small ones.
        return (z - np.log1p(without_the_largest(np.exp(z), axis)),)


def without_the_largest(x: Array, axis: int) -> Array:
    """The sum along an axis of all elements but one of the largest."""
    others = np.delete(np.sort(x, axis=axis), slice(-1, None), axis=axis)
    return others.sum(axis=axis, keepdims=True) + 0 * x.sum(axis=axis, keepdims=True)  # NaN is sorted to the end


def _backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = double(dy), double(y)
    return (dy - np.exp(y) * dy.sum(axis=axis, keepdims=True),)


def _backward_terms(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy = abs(double(dy))
    return (dy + np.exp(double(y)) * dy.sum(axis=axis, keepdims=True),)


def _textbook(x: Any) -> Array:
    z = x - x.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def _exact(mpmath: Any, x: list[Any], label: int) -> list[Any]:
    log = mpmath.log1p(sum_of_others(mpmath, x))
    top = max(x)
    return [v - top - log for v in x]


RECORDS = (
    Record(
        function=K.log_softmax,
        sample=sample_logits,
        oracle=log_softmax,
        textbook=_textbook,
        exact=_exact,
        symbolic=lambda sympy, x: [a - sympy.log(sum(sympy.exp(b) for b in x)) for a in x],
        mistakes=(
            Mistake({"axis": -3}, ValueError, r"log_softmax: axis: expected an axis in \[-2, 2\), got -3"),
            Mistake({"x": np.ones((2, 3), object)}, TypeError, "log_softmax: x: expected .*, got dtype object"),
        ),
        passes=2,
        operations=5,
        tolerance=4,
        budget=Budget(ulp=3.0, of="logits"),
    ),
    Record(
        function=K.log_softmax_backward,
        sample=_sample_backward,
        oracle=_backward,
        terms=_backward_terms,
        textbook=lambda dy, y: dy - np.exp(y) * dy.sum(1, keepdims=True),
        domain={"y": LOGARITHMS_OF_PROBABILITIES},
        subnormal=lambda depth, normal, tiny: {
            "dy": ([normal, -normal / 2, 16 * tiny], 0.0),
            "y": ([-depth, -depth - 0.7, -1.0], -np.inf),
        },
        mistakes=(
            Mistake({"y": np.ones((1, 3))}, ValueError, r"log_softmax_backward: y: expected the shape of dy, \(2, 3\)"),
            Mistake({"axis": "last"}, TypeError, "log_softmax_backward: axis: expected one integer, got 'last'"),
        ),
        passes=3,
        operations=4,
        tolerance=8,
    ),
)
