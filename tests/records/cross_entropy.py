"""Cross-entropy of probabilities."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._labels import (
    loss_of_logarithms,
    mistakes_of_losses,
    mistakes_of_upstream,
    sample_labels,
    share,
    spread,
)
from plugrad.tests.records._record import Array, Inputs, Mistake, Record, double


def sample_probabilities(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Any:
    """Rows of probabilities, none of them 0 in any dtype."""
    e = rng.random((rows, classes)) + 0.01
    return (e / e.sum(axis=-1, keepdims=True)).astype(dtype)


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"p": sample_probabilities(rng, rows, classes, dtype), "t": sample_labels(rng, rows, classes)}


def _sample_backward(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    return {"dloss": 0.7, **_sample(rng, rows, classes, dtype)}


def _oracle(p: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        logs = np.log(np.moveaxis(double(p), axis, -1))
    return (loss_of_logarithms(logs, t, axis, **options),)


def _backward(
    dloss: Any,
    p: Any,
    t: Any,
    axis: int = -1,
    reduction: str = "mean",
    **options: Any,
) -> tuple[Array, ...]:
    p = np.moveaxis(double(p), axis, -1)
    q, divisor = spread(t, np.moveaxis(p, -1, axis).shape, axis, **options)
    with np.errstate(all="ignore"):
        slope = np.where(q == 0, 0.0, -q / p * share(dloss, p.shape, reduction, divisor))
    return (np.moveaxis(slope, -1, axis),)


def textbook(p: Any, t: Any) -> Array:
    """The textbook formula."""
    return -np.log(np.take_along_axis(p, np.expand_dims(t, 1), 1)).mean()


def _textbook_backward(dloss: Any, p: Any, t: Any) -> Array:
    dp, at = np.zeros_like(p), np.expand_dims(t, 1)
    np.put_along_axis(dp, at, -dloss / np.take_along_axis(p, at, 1) / t.size, 1)
    return dp


RECORDS = (
    Record(
        function=K.cross_entropy,
        sample=_sample,
        oracle=_oracle,
        terms=lambda p, t, **options: _oracle(p, t, **options, sizes=True),
        textbook=textbook,
        mistakes=mistakes_of_losses("cross_entropy", "p"),
        passes=1,
        operations=0,
        tolerance=8,
    ),
    Record(
        function=K.cross_entropy_backward,
        sample=_sample_backward,
        oracle=_backward,
        textbook=_textbook_backward,
        mistakes=(
            *mistakes_of_losses("cross_entropy_backward", "p"),
            *mistakes_of_upstream("cross_entropy_backward"),
            Mistake({"out": np.ones((2, 3))}, TypeError, "cross_entropy_backward: out: expected dtype float32"),
        ),
        passes=2,
        operations=0,
        tolerance=8,
    ),
)
