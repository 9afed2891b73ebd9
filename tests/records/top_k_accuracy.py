"""The share of rows whose label is among the largest logits."""

from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.tests.records._labels import sample_labels
from plugrad.tests.records._record import Array, Inputs, Mistake, Record, double
from plugrad.tests.records.softmax import sample_logits


def _sample(rng: np.random.Generator, rows: int, classes: int, dtype: np.dtype[Any]) -> Inputs:
    x = sample_logits(rng, rows, classes, dtype)["x"]
    return {"x": x, "t": sample_labels(rng, rows, classes), "k": int(rng.integers(1, min(classes, 5) + 1))}


def _oracle(x: Any, t: Any, k: int, axis: int = -1, ignore_index: int | None = None) -> tuple[Array, ...]:
    """By sorting each row: a stable sort keeps the order of equal logits."""
    x, t = np.moveaxis(double(x), axis, -1), np.asarray(t)
    best = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    right = (best == t[..., np.newaxis]).any(axis=-1) & ~np.isnan(x).any(axis=-1)
    counts = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
    return (np.float64((right & counts).sum() / counts.sum() if counts.any() else 0.0),)


def _textbook(x: Any, t: Any, k: int) -> Any:
    return (np.argsort(-x, axis=1, kind="stable")[:, :k] == t[:, np.newaxis]).any(axis=1).mean()


RECORDS = (
    Record(
        function=K.top_k_accuracy,
        sample=_sample,
        oracle=_oracle,
        textbook=_textbook,
        mistakes=(
            Mistake({"x": np.ones((2, 0))}, ValueError, "top_k_accuracy: x: expected at least one class along axis 1"),
            Mistake({"x": np.ones((2, 3), complex)}, TypeError, "top_k_accuracy: x: expected .*, got dtype complex128"),
            Mistake({"t": None}, TypeError, "top_k_accuracy: t: expected class indices or .*, got NoneType"),
            Mistake({"t": [0.0, 1.0]}, TypeError, "top_k_accuracy: t: expected class indices of an integer dtype"),
            Mistake({"t": [0, 1, 2]}, ValueError, r"top_k_accuracy: t: expected class indices of shape \(2,\) or"),
            Mistake(
                {"t": np.eye(3)[:2]}, ValueError, r"t: expected class indices, got one label .* pass t.argmax\(1\)"
            ),
            Mistake({"t": [0, 3]}, ValueError, r"top_k_accuracy: t: expected labels in \[0, 3\), got 3 at row 1"),
            Mistake({"t": [-1, 0]}, ValueError, r"expected labels in \[0, 3\), got -1 at row 0; pass ignore_index"),
            Mistake({"k": 0}, ValueError, r"top_k_accuracy: k: expected an integer in \[1, 3\], .* got 0"),
            Mistake({"k": 4}, ValueError, r"top_k_accuracy: k: expected an integer in \[1, 3\], .* got 4"),
            Mistake({"k": 1.0}, TypeError, r"top_k_accuracy: k: expected an integer in \[1, 3\], got 1.0"),
            Mistake({"axis": 2}, ValueError, r"top_k_accuracy: axis: expected an axis in \[-2, 2\), got 2"),
            Mistake({"ignore_index": 0.5}, TypeError, "top_k_accuracy: ignore_index: expected an integer or None"),
            Mistake({"out": np.zeros((), np.float32)}, TypeError, "top_k_accuracy: out: expected dtype float64"),
        ),
        passes=1,
        operations=2,
        tolerance=1,
    ),
)
