"""The last layer and its loss in one, without the logits."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.backends.options import COMPUTE
from plugrad.tests.records import affine, softmax_cross_entropy
from plugrad.tests.records._labels import (
    TIMED,
    mistakes_of_labels,
    mistakes_of_z_loss,
    most_rows_ignored,
    reduced,
    sample_labels,
    spread,
    times_log,
    z_of,
)
from plugrad.tests.records._record import Array, Inputs, Mistake, Record, double
from plugrad.tests.records.affine import mistakes_of_layers, sample_layer
from plugrad.tests.records.log_softmax import log_softmax

_TIMED = {**TIMED, "softcap": lambda rng, sample: {"softcap": 30.0}, "skipped": most_rows_ignored}


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {**sample_layer(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _in_compute(*arrays: Any) -> list[Any]:
    return [x if x is None else x.astype(COMPUTE[x.dtype]) for x in arrays]


def _layer_then_loss(x: Any, w: Any, b: Any, t: Any, softcap: Any = None, **options: Any) -> tuple[Array, ...]:
    z, _ = _capped(K.affine(*_in_compute(x, w, b)), softcap)
    return K.softmax_cross_entropy(z, t, **options)[:1]


def _capped(z: Any, softcap: float | None) -> tuple[Any, Any]:
    """The logits, and their derivative."""
    if softcap is None:
        return z, 1
    u = K.tanh(z / softcap)
    return softcap * u, 1 - u * u


def _layer_then_loss_then_gradients(
    x: Any, w: Any, b: Any, t: Any, softcap: Any = None, **options: Any
) -> tuple[Array, ...]:
    wide = _in_compute(x, w, b)
    z, slope = _capped(K.affine(*wide), softcap)
    loss, dz = K.softmax_cross_entropy_value_and_grad(z, t, **options)
    return loss, *(gradient.astype(x.dtype) for gradient in K.affine_backward(dz * slope, *wide[:2]))


def _mistakes(kernel: str) -> tuple[Mistake, ...]:
    return (
        *mistakes_of_layers(kernel),
        *mistakes_of_labels(kernel),
        *mistakes_of_z_loss(kernel),
        Mistake({"softcap": 0.0}, ValueError, f"{kernel}: softcap: expected None or a finite number above 0, got 0.0"),
        Mistake({"softcap": -1}, ValueError, f"{kernel}: softcap: expected None or a finite number above 0, got -1"),
        Mistake({"softcap": "30"}, TypeError, f"{kernel}: softcap: expected None or a finite number .*, got '30'"),
        Mistake({"w": np.ones((6, 0)), "b": None}, ValueError, f"{kernel}: w: expected at least one class, a column"),
        Mistake({"max_workspace": 1}, ValueError, f"{kernel}: max_workspace: expected at least .* bytes, for one row"),
        Mistake({"max_workspace": 0}, ValueError, f"{kernel}: max_workspace: expected at least 1 byte, got 0"),
        Mistake({"max_workspace": "64 megs"}, ValueError, f"{kernel}: max_workspace: expected a size such as 64MB"),
        Mistake({"max_workspace": 1e6}, TypeError, f"{kernel}: max_workspace: expected bytes as an integer, text"),
    )


def _logits(x: Any, w: Any, b: Any, softcap: float | None) -> Array:
    z = affine.affine(x, w, b)[0]
    return z if softcap is None else softcap * np.tanh(z / softcap)


def _oracle(
    x: Any, w: Any, b: Any, t: Any, softcap: Any = None, max_workspace: Any = None, **options: Any
) -> tuple[Array, ...]:
    return softmax_cross_entropy.loss_and_softmax(_logits(x, w, b, softcap), t, **options)[:1]


def _terms(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    reduction: str = "mean",
    softcap: Any = None,
    z_loss: float = 0.0,
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    logits, sizes = _logits(x, w, b, softcap), _terms_of_logits(x, w, b)
    q, divisor = spread(t, logits.shape, -1, **options)
    losses = abs(times_log(q, log_softmax(logits)[0])).sum(axis=-1)
    # A logit is off by a share of its terms, and a loss by as much as its logits.
    loss = reduced(losses + sizes * abs(q).sum(axis=-1), reduction, divisor)
    if z_loss:
        z, rows, of_z = z_of(logits, t, -1, options.get("ignore_index"), options.get("sample_weight"))
        loss = loss + reduced(z_loss * abs(rows) * (z**2 + 2 * abs(z) * sizes), reduction, of_z)
    return (loss,)


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
    softcap: Any = None,
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    """The oracle of the loss and its gradients."""
    logits = _logits(x, w, b, softcap)
    loss, dz = softmax_cross_entropy.value_and_grad(logits, t, **options)
    if softcap is not None:
        dz = np.where(dz == 0, 0.0, dz * (1 - (logits / softcap) ** 2))
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
    softcap: Any = None,
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    (loss,) = _terms(x, w, b, t, softcap=softcap, **options)
    slopes = softmax_cross_entropy.value_and_grad_terms(_logits(x, w, b, softcap), t, **options)[1]
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
        timed=_TIMED,
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
        timed=_TIMED,
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
