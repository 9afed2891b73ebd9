"""Sigmoid and binary cross-entropy in one, and the gradient y - t."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._labels import mistakes_of_options, reduced
from plugrad.tests.records._record import UNIT, Array, Budget, Inputs, Mistake, Record, double
from plugrad.tests.records.sigmoid import sigmoid


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = rng.normal(scale=3.0, size=(rows, classes))
    x[rng.random(x.shape) < 0.05] *= 30.0
    return {"x": x.astype(dtype), "t": _labels(rng, rows, classes, dtype)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    y = 1.0 / (1.0 + np.exp(-rng.normal(scale=3.0, size=(rows, classes))))
    return {"dloss": 0.7, "y": y.astype(dtype), "t": _labels(rng, rows, classes, dtype)}


# A weight for each of the classes of a row.
_TIMED = {
    "pos_weight": lambda rng, sample: {"pos_weight": rng.random(sample["t"].shape[1:], np.float32)},
    "weight": lambda rng, sample: {"weight": rng.random(sample["t"].shape[1:], np.float32)},
}


def _labels(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Any:
    """Labels of 0 and 1: with any other one the terms of the gradient may cancel."""
    return rng.integers(0, 2, (rows, classes)).astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The oracles
# ---------------------------------------------------------------------------------------------------------------------


def _spread(
    t: Any,
    weight: Any = None,
    pos_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Array, Array, float]:
    """The factors of -log(y) and of -log(1 - y), the elements that count, and the divisor."""
    t = np.asarray(t)
    counts = np.ones(t.shape, bool) if ignore_index is None else double(t) != ignore_index
    positive = (1 - label_smoothing) * double(t) + label_smoothing / 2
    negative = 1 - positive
    if pos_weight is not None:
        positive = positive * double(pos_weight)
    if weight is not None:
        positive, negative = positive * double(weight), negative * double(weight)
    return positive, negative, counts, float(np.count_nonzero(counts)) if reduction == "mean" else 1.0


def _times(factor: Array, x: Array) -> Array:
    """``factor * x``, with 0 for a factor of 0 times infinity."""
    return np.where((factor == 0) & np.isinf(x), 0.0, factor * x)


def _loss(x: Any, t: Any, reduction: str = "mean", **options: Any) -> Array:
    positive, negative, counts, divisor = _spread(t, **options, reduction=reduction)
    x = double(x)
    losses = _times(positive, np.logaddexp(0, -x)) + _times(negative, np.logaddexp(0, x))
    return reduced(np.where(counts, losses, 0.0), reduction, divisor)


def _loss_and_sigmoid(x: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    return _loss(x, t, **options), sigmoid(x)[0]


def _slope(terms: tuple[Array, Array], counts: Array, divisor: float, is_size: bool) -> Array:
    """The difference of two terms, or the sum of their magnitudes, for each element that counts."""
    first, second = terms
    slope = abs(first) + abs(second) if is_size else first - second
    return np.where(counts, slope / divisor if divisor else 0.0, 0.0)


def _backward(dloss: Any, y: Any, t: Any, is_size: bool = False, **options: Any) -> tuple[Array, ...]:
    positive, negative, counts, divisor = _spread(t, **options)
    y, dloss = double(y), double(dloss)
    return (_slope((negative * y * dloss, positive * (1 - y) * dloss), counts, divisor, is_size),)


def _value_and_grad(x: Any, t: Any, is_size: bool = False, **options: Any) -> tuple[Array, ...]:
    positive, negative, counts, divisor = _spread(t, **options)
    terms = negative * sigmoid(x)[0], positive * sigmoid(-double(x))[0]
    return _loss(x, t, **options), _slope(terms, counts, divisor, is_size)


# ---------------------------------------------------------------------------------------------------------------------
# Other forms
# ---------------------------------------------------------------------------------------------------------------------


def _loss_then_gradient(x: Any, t: Any, **options: Any) -> tuple[Array, Array]:
    loss, y = K.sigmoid_cross_entropy(x, t, **options)
    dloss = loss**0 if options.get("reduction") == "none" else 1.0
    return loss, K.sigmoid_cross_entropy_backward(dloss, y, t, **options)


def _textbook(x: Any, t: Any) -> tuple[Array, ...]:
    y = 1 / (1 + np.exp(-x))
    return -(t * np.log(y) + (1 - t) * np.log(1 - y)).mean(), y


def _textbook_backward(dloss: Any, y: Any, t: Any) -> Array:
    return (y - t) * dloss / t.size


def _textbook_value_and_grad(x: Any, t: Any) -> tuple[Array, ...]:
    loss, y = _textbook(x, t)
    return loss, _textbook_backward(1.0, y, t)


def _exact_loss(mpmath: Any, x: list[Any], label: Any) -> list[Any]:
    return [
        (1 - t) * mpmath.log1p(mpmath.exp(v)) + t * mpmath.log1p(mpmath.exp(-v)) for v, t in zip(x, label, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------------


def _mistakes(kernel: str, first: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made in calling any of them; `first` is the argument before the labels."""
    return (
        Mistake({first: np.ones((2, 3), complex)}, TypeError, f"{kernel}: {first}: expected .*, got dtype complex128"),
        Mistake({"t": None}, TypeError, f"{kernel}: t: expected a label in .* for each logit, got NoneType"),
        Mistake({"t": [["a"] * 3] * 2}, TypeError, f"{kernel}: t: expected a label in .*, got dtype <U1"),
        Mistake({"t": np.ones((2, 3), complex)}, TypeError, f"{kernel}: t: expected .*, got dtype complex128"),
        Mistake({"t": [0, 1]}, ValueError, rf"{kernel}: t: expected the shape of {first}, \(2, 3\), got \(2,\)"),
        Mistake(
            {"t": [[0, 1, 0], [1, 2, 3]]},
            ValueError,
            rf"{kernel}: t: expected labels in \[0, 1\], got 2 at \(1, 1\); .*softmax_cross_entropy class indices",
        ),
        Mistake(
            {"t": [[0, 1, -1], [1, 0, 1]]},
            ValueError,
            rf"{kernel}: t: expected labels in \[0, 1\], got -1 at \(0, 2\); .* pass it as ignore_index",
        ),
        Mistake(
            {"t": np.array([[0, 1, 0.5], [np.nan, 0, 1]])},
            ValueError,
            rf"{kernel}: t: expected labels in \[0, 1\], got nan at \(1, 0\)",
        ),
        Mistake(
            {"t": [[0.0, 1.0, -1.0], [1.0, -0.5, 1.0]], "ignore_index": -1},
            ValueError,
            rf"{kernel}: t: expected labels in \[0, 1\] or the ignored label -1, got -0.5 at \(1, 1\)",
        ),
        Mistake(
            {"weight": [1.0, 2.0]}, ValueError, r"weight: expected a shape that broadcasts .* \(2, 3\), got \(2,\)"
        ),
        Mistake({"pos_weight": np.ones((4, 2, 3))}, ValueError, r"pos_weight: .* \(2, 3\), got \(4, 2, 3\)"),
        Mistake({"pos_weight": ["a"] * 3}, TypeError, f"{kernel}: pos_weight: expected .*, got dtype <U1"),
        *mistakes_of_options(kernel),
    )


def _mistakes_of_out(kernel: str, second: str) -> tuple[Mistake, ...]:
    return (
        Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, rf"{kernel}: out: {second}: expected shape \(2, 3\)"),
        Mistake({"out": (None,)}, ValueError, f"{kernel}: out: expected one entry for each of loss, {second}; got 1"),
        Mistake(
            {"out": (np.zeros((2, 3), np.float32), None)},
            ValueError,
            r"loss: expected shape \(\), .* got \(2, 3\)",
        ),
    )


_MISTAKES_OF_UPSTREAM = (
    Mistake({"dloss": [1.0, 1.0]}, ValueError, r"dloss: expected the shape .*'mean', \(\), got \(2,\)"),
    Mistake({"reduction": "none", "dloss": 1.0}, ValueError, r"dloss: expected .*'none', \(2, 3\), got \(\)"),
    Mistake({"out": np.ones((2, 3))}, TypeError, "sigmoid_cross_entropy_backward: out: expected dtype float32"),
)


RECORDS = (
    Record(
        function=K.sigmoid_cross_entropy,
        timed=_TIMED,
        sample=_sample,
        oracle=_loss_and_sigmoid,
        textbook=_textbook,
        exact=_exact_loss,
        mistakes=(*_mistakes("sigmoid_cross_entropy", "x"), *_mistakes_of_out("sigmoid_cross_entropy", "y")),
        domain={"t": UNIT},
        passes=3,
        operations=6,
        tolerance=8,
        budget=Budget(ulp=4.0, of="result"),
    ),
    Record(
        function=K.sigmoid_cross_entropy_backward,
        timed=_TIMED,
        sample=_sample_backward,
        oracle=_backward,
        terms=lambda dloss, y, t, **options: _backward(dloss, y, t, is_size=True, **options),
        textbook=_textbook_backward,
        mistakes=(*_mistakes("sigmoid_cross_entropy_backward", "y"), *_MISTAKES_OF_UPSTREAM),
        domain={"y": UNIT, "t": UNIT},
        passes=3,
        operations=2,
        tolerance=8,
    ),
    Record(
        function=K.sigmoid_cross_entropy_value_and_grad,
        timed=_TIMED,
        composed=_loss_then_gradient,
        sample=_sample,
        oracle=_value_and_grad,
        terms=lambda x, t, **options: _value_and_grad(x, t, is_size=True, **options),
        textbook=_textbook_value_and_grad,
        exact=_exact_loss,
        mistakes=(
            *_mistakes("sigmoid_cross_entropy_value_and_grad", "x"),
            *_mistakes_of_out("sigmoid_cross_entropy_value_and_grad", "dx"),
        ),
        domain={"t": UNIT},
        passes=3,
        operations=7,
        tolerance=8,
        budget=Budget(ulp=4.0, of="result"),
    ),
)
