"""What every kernel should compute: its formula in float64, written apart from the backends and without their tricks.

One function per kernel, with the kernel's name and arguments; it returns a tuple of results. A loss is worked out from
the definition, with a label for every class of every row, so that it shares nothing with the code it judges.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


def double(x: Any) -> Array:
    return np.asarray(x).astype(np.float64)


def softmax(x: Any, axis: int = -1) -> tuple[Array, ...]:
    x = double(x)
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return (e / e.sum(axis=axis, keepdims=True),)


def softmax_backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = double(dy), double(y)
    return (y * (dy - (dy * y).sum(axis=axis, keepdims=True)),)


def log_softmax(x: Any, axis: int = -1) -> tuple[Array, ...]:
    x = double(x)
    with np.errstate(all="ignore"):
        z = x - x.max(axis=axis, keepdims=True)
        # The largest term is 1: log1p of the others keeps what they add where they are tiny.
        return (z - np.log1p(_without_the_largest(np.exp(z), axis)),)


def _without_the_largest(x: Array, axis: int) -> Array:
    """The sum along an axis of all elements but one of the largest."""
    others = np.delete(np.sort(x, axis=axis), -1, axis=axis)
    return others.sum(axis=axis, keepdims=True) + 0 * x.sum(axis=axis, keepdims=True)  # NaN is sorted to the end


def log_softmax_backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = double(dy), double(y)
    return (dy - np.exp(y) * dy.sum(axis=axis, keepdims=True),)


def relu(x: Any) -> tuple[Array, ...]:
    x = double(x)
    return (np.where(x < 0, 0.0, x),)


def relu_backward(dy: Any, y: Any) -> tuple[Array, ...]:
    return (np.where(double(y) > 0, double(dy), 0.0),)


def sigmoid(x: Any) -> tuple[Array, ...]:
    x = double(x)
    with np.errstate(all="ignore"):
        return (np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),)


def sigmoid_backward(dy: Any, y: Any) -> tuple[Array, ...]:
    return (double(dy) * double(y) * (1 - double(y)),)


def affine(x: Any, w: Any, b: Any = None) -> tuple[Array, ...]:
    y = np.einsum("...i,io->...o", double(x), double(w))
    return (y if b is None else y + double(b),)


def affine_backward(dy: Any, x: Any, w: Any, needs: tuple[str, ...] = ("dx", "dw", "db")) -> tuple[Array, ...]:
    dy, x, w = double(dy), double(x), double(w)
    rows = math.prod(x.shape[:-1])  # by number: -1 is refused where there are no columns
    xs, dys = x.reshape(rows, x.shape[-1]), dy.reshape(rows, dy.shape[-1])
    dx, dw, db = np.einsum("...o,io->...i", dy, w), np.einsum("ni,no->io", xs, dys), dys.sum(axis=0)
    return dx if "dx" in needs else None, dw if "dw" in needs else None, db if "db" in needs else None


def _labels(t: Any, shape: tuple[int, ...], axis: int, weight: Any, ignore_index: int | None, smoothing: float) -> Any:
    """The weighted, smoothed labels with the classes last, and what the mean divides by."""
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


def _times_log(q: Array, logs: Array) -> Array:
    """``q * logs``, with 0 for a label of 0 on a probability of 0."""
    with np.errstate(all="ignore"):
        return np.where((q == 0) & np.isneginf(logs), 0.0, q * logs)


def _reduced(losses: Array, reduction: str, divisor: float) -> Array:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / divisor if divisor else 0.0


def _share(dloss: Any, rows: tuple[int, ...], reduction: str, divisor: float) -> Array:
    """The gradient of each row's loss, with the class axis kept."""
    share = np.broadcast_to(double(dloss), rows[:-1])
    if reduction == "mean":
        share = share / divisor if divisor else np.zeros(rows[:-1])
    return share[..., None]


def _loss(
    logs: Array,
    t: Any,
    axis: int,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    sizes: bool = False,
) -> Array:
    """The loss, given the logarithms of probabilities with the classes last; or the sum of the sizes of its terms."""
    q, divisor = _labels(t, np.moveaxis(logs, -1, axis).shape, axis, weight, ignore_index, label_smoothing)
    terms = _times_log(q, logs)
    with np.errstate(all="ignore"):
        losses = np.where(q.any(axis=-1), (abs(terms) if sizes else -terms).sum(axis=-1), 0.0)
    return _reduced(losses, reduction, divisor)


def cross_entropy(p: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    with np.errstate(all="ignore"):
        logs = np.log(np.moveaxis(double(p), axis, -1))
    return (_loss(logs, t, axis, **options),)


def cross_entropy_backward(
    dloss: Any,
    p: Any,
    t: Any,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, ...]:
    p = np.moveaxis(double(p), axis, -1)
    q, divisor = _labels(t, np.moveaxis(p, -1, axis).shape, axis, weight, ignore_index, label_smoothing)
    with np.errstate(all="ignore"):
        slope = np.where(q == 0, 0.0, -q / p * _share(dloss, p.shape, reduction, divisor))
    return (np.moveaxis(slope, -1, axis),)


def softmax_cross_entropy(x: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    logs = np.moveaxis(log_softmax(x, axis)[0], axis, -1)
    return _loss(logs, t, axis, **options), softmax(x, axis)[0]


def softmax_cross_entropy_backward(
    dloss: Any,
    y: Any,
    t: Any,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, ...]:
    y = np.moveaxis(double(y), axis, -1)
    q, divisor = _labels(t, np.moveaxis(y, -1, axis).shape, axis, weight, ignore_index, label_smoothing)
    slope = (y * q.sum(axis=-1, keepdims=True) - q) * _share(dloss, y.shape, reduction, divisor)
    return (np.moveaxis(np.where(q.any(axis=-1, keepdims=True), slope, 0.0), -1, axis),)


def softmax_cross_entropy_value_and_grad(x: Any, t: Any, axis: int = -1, **options: Any) -> tuple[Array, ...]:
    loss, y = softmax_cross_entropy(x, t, axis, **options)
    reduction = options.pop("reduction", "mean")
    y = np.moveaxis(y, axis, -1)
    q, divisor = _labels(
        t,
        np.shape(x),
        axis,
        options.get("weight"),
        options.get("ignore_index"),
        options.get("label_smoothing", 0.0),
    )
    with np.errstate(all="ignore"):
        # y sum(q) - q, as y (sum(q) - q) - q (1 - y), where 1 - y of the largest is the sum of the others.
        top = np.arange(y.shape[-1]) == y.argmax(axis=-1)[..., None]
        rest = np.where(top, _without_the_largest(y, -1), 1 - y)
        slope = y * (q.sum(axis=-1, keepdims=True) - q) - q * rest
        slope = np.where(q.any(axis=-1, keepdims=True), slope, 0.0)
    return loss, np.moveaxis(slope * _share(1.0, y.shape, reduction, divisor), -1, axis)


def linear_cross_entropy(
    x: Any, w: Any, b: Any, t: Any, max_workspace: Any = None, **options: Any
) -> tuple[Array, ...]:
    return softmax_cross_entropy(affine(x, w, b)[0], t, **options)[:1]


def linear_cross_entropy_value_and_grad(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    needs: tuple[str, ...] = ("dx", "dw", "db"),
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    loss, dz = softmax_cross_entropy_value_and_grad(affine(x, w, b)[0], t, **options)
    # What is multiplied by a gradient of exactly 0 adds 0, be it infinite: of rows that do not count.
    rows = np.where(dz.any(axis=-1, keepdims=True) | np.isnan(dz).any(axis=-1, keepdims=True), double(x), 0.0)
    with np.errstate(all="ignore"):
        dx, dw, db = affine_backward(dz, rows, w, needs)
    return loss, dx, dw, None if b is None else db


def jacobian(name: str, *arguments: Any) -> tuple[Array, ...]:
    """The Jacobian of that name: row i of each is the gradient of the i-th result of a row."""
    if name == "affine_jacobian":
        x, w = map(double, arguments)
        identity = np.eye(w.shape[1])
        by_x, by_b = (np.broadcast_to(z, (*x.shape[:-1], *z.shape)) for z in (w.T, identity))
        return by_x, np.einsum("...i,jk->...jik", x, identity), by_b
    y = double(arguments[0])
    backward = ORACLES[name.replace("jacobian", "backward")]
    rows = [backward(np.broadcast_to(upstream, y.shape), y)[0] for upstream in np.eye(y.shape[-1])]
    return (np.stack(rows, axis=-2) if rows else np.zeros((*y.shape, 0)),)


def sgd(
    p: Any, grads: Any, lr: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Array:
    """A parameter after a step for each gradient."""
    v = np.zeros_like(p)
    for step, g in enumerate(grads):
        d = g + weight_decay * p
        v = momentum * v + d
        p = p - (lr(step) if callable(lr) else lr) * (d + momentum * v if nesterov else v)
    return p


def adam(
    p: Any, grads: Any, lr: float = 0.001, betas: Any = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Array:
    """A parameter after a step for each gradient."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, g in enumerate(grads, 1):
        d = g + weight_decay * p
        m, v = betas[0] * m + (1 - betas[0]) * d, betas[1] * v + (1 - betas[1]) * d * d
        p = p - lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return p


ORACLES: dict[str, Callable[..., tuple[Array, ...]]] = {
    function.__name__: function
    for function in (
        softmax,
        softmax_backward,
        log_softmax,
        log_softmax_backward,
        relu,
        relu_backward,
        sigmoid,
        sigmoid_backward,
        affine,
        affine_backward,
        cross_entropy,
        cross_entropy_backward,
        softmax_cross_entropy,
        softmax_cross_entropy_backward,
        softmax_cross_entropy_value_and_grad,
        linear_cross_entropy,
        linear_cross_entropy_value_and_grad,
    )
}


def _terms_of_affine(x: Any, w: Any, b: Any = None) -> tuple[Array, ...]:
    return affine(abs(double(x)), abs(double(w)), None if b is None else abs(double(b)))


def _terms_of_affine_backward(dy: Any, x: Any, w: Any, **options: Any) -> tuple[Array, ...]:
    return affine_backward(abs(double(dy)), abs(double(x)), abs(double(w)), **options)


def _terms_of_softmax_backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy, y = abs(double(dy)), abs(double(y))
    return (y * (dy + (dy * y).sum(axis=axis, keepdims=True)),)


def _terms_of_log_softmax_backward(dy: Any, y: Any, axis: int = -1) -> tuple[Array, ...]:
    dy = abs(double(dy))
    return (dy + np.exp(double(y)) * dy.sum(axis=axis, keepdims=True),)


def _terms_of_softmax_cross_entropy_backward(
    dloss: Any,
    y: Any,
    t: Any,
    axis: int = -1,
    weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, ...]:
    y = np.moveaxis(double(y), axis, -1)
    q, divisor = _labels(t, np.moveaxis(y, -1, axis).shape, axis, weight, ignore_index, label_smoothing)
    terms = y * abs(q).sum(axis=-1, keepdims=True) + abs(q)
    return (np.moveaxis(terms * _share(abs(double(dloss)), y.shape, reduction, divisor), -1, axis),)


def _terms_of_cross_entropy(p: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    return cross_entropy(p, t, **options, sizes=True)


def _terms_of_softmax_cross_entropy(x: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    return softmax_cross_entropy(x, t, **options, sizes=True)


def _terms_of_softmax_cross_entropy_value_and_grad(x: Any, t: Any, **options: Any) -> tuple[Array, ...]:
    loss, y = _terms_of_softmax_cross_entropy(x, t, **options)
    return loss, _terms_of_softmax_cross_entropy_backward(np.ones(np.shape(loss)), y, t, **options)[0]


def _terms_of_linear_cross_entropy(
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
    q, divisor = _labels(t, shape, -1, weight, ignore_index, label_smoothing)
    losses = abs(_times_log(q, log_softmax(affine(x, w, b)[0])[0])).sum(axis=-1)
    # A logit is off by a share of its terms, and a loss by as much as its logits.
    return (_reduced(losses + _terms_of_logits(x, w, b) * abs(q).sum(axis=-1), reduction, divisor),)


def _terms_of_logits(x: Any, w: Any, b: Any) -> Array:
    """For each row the largest of the terms of its logits."""
    terms = _terms_of_affine(x, w, b)[0]
    return np.where(np.isfinite(terms), terms, 0.0).max(axis=-1)


def _terms_of_linear_cross_entropy_value_and_grad(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    needs: tuple[str, ...] = ("dx", "dw", "db"),
    max_workspace: Any = None,
    **options: Any,
) -> tuple[Array, ...]:
    (loss,) = _terms_of_linear_cross_entropy(x, w, b, t, **options)
    slopes = _terms_of_softmax_cross_entropy_value_and_grad(affine(x, w, b)[0], t, **options)[1]
    # The gradient of a logit is off by the share of itself that its logits are off.
    slopes = slopes * np.maximum(1.0, _terms_of_logits(x, w, b)[..., None])
    dx, dw, db = affine_backward(slopes, abs(double(x)), abs(double(w)), needs)
    return loss, dx, dw, None if b is None else db


# The sums of the magnitudes of the terms of results that are sums: where terms cancel, their rounding errors stay.
TERMS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "affine": _terms_of_affine,
    "affine_backward": _terms_of_affine_backward,
    "softmax_backward": _terms_of_softmax_backward,
    "log_softmax_backward": _terms_of_log_softmax_backward,
    "cross_entropy": _terms_of_cross_entropy,
    "softmax_cross_entropy": _terms_of_softmax_cross_entropy,
    "softmax_cross_entropy_backward": _terms_of_softmax_cross_entropy_backward,
    "softmax_cross_entropy_value_and_grad": _terms_of_softmax_cross_entropy_value_and_grad,
    "linear_cross_entropy": _terms_of_linear_cross_entropy,
    "linear_cross_entropy_value_and_grad": _terms_of_linear_cross_entropy_value_and_grad,
}
