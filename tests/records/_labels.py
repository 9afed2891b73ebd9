"""The labels and options of losses: samples, the oracle's form of them, and the mistakes that callers make."""

from typing import Any

import numpy as np

from plugrad.tests.records._record import Array, Inputs, Mistake, double


def sample_labels(rng: np.random.Generator, rows: int, classes: int) -> Any:
    """Class indices."""
    return rng.integers(0, classes, rows)


def rows_with_weights(rng: np.random.Generator, sample: Inputs) -> Inputs:
    """A weight for each row."""
    return {"sample_weight": rng.random(len(sample["t"]), np.float32)}


def most_rows_ignored(rng: np.random.Generator, sample: Inputs) -> Inputs:
    """Labels by which one row of four counts."""
    t = sample["t"]
    return {"t": np.where(rng.random(len(t)) < 0.75, -100, t), "ignore_index": -100}


# Of the losses of logits, the options that benchmarks time.
TIMED = {"sample_weight": rows_with_weights, "z_loss": lambda rng, sample: {"z_loss": 1e-4}}


def spread(
    t: Any,
    shape: tuple[int, ...],
    axis: int,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    sample_weight: Any = None,
) -> tuple[Array, float]:
    """The weighted, smoothed labels of every class, with the classes last, and the divisor of the mean."""
    t = np.asarray(t)
    classes = shape[axis]
    w = np.ones(classes) if weight is None else double(weight)
    if t.ndim == len(shape):
        labels = np.moveaxis(double(t), axis, -1)
        rows = of_rows(labels[..., 0], None, sample_weight)
        divisor = float(rows.sum())
    else:
        labels = np.arange(classes) == t[..., None]
        rows = of_rows(t, ignore_index, sample_weight)
        divisor = float((w[t[rows != 0]] * rows[rows != 0]).sum())
    q = (1 - label_smoothing) * labels + label_smoothing / classes
    return np.where(rows[..., None] == 0, 0.0, rows[..., None] * w * q), divisor


def of_rows(t: Array, ignore_index: int | None, sample_weight: Any) -> Array:
    """The weight of each row, 0 for rows that do not count; `t` has the shape of the loss."""
    counts = np.ones(t.shape, bool) if ignore_index is None else t != ignore_index
    return np.where(counts, 1.0 if sample_weight is None else double(sample_weight), 0.0)


def z_of(x: Any, t: Any, axis: int, ignore_index: int | None, sample_weight: Any) -> tuple[Array, Array, float]:
    """The logarithm of each row's sum of exponentials, the row's weight, and the sum of all weights."""
    x, t = np.moveaxis(double(x), axis, -1), np.asarray(t)
    labels = np.moveaxis(t, axis, -1)[..., 0] if t.ndim == x.ndim else t
    rows = of_rows(labels, ignore_index, sample_weight)
    with np.errstate(all="ignore"):
        z = np.logaddexp.reduce(x, axis=-1)
    return np.where(rows == 0, 0.0, np.where(np.isfinite(z), z, np.nan)), rows, float(rows.sum())


def loss_of_z(
    x: Any,
    t: Any,
    axis: int = -1,
    z_loss: float = 0.0,
    reduction: str = "mean",
    ignore_index: int | None = None,
    sample_weight: Any = None,
    **_: Any,
) -> Array:
    """The z loss."""
    if not z_loss:
        return np.zeros(())
    z, rows, divisor = z_of(x, t, axis, ignore_index, sample_weight)
    return reduced(rows * z_loss * z**2, reduction, divisor)


def slope_of_z(
    x: Any,
    t: Any,
    axis: int = -1,
    z_loss: float = 0.0,
    reduction: str = "mean",
    ignore_index: int | None = None,
    sample_weight: Any = None,
    **_: Any,
) -> Array:
    """The factor of the probabilities of each row in the gradient of the z loss, with the class axis kept."""
    if not z_loss:
        return np.zeros(())
    z, rows, divisor = z_of(x, t, axis, ignore_index, sample_weight)
    return (2 * z_loss * rows * z)[..., None] * share(1.0, (*z.shape, 1), reduction, divisor)


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
    reduction: str = "mean",
    sizes: bool = False,
    **options: Any,
) -> Array:
    """The loss, given the logarithms of probabilities with the classes last; with `sizes` that of its terms' sizes."""
    q, divisor = spread(t, np.moveaxis(logs, -1, axis).shape, axis, **options)
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
        Mistake(
            {"sample_weight": [1.0, 2.0, 3.0]},
            ValueError,
            rf"{kernel}: sample_weight: expected one weight per row, shape \(2,\), got \(3,\)",
        ),
        Mistake({"sample_weight": 1j}, TypeError, f"{kernel}: sample_weight: expected .*, got dtype complex128"),
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


def mistakes_of_z_loss(kernel: str) -> tuple[Mistake, ...]:
    """The mistakes that can be made with the z loss."""
    return (
        Mistake({"z_loss": -0.1}, ValueError, f"{kernel}: z_loss: expected a finite number of at least 0, got -0.1"),
        Mistake({"z_loss": float("inf")}, ValueError, f"{kernel}: z_loss: expected a finite number .*, got inf"),
        Mistake({"z_loss": float("nan")}, ValueError, f"{kernel}: z_loss: expected a finite number .*, got nan"),
        Mistake({"z_loss": None}, TypeError, f"{kernel}: z_loss: expected a finite number .*, got None"),
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
