"""The last layer and its loss in one, without the logits."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.backends.options import COMPUTE
from plugrad.tests.records import affine, softmax_cross_entropy
from plugrad.tests.records._labels import mistakes_of_labels, reduced, sample_labels, spread, times_log
from plugrad.tests.records._record import Array, Inputs, Mistake, Record, double
from plugrad.tests.records.affine import mistakes_of_layers, sample_layer
from plugrad.tests.records.log_softmax import log_softmax


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {**sample_layer(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _in_compute(*arrays: Any) -> list[Any]:
    return [x if x is None else x.astype(COMPUTE[x.dtype]) for x in arrays]


def _layer_then_loss(x: Any, w: Any, b: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    return K.softmax_cross_entropy(K.affine(*_in_compute(x, w, b)), t, **options)[:1]


def _layer_then_loss_then_gradients(x: Any, w: Any, b: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    wide = _in_compute(x, w, b)
    loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(*wide), t, **options)
    return loss, *(gradient.astype(x.dtype) for gradient in K.affine_backward(dz, *wide[:2]))


def _mistakes(kernel: str) -> tuple[Mistake, ...]:
    return (
        *mistakes_of_layers(kernel),
        *mistakes_of_labels(kernel),
        Mistake({"w": np.ones((6, 0)), "b": None}, ValueError, f"{kernel}: w: expected at least one class, a column"),
        Mistake({"max_workspace": 1}, ValueError, f"{kernel}: max_workspace: expected at least .* bytes, for one row"),
        Mistake({"max_workspace": 0}, ValueError, f"{kernel}: max_workspace: expected at least 1 byte, got 0"),
        Mistake({"max_workspace": "64 megs"}, ValueError, f"{kernel}: max_workspace: expected a size such as 64MB"),
        Mistake({"max_workspace": 1e6}, TypeError, f"{kernel}: max_workspace: expected bytes as an integer, text"),
    )


def _oracle(x: Any, w: Any, b: Any, t: Any, max_workspace: Any = None, **options: Any) -> tuple[Array, ...]:
    return softmax_cross_entropy.loss_and_softmax(affine.affine(x, w, b)[0], t, **options)[:1]


def _terms(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    max_workspace: Any = None,
) -> tuple[Array, ...]:
    shape = (*np.shape(x)[:-1], np.shape(w)[1])
    q, divisor = spread(t, shape, -1, weight, ignore_index, label_smoothing)
    losses = abs(times_log(q, log_softmax(affine.affine(x, w, b)[0])[0])).sum(axis=-1)
    # A logit is off by a share of its terms, and a loss by as much as its logits.
    return (reduced(losses + _terms_of_logits(x, w, b) * abs(q).sum(axis=-1), reduction, divisor),)


def _terms_of_logits(x: Any, w: Any, b: Any) -> Array:
    """For each row the largest of the terms of its logits."""
    terms = affine.terms(x, w, b)[0]
    return np.where(np.isfinite(terms), terms, 0.0).max(axis=-1)


def value_and_grad(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    needs: tuple[str, ...] = ("dx", "dw", "db"),
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    """The oracle of the loss and its gradients."""
    loss, dz = softmax_cross_entropy.value_and_grad(affine.affine(x, w, b)[0], t, **options)
    # A gradient of exactly 0, of a row that does not count, adds 0 even if it is multiplied by infinity.
    rows = np.where(dz.any(axis=-1, keepdims=True) | np.isnan(dz).any(axis=-1, keepdims=True), double(x), 0.0)
    with np.errstate(all="ignore"):
        return loss, *affine.affine_backward(dz, rows, w, needs)


def _value_and_grad_terms(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    needs: tuple[str, ...] = ("dx", "dw", "db"),
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    (loss,) = _terms(x, w, b, t, **options)
    slopes = softmax_cross_entropy.value_and_grad_terms(affine.affine(x, w, b)[0], t, **options)[1]
    # The relative error of the gradient of a logit is the error of its logits.
    slopes = slopes * np.maximum(1.0, _terms_of_logits(x, w, b)[..., None])
    return loss, *affine.affine_backward(slopes, abs(double(x)), abs(double(w)), needs)


def _textbook(x: Any, w: Any, b: Any, t: Any) -> Array:
    return softmax_cross_entropy.textbook_value_and_grad(x @ w + b, t)[0]


def _textbook_value_and_grad(x: Any, w: Any, b: Any, t: Any) -> tuple[Array, ...]:
    loss, dz = softmax_cross_entropy.textbook_value_and_grad(x @ w + b, t)
    return loss, *affine.textbook_backward(dz, x, w)


RECORDS = (
    Record(
        function=K.linear_cross_entropy,
        composed=_layer_then_loss,
        sample=_sample,
        oracle=_oracle,
        terms=_terms,
        textbook=_textbook,
        mistakes=_mistakes("linear_cross_entropy"),
        passes=0,
        operations=0,
        tolerance=32,
    ),
    Record(
        function=K.linear_cross_entropy_value_and_grad,
        composed=_layer_then_loss_then_gradients,
        sample=_sample,
        oracle=value_and_grad,
        terms=_value_and_grad_terms,
        textbook=_textbook_value_and_grad,
        mistakes=(
            *_mistakes("linear_cross_entropy_value_and_grad"),
            Mistake(
                {"needs": ("dx", "dy")},
                ValueError,
                "linear_cross_entropy_value_and_grad: needs: expected some of dx, dw, db; got 'dy'",
            ),
            Mistake(
                {"out": (None, None)},
                ValueError,
                "linear_cross_entropy_value_and_grad: out: expected one entry for each of loss, dx, dw, db; got 2",
            ),
            Mistake(
                {"needs": "dx", "out": (None, None, np.ones((6, 3), np.float32), None)},
                ValueError,
                "linear_cross_entropy_value_and_grad: out: expected None for dw",
            ),
            Mistake(
                {"out": (None, None, np.ones((3, 6), np.float32), None)},
                ValueError,
                r"linear_cross_entropy_value_and_grad: out: dw: expected shape \(6, 3\)",
            ),
        ),
        passes=0,
        operations=0,
        tolerance=32,
    ),
)
