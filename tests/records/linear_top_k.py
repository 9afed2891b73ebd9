"""The largest logits of a last layer."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records import affine
from plugrad.tests.records._record import Array, Inputs, Mistake, Record
from plugrad.tests.records.affine import mistakes_of_layers, sample_layer

NAME = "linear_top_k"


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    """Whole numbers: no sum is rounded in any order of its terms, and many logits are equal."""
    layer = {
        name: rng.integers(-3, 4, x.shape).astype(dtype) for name, x in sample_layer(rng, rows, classes, dtype).items()
    }
    return {**layer, "k": int(rng.integers(1, min(classes, 5) + 1))}


def _oracle(x: Any, w: Any, b: Any, k: int, max_workspace: Any = None) -> tuple[Array, ...]:
    """By sorting each row: a stable sort keeps the order of equal logits."""
    z = affine.affine(x, w, b)[0]
    best = np.lexsort((-z, ~np.isnan(z)), axis=-1)[..., :k]
    return np.take_along_axis(z, best, -1), best


def _terms(x: Any, w: Any, b: Any, k: int, max_workspace: Any = None) -> tuple[Array, ...]:
    best = _oracle(x, w, b, k)[1]
    return np.take_along_axis(affine.terms(x, w, b)[0], best, -1), best


def _textbook(x: Any, w: Any, b: Any, k: int) -> tuple[Array, ...]:
    z = x @ w + b
    best = np.argsort(-z, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(z, best, 1), best


RECORDS = (
    Record(
        function=K.linear_top_k,
        sample=_sample,
        oracle=_oracle,
        terms=_terms,
        textbook=_textbook,
        mistakes=(
            *mistakes_of_layers(NAME),
            Mistake({"w": np.ones((6, 0)), "b": None}, ValueError, f"{NAME}: w: expected at least one class, a column"),
            Mistake({"k": 0}, ValueError, rf"{NAME}: k: expected an integer in \[1, 3\], .* got 0"),
            Mistake({"k": 4}, ValueError, rf"{NAME}: k: expected an integer in \[1, 3\], .* got 4"),
            Mistake({"k": 1.0}, TypeError, rf"{NAME}: k: expected an integer in \[1, 3\], got 1.0"),
            Mistake(
                {"max_workspace": 1}, ValueError, f"{NAME}: max_workspace: expected at least .* bytes, for one row"
            ),
            Mistake({"max_workspace": 0}, ValueError, f"{NAME}: max_workspace: expected at least 1 byte, got 0"),
            Mistake({"max_workspace": 1e6}, TypeError, f"{NAME}: max_workspace: expected bytes as an integer, text"),
            Mistake({"k": 1, "out": np.ones((2, 1))}, TypeError, rf"{NAME}: out: expected a tuple \(values, indices\)"),
            Mistake(
                {"k": 1, "out": (None,)}, ValueError, f"{NAME}: out: expected one entry for each of values, indices"
            ),
            Mistake(
                {"k": 1, "out": (np.ones((2, 3), np.float32), None)},
                ValueError,
                rf"{NAME}: out: values: expected shape \(2, 1\)",
            ),
            Mistake(
                {"k": 1, "out": (None, np.ones((2, 1), np.int32))},
                TypeError,
                f"{NAME}: out: indices: expected dtype int64",
            ),
        ),
        passes=0,
        operations=0,
        tolerance=32,
    ),
)
