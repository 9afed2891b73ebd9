"""Softmax and cross-entropy in one, and the gradient y - t."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records import cross_entropy, softmax
from plugrad.tests.records._labels import (
    TIMED,
    loss_of_logarithms,
    loss_of_z,
    mistakes_of_losses,
    mistakes_of_upstream,
    mistakes_of_z_loss,
    sample_labels,
    share,
    slope_of_z,
    spread,
)
from plugrad.tests.records._record import UNIT, Array, Budget, Inputs, Mistake, Record, double
from plugrad.tests.records.cross_entropy import sample_probabilities
from plugrad.tests.records.log_softmax import log_softmax, without_the_largest
from plugrad.tests.records.softmax import sample_logits, sum_of_others


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {**sample_logits(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {
        "dloss": 0.7,
        "y": sample_probabilities(rng, rows, classes, dtype),
        "t": sample_labels(rng, rows, classes),
    }


def _loss_of_probabilities(x: Any, t: Any, *, axis: int = -1, **options: Any) -> tuple[Array, Array]:
    y = K.softmax(x, axis=axis)
    return K.cross_entropy(y, t, axis=axis, **options), y


def _loss_then_gradient(x: Any, t: Any, **options: Any) -> tuple[Array, Array]:
    loss, y = K.softmax_cross_entropy(x, t, **options)
    dloss = loss**0 if options.get("reduction") == "none" else 1.0
    return loss, K.softmax_cross_entropy_backward(dloss, y, t, **options)


def _mistakes_of_out(kernel: str, second: str) -> tuple[Mistake, ...]:
    return (
        Mistake({"out": np.ones((2, 2), np.float32)}, ValueError, rf"{kernel}: out: {second}: expected shape \(2, 3\)"),
        Mistake({"out": (None,)}, ValueError, f"{kernel}: out: expected one entry for each of loss, {second}; got 1"),
        Mistake(
            {"out": (np.zeros(2, np.float32), None)}, ValueError, rf"{kernel}: out: loss: expected shape \(\), .*\(2,\)"
        ),
        Mistake({"out": (np.zeros(()), None)}, TypeError, f"{kernel}: out: loss: expected dtype float32"),
    )


def loss_and_softmax(x: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    """The oracle of the loss and the probabilities."""
    logs, z_loss = np.moveaxis(log_softmax(x, axis)[0], axis, -1), options.pop("z_loss", 0.0)
    loss = loss_of_logarithms(logs, t, axis, **options) + loss_of_z(x, t, axis, z_loss, **options)
    return loss, softmax.softmax(x, axis)[0]


def _backward(
    dloss: Any,
    y: Any,
    t: Any,
    axis: int = -1,
    reduction: str = "mean",
    **options: Any,
) -> tuple[Array, ...]:
    y = np.moveaxis(double(y), axis, -1)
    q, divisor = spread(t, np.moveaxis(y, -1, axis).shape, axis, **options)
    slope = (y * q.sum(axis=-1, keepdims=True) - q) * share(dloss, y.shape, reduction, divisor)
    return (np.moveaxis(np.where(q.any(axis=-1, keepdims=True), slope, 0.0), -1, axis),)


def _backward_terms(
    dloss: Any,
    y: Any,
    t: Any,
    axis: int = -1,
    reduction: str = "mean",
    **options: Any,
) -> tuple[Array, ...]:
    y = np.moveaxis(double(y), axis, -1)
    q, divisor = spread(t, np.moveaxis(y, -1, axis).shape, axis, **options)
    terms = y * abs(q).sum(axis=-1, keepdims=True) + abs(q)
    return (np.moveaxis(terms * share(abs(double(dloss)), y.shape, reduction, divisor), -1, axis),)


def value_and_grad(x: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    """The oracle of the loss and its gradient."""
    loss, y = loss_and_softmax(x, t, axis, **options)
    y, of_z = np.moveaxis(y, axis, -1), slope_of_z(x, t, axis, **options)
    reduction = options.pop("reduction", "mean")
    options.pop("z_loss", None)
    q, divisor = spread(t, np.shape(x), axis, **options)
    with np.errstate(all="ignore"):
        # y sum(q) - q, as y (sum(q) - q) - q (1 - y), where 1 - y of the largest is the sum of the others.
        top = np.arange(y.shape[-1]) == y.argmax(axis=-1)[..., None]
        rest = np.where(top, without_the_largest(y, -1), 1 - y)
        slope = y * (q.sum(axis=-1, keepdims=True) - q) - q * rest
        slope = np.where(q.any(axis=-1, keepdims=True), slope, 0.0)
        slope = slope * share(1.0, y.shape, reduction, divisor)
        slope = slope + np.where(of_z == 0, 0.0, y * of_z)
    return loss, np.moveaxis(slope, -1, axis)


def value_and_grad_terms(x: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    """The sums of the magnitudes of the terms."""
    loss, y = loss_and_softmax(x, t, **options, sizes=True)
    axis, of_z = options.get("axis", -1), abs(slope_of_z(x, t, **options))
    options.pop("z_loss", None)
    terms = _backward_terms(np.ones(np.shape(loss)), y, t, **options)[0]
    return loss, terms + np.moveaxis(np.where(of_z == 0, 0.0, np.moveaxis(y, axis, -1) * of_z), -1, axis)


def _textbook(x: Any, t: Any) -> tuple[Array, ...]:
    y = softmax.textbook(x)
    return cross_entropy.textbook(y, t), y


def _textbook_backward(dloss: Any, y: Any, t: Any) -> Array:
    dx, at = y.copy(), np.expand_dims(t, 1)
    np.put_along_axis(dx, at, np.take_along_axis(dx, at, 1) - 1, 1)
    dx *= dloss / t.size
    return dx


def textbook_value_and_grad(x: Any, t: Any) -> tuple[Array, ...]:
    """The textbook formulas of the loss and its gradient."""
    loss, y = _textbook(x, t)
    return loss, _textbook_backward(1.0, y, t)


def _exact_loss(mpmath: Any, x: list[Any], label: int) -> list[Any]:
    return [mpmath.log1p(sum_of_others(mpmath, x)) + max(x) - x[label]]


RECORDS = (
    Record(
        function=K.softmax_cross_entropy,
        composed=_loss_of_probabilities,
        timed=TIMED,
        sample=_sample,
        oracle=loss_and_softmax,
        terms=lambda x, t, **options: loss_and_softmax(x, t, **options, sizes=True),
        textbook=_textbook,
        exact=_exact_loss,
        keeps_small_elements=True,
        mistakes=(
            *mistakes_of_losses("softmax_cross_entropy", "x"),
            *mistakes_of_z_loss("softmax_cross_entropy"),
            *_mistakes_of_out("softmax_cross_entropy", "y"),
        ),
        passes=2,
        operations=5,
        tolerance=8,
        budget=Budget(ulp=3.0, of="logits"),
    ),
    Record(
        function=K.softmax_cross_entropy_backward,
        sample=_sample_backward,
        oracle=_backward,
        terms=_backward_terms,
        textbook=_textbook_backward,
        domain={"y": UNIT},
        mistakes=(
            *mistakes_of_losses("softmax_cross_entropy_backward", "y"),
            *mistakes_of_upstream("softmax_cross_entropy_backward"),
            Mistake(
                {"z_loss": 0.1},
                TypeError,
                "softmax_cross_entropy_backward: z_loss: .* call softmax_cross_entropy_value_and_grad",
            ),
            Mistake({"smooth": 0.1}, TypeError, r"softmax_cross_entropy_backward\(\) got an unexpected .* 'smooth'"),
        ),
        passes=2,
        operations=1,
        tolerance=8,
    ),
    Record(
        function=K.softmax_cross_entropy_value_and_grad,
        composed=_loss_then_gradient,
        timed=TIMED,
        sample=_sample,
        oracle=value_and_grad,
        terms=value_and_grad_terms,
        textbook=textbook_value_and_grad,
        exact=_exact_loss,
        keeps_small_elements=True,
        mistakes=(
            *mistakes_of_losses("softmax_cross_entropy_value_and_grad", "x"),
            *mistakes_of_z_loss("softmax_cross_entropy_value_and_grad"),
            *_mistakes_of_out("softmax_cross_entropy_value_and_grad", "dx"),
        ),
        passes=2,
        operations=6,
        tolerance=8,
        budget=Budget(ulp=3.0, of="logits"),
    ),
)
