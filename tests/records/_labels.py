"""The labels and options of losses: samples, the oracle's form of them, and the mistakes that callers make."""

from typing import Any

import numpy as np

from plugrad.tests.records._record import Array, Mistake, double


def sample_labels(rng: np.random.Generator, rows: int, classes: int) -> Any:
    """Class indices."""
    return rng.integers(0, classes, rows)


def spread(
    t: Any, shape: tuple[int, ...], axis: int, weight: Any, ignore_index: int | None, smoothing: float
) -> tuple[Array, float]:
    """The weighted, smoothed labels of every class, with the classes last, and the divisor of the mean."""
    t = np.asarray(t)
    classes = shape[axis]
    w = np.ones(classes) if weight is None else double(weight)
    if t.ndim == len(shape):
        labels = np.moveaxis(double(t), axis, -1)
        counts = np.ones(labels.shape[:-1], bool)
        divisor = float(counts.size)
    else:
        labels = np.arange(classes) == t[..., None]
        counts = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
        divisor = float(w[t[counts]].sum())
    return np.where(counts[..., None], w * ((1 - smoothing) * labels + smoothing / classes), 0.0), divisor


def times_log(q: Array, logs: Array) -> Array:
    """``q * logs``, with 0 for a label of 0 on a probability of 0."""
    with np.errstate(all="ignore"):
        return np.where((q == 0) & np.isneginf(logs), 0.0, q * logs)


def reduced(losses: Array, reduction: str, divisor: float) -> Array:
    """The losses of the rows, or their sum or mean."""
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / divisor if divisor else 0.0


def share(dloss: Any, rows: tuple[int, ...], reduction: str, divisor: float) -> Array:
    """The gradient of each row's loss, with the class axis kept."""
    each = np.broadcast_to(double(dloss), rows[:-1])
    if reduction == "mean":
        each = each / divisor if divisor else np.zeros(rows[:-1])
    return each[..., None]


def loss_of_logarithms(
    logs: Array,
    t: Any,
    axis: int,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    sizes: bool = False,
) -> Array:
    """The loss, given the logarithms of probabilities with the classes last; with `sizes` that of its terms' sizes."""
    q, divisor = spread(t, np.moveaxis(logs, -1, axis).shape, axis, weight, ignore_index, label_smoothing)
    terms = times_log(q, logs)
    with np.errstate(all="ignore"):
        losses = np.where(q.any(axis=-1), (abs(terms) if sizes else -terms).sum(axis=-1), 0.0)
    return reduced(losses, reduction, divisor)


def mistakes_of_losses(kernel: str, rows: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made in calling any loss whose rows are the argument called `rows`."""
    return (
        Mistake({rows: np.ones((2, 0))}, ValueError, f"{kernel}: {rows}: expected at least one class along axis 1"),
        Mistake({rows: np.ones((2, 3), complex)}, TypeError, f"{kernel}: {rows}: expected .*, got dtype complex128"),
        Mistake({"axis": 2}, ValueError, rf"{kernel}: axis: expected an axis in \[-2, 2\), got 2"),
        *mistakes_of_labels(kernel),
    )


def mistakes_of_labels(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with labels, and with options but the axis."""
    return (
        Mistake({"t": None}, TypeError, f"{kernel}: t: expected class indices or one number per class, got NoneType"),
        Mistake(
            {"t": ["a", "b"]}, TypeError, f"{kernel}: t: expected class indices or one number per class, got dtype"
        ),
        Mistake({"t": [0.0, 1.0]}, TypeError, f"{kernel}: t: expected class indices of an integer dtype, got dtype f"),
        Mistake(
            {"t": [True, False]}, TypeError, f"{kernel}: t: expected class indices of an integer dtype, got dtype b"
        ),
        Mistake({"t": [0, 1, 2]}, ValueError, rf"{kernel}: t: expected class indices of shape \(2,\) or .*\(3,\)"),
        Mistake({"t": [0, 3]}, ValueError, rf"{kernel}: t: expected labels in \[0, 3\), got 3 at row 1"),
        Mistake(
            {"t": [-1, 0]}, ValueError, rf"{kernel}: t: expected labels in \[0, 3\), got -1 at row 0; pass ignore_index"
        ),
        Mistake(
            {"t": [-1, -2], "ignore_index": -1},
            ValueError,
            r"t: expected labels in \[0, 3\) or the ignored label -1, got -2 at row 1",
        ),
        Mistake(
            {"t": np.eye(3)[:2], "ignore_index": 0},
            ValueError,
            f"{kernel}: ignore_index: expected None with one label per class, got 0",
        ),
        Mistake({"weight": [1.0, 2.0]}, ValueError, rf"{kernel}: weight: expected one weight per class, shape \(3,\)"),
        Mistake({"weight": ["a"] * 3}, TypeError, f"{kernel}: weight: expected .*, got dtype <U1"),
        *mistakes_of_options(kernel),
    )


def mistakes_of_options(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with the options of any loss, but for weights and axis."""
    return (
        Mistake({"ignore_index": 0.5}, TypeError, f"{kernel}: ignore_index: expected an integer or None, got 0.5"),
        Mistake(
            {"label_smoothing": 1.5}, ValueError, rf"{kernel}: label_smoothing: expected a number in \[0, 1\], got 1"
        ),
        Mistake({"label_smoothing": float("nan")}, ValueError, f"{kernel}: label_smoothing: expected .*, got nan"),
        Mistake({"label_smoothing": "0"}, TypeError, f"{kernel}: label_smoothing: expected a number in .*, got '0'"),
        Mistake({"reduction": "avg"}, ValueError, f"{kernel}: reduction: expected one of mean, sum, none; got 'avg'"),
        Mistake({"reduction": None}, TypeError, f"{kernel}: reduction: expected one of mean, sum, none; got None"),
    )


def mistakes_of_upstream(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with the gradient of a loss."""
    return (
        Mistake({"dloss": [1.0, 1.0]}, ValueError, rf"{kernel}: dloss: expected the shape .*'mean', \(\), got \(2,\)"),
        Mistake(
            {"reduction": "none", "dloss": 1.0}, ValueError, rf"{kernel}: dloss: expected .*'none', \(2,\), got \(\)"
        ),
        Mistake({"dloss": 1j}, TypeError, f"{kernel}: dloss: expected .*, got dtype complex128"),
    )
