"""Sigmoid and binary cross-entropy in one: the loss of logits that are two classes each, and its gradient y - t."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from plugrad.backends import Backend, contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE, BinaryLossOptions, LossOptions
from plugrad.backends.recording import would_be_converted
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    Out,
    checked_options,
    fill,
    floating,
    given_back,
    given_results,
    gradient_of_loss,
    in_dtype_of_loss,
    result,
    same_shape,
)
from plugrad.kernels._kernel import kernel


@kernel(contract.BinaryLossAnd, "y = sigmoid(x), loss = −t log y − (1 − t) log(1 − y)", results=("loss", "y"))
def sigmoid_cross_entropy(
    x: ArrayLike,
    t: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Out = None,
) -> tuple[Loss, Array]:
    """Binary cross-entropy of the sigmoid of logits `x` against labels `t`, and the probabilities ``y = sigmoid(x)``.

    Per element, ``loss = weight * (pos_weight * q * log(1 + exp(-x)) + (1 - q) * log(1 + exp(x)))`` with
    ``q = (1 - e) t + e / 2``, where `e` is `label_smoothing`.

    Parameters
    ----------
    x : array_like
        Logits, any shape; float16, bfloat16, float32 or float64. Integers, booleans and sequences become float64.
    t : array_like
        Labels in [0, 1], shape of `x`; booleans, integers or floats.
    weight : array_like, optional
        A weight for each element, in a shape that broadcasts to that of `x`.
    pos_weight : array_like, optional
        A further weight for the part of each label that is 1, such as the ratio of negatives to positives.
    ignore_index : int, optional
        Elements with this label add nothing to the loss and get a gradient of exact zeros, whatever their logits. It
        may lie outside [0, 1].
    label_smoothing : float
        In [0, 1], see above.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides the sum by the number of elements that count; where none counts, loss and gradient are 0.
    out : array or tuple of arrays, optional
        Where to write `y`, or ``(loss, y)``, None for a new array: their shapes and dtypes, any strides; `y` may be
        written to `x` itself.

    Returns
    -------
    loss : scalar or array
        In nats. A scalar, or with ``reduction="none"`` an array of the shape of `x`; float64 for float64, else float32.
        A label of 0 on a logit of ``-inf`` adds 0, and so does a label of 1 on ``+inf``.
    y : array
        Probabilities, shape and dtype of `x`: what `sigmoid_cross_entropy_backward` needs.

    Raises
    ------
    TypeError
        If an array is complex, text or objects, lies on another device than the backend computes on, or an option or
        `out` has a wrong type.
    ValueError
        If a label lies outside [0, 1] and is not `ignore_index` (on a GPU the loss and the gradient of that element are
        NaN instead, unless ``check=True``), a shape does not fit, or an option is out of range.

    Notes
    -----
    ``log(1 + exp(x)) = max(x, 0) + log1p(exp(-abs(x)))``, whose terms are never negative: elements predicted with
    confidence keep their relative accuracy.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, y = K.sigmoid_cross_entropy([0.0, 40.0], [1, 1], reduction="none")
    >>> loss
    array([6.93147181e-01, 4.24835426e-18])
    """
    options = weight, pos_weight, ignore_index, label_smoothing, reduction
    return _loss_and("sigmoid_cross_entropy", "y", x, t, *options, out)


@kernel(contract.BinaryLossBackward, "dx = dloss (y − t) / N (N elements count; 1 for the sum)", results=("dx",))
def sigmoid_cross_entropy_backward(
    dloss: ArrayLike,
    y: ArrayLike,
    t: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Array | None = None,
) -> Array:
    """Gradient of `sigmoid_cross_entropy` with respect to the logits: ``dx = dloss * (y - t) / N`` of the mean.

    `N` is the number of elements that count. In full, per element,
    ``dx = dloss * weight * ((1 - q) * y - pos_weight * q * (1 - y))`` with ``q`` as in `sigmoid_cross_entropy`, divided
    as the reduction says. `sigmoid_cross_entropy_value_and_grad` is more accurate where `y` rounds to 1.

    Parameters
    ----------
    dloss : float or array
        Gradient with respect to the loss: a scalar, or with ``reduction="none"`` an array of the shape of `y`. Its
        dtype does not count.
    y : array_like
        The probabilities that `sigmoid_cross_entropy` returned.
    t, weight, pos_weight, ignore_index, label_smoothing, reduction
        As given to `sigmoid_cross_entropy`.
    out : array, optional
        Where to write the result: shape and dtype of `y`, any strides; may be `y` itself.

    Returns
    -------
    dx : array
        Gradient with respect to the logits, in the shape and dtype of `y`.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid_cross_entropy`, and if `dloss` has not the shape of the loss.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, y = K.sigmoid_cross_entropy([[0.0, 0.0]], [[0, 1]])
    >>> K.sigmoid_cross_entropy_backward(1.0, y, [[0, 1]])
    array([[ 0.25, -0.25]])
    """
    options = weight, pos_weight, ignore_index, label_smoothing, reduction
    return _backward("sigmoid_cross_entropy_backward", dloss, y, t, *options, out)


@kernel(contract.BinaryLossAnd, "loss and dx = (y − t) / N in one pass (N elements count)", results=("loss", "dx"))
def sigmoid_cross_entropy_value_and_grad(
    x: ArrayLike,
    t: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    out: Out = None,
) -> tuple[Loss, Array]:
    """The loss of `sigmoid_cross_entropy` and its gradient with respect to the logits, in one pass over them.

    Parameters
    ----------
    x, t, weight, pos_weight, ignore_index, label_smoothing, reduction
        As for `sigmoid_cross_entropy`.
    out : array or tuple of arrays, optional
        Where to write `dx`, or ``(loss, dx)``, None for a new array: their shapes and dtypes, any strides; `dx` may
        be written to `x` itself.

    Returns
    -------
    loss : scalar or array
        As `sigmoid_cross_entropy` returns it.
    dx : array
        Gradient of the loss with respect to `x`, or with ``reduction="none"`` of the sum of the losses; shape and
        dtype of `x`.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid_cross_entropy`.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> loss, dx = K.sigmoid_cross_entropy_value_and_grad([[0.0, 0.0]], [[0, 1]])
    >>> float(loss.round(6)), dx.tolist()
    (0.693147, [[0.25, -0.25]])
    """
    options = weight, pos_weight, ignore_index, label_smoothing, reduction
    return _loss_and("sigmoid_cross_entropy_value_and_grad", "dx", x, t, *options, out)


def _loss_and(
    kernel: str,
    second: str,
    x: Any,
    t: Any,
    weight: Any,
    pos_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> tuple[Loss, Array]:
    """The loss of logits, and an array of their shape called `second`: probabilities or gradient."""
    backend = backend_for(x, kernel)
    given = t, weight, pos_weight, ignore_index, label_smoothing, reduction
    if backend.foreign is not None:
        return in_library(backend.foreign, x, _loss_and, kernel, second, x, *given, out)
    x, t, options = _arguments(kernel, "x", x, *given, backend)
    loss_out, array_out = given_results(kernel, out, ("loss", second), lone=second)
    reads = (x, t, options.weight, options.pos_weight)
    array, reads = result(kernel, f"out: {second}", array_out, x.shape, x.dtype, backend, reads)
    shape, dtype = _loss_shape(x, options), COMPUTE[x.dtype]
    loss, (x, t, weight, pos_weight) = result(kernel, "out: loss", loss_out, shape, dtype, backend, reads, (array,))
    if x.size:
        if weight is not options.weight or pos_weight is not options.pos_weight:
            options = options._replace(weight=weight, pos_weight=pos_weight)
        backend.functions[kernel](x, t, options, loss, array)
    else:
        fill(kernel, 0, (loss, array), backend)
    return given_back(loss, loss_out, backend), given_back(array, array_out, backend)


def _backward(
    kernel: str,
    dloss: Any,
    y: Any,
    t: Any,
    weight: Any,
    pos_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Array:
    """The gradient of the loss with respect to the logits, whose sigmoid is `y`."""
    backend = backend_for(y, kernel)
    given = t, weight, pos_weight, ignore_index, label_smoothing, reduction
    if backend.foreign is not None:
        return in_library(backend.foreign, y, _backward, kernel, dloss, y, *given, out)
    y, t, options = _arguments(kernel, "y", y, *given, backend)
    dloss = gradient_of_loss(kernel, dloss, _loss_shape(y, options), options.reduction, backend)
    reads = (y, t, options.weight, options.pos_weight, None if isinstance(dloss, float) else dloss)
    dx, (y, t, weight, pos_weight, each) = result(kernel, "out", out, y.shape, y.dtype, backend, reads)
    if y.size:
        if weight is not options.weight or pos_weight is not options.pos_weight:
            options = options._replace(weight=weight, pos_weight=pos_weight)
        backend.functions[kernel](dloss if each is None else each, y, t, options, dx)
    else:
        fill(kernel, 0, (dx,), backend)
    return given_back(dx, out, backend)


def _loss_shape(x: Any, options: BinaryLossOptions) -> tuple[int, ...]:
    shape: tuple[int, ...] = x.shape if options.reduction == "none" else ()
    return shape


def _arguments(
    kernel: str,
    name: str,
    x: Any,
    t: Any,
    weight: Any,
    pos_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    backend: Backend,
) -> tuple[Any, Any, BinaryLossOptions]:
    """The argument called `name`, its labels, and the options, checked."""
    x = floating(kernel, name, x, backend)
    options = checked_options(kernel, 0, ignore_index, label_smoothing, reduction)
    t = _labels(kernel, t, backend)
    same_shape(kernel, "t", t, name, x.shape)
    if weight is None and pos_weight is None:
        return x, t, _without_weights(options)
    weight, pos_weight = (
        _weights(kernel, of, given, name, x, backend) for of, given in (("weight", weight), ("pos_weight", pos_weight))
    )
    return x, t, _without_weights(options)._replace(weight=weight, pos_weight=pos_weight)


@functools.lru_cache(256)
def _without_weights(options: LossOptions) -> BinaryLossOptions:
    """The checked options of a loss as those of a binary one."""
    checked = options.ignore_index, options.label_smoothing, options.reduction
    return BinaryLossOptions(options.kernel, None, None, *checked)


def _labels(kernel: str, t: Any, backend: Backend) -> Any:
    """Labels of any real dtype in native byte order."""
    if type(t) is not backend.native:
        given, t = t, backend.take(f"{kernel}: t", t)
        if t.dtype.kind in "OSUmM":
            found = f"dtype {t.dtype}" if t.ndim else type(given).__qualname__
            raise TypeError(f"{kernel}: t: expected a label in [0, 1] for each logit, got {found}")
    if t.dtype.kind not in "iub":
        return floating(kernel, "t", t, backend)
    if t.dtype.isnative:
        return t
    if backend.recorder is not None:
        raise would_be_converted(f"{kernel}: t", "labels in native byte order", f"dtype {t.dtype}")
    return t.astype(t.dtype.newbyteorder("="))


def _weights(kernel: str, name: str, weight: Any, of: str, x: Any, backend: Backend) -> Any:
    """Weights that broadcast to `x`, the argument called `of`."""
    if weight is None:
        return None
    if isinstance(weight, float | int):  # a constant, in a capture too
        weight = backend.asarray(np.array(weight, COMPUTE[x.dtype]))
        if backend.recorder is not None:
            backend.recorder.constants.append(weight)
    weight = floating(kernel, name, weight, backend)
    try:
        fits = np.broadcast_shapes(weight.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{kernel}: {name}: expected a shape that broadcasts to that of {of}, {x.shape}, got {weight.shape}"
        )
    return in_dtype_of_loss(kernel, name, weight, x, backend)
