"""Sigmoid and binary cross-entropy in one pass over the logits."""

from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.binary_labels import count
from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.numpy.pool import Scratch, run_blocks
from plugrad.backends.options import COMPUTE, BinaryLossOptions


def sigmoid_cross_entropy(x: Array, t: Array, options: BinaryLossOptions, loss: Array, y: Array) -> None:
    """``y = sigmoid(x)`` and ``loss = -t log(y) - (1 - t) log(1 - y)``."""
    _over_elements(False, x, t, options, loss, y)


def sigmoid_cross_entropy_value_and_grad(
    x: Array, t: Array, options: BinaryLossOptions, loss: Array, dx: Array
) -> None:
    """The same loss and ``dx = sigmoid(x) - t``."""
    _over_elements(True, x, t, options, loss, dx)


@quietly
def _over_elements(is_gradient: bool, x: Array, t: Array, options: BinaryLossOptions, loss: Array, out: Array) -> None:
    divisor = _divisor(t, options)
    each = loss if options.reduction == "none" else None
    task = partial(_forward, options, is_gradient, divisor)
    sums = run_blocks(task, (x, t, *_weights(options, x.shape), each, out), x.shape, 4)
    if each is None:
        loss[...] = float(np.add.reduce(sums)) / divisor if divisor else 0


def sigmoid_cross_entropy_backward(dloss: Any, y: Array, t: Array, options: BinaryLossOptions, dx: Array) -> None:
    """``dx = dloss (y - t)``."""
    divisor = _divisor(t, options)
    each = dloss if isinstance(dloss, np.ndarray) and options.reduction == "none" else None
    task = partial(_backward, options, dloss, divisor)
    run_blocks(task, (y, t, *_weights(options, y.shape), each, dx), y.shape, 2)


def _divisor(t: Array, options: BinaryLossOptions) -> int:
    counted = count(t, options)
    return counted if options.reduction == "mean" else 1


def _weights(options: BinaryLossOptions, shape: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """The weights, broadcast to the logits."""
    weight, pos_weight = (
        None if given is None else np.broadcast_to(given, shape) for given in (options.weight, options.pos_weight)
    )
    return weight, pos_weight


def _factors(
    options: BinaryLossOptions, compute: Any, t: Array, weight: Array | None, pos_weight: Array | None
) -> tuple[Array, Array, Array | None]:
    """What ``log(1 + exp(-x))`` and ``log(1 + exp(x))`` are multiplied by, and which elements are ignored."""
    keep, spread = compute.type(1 - options.label_smoothing), compute.type(options.label_smoothing / 2)
    labels = t.astype(compute)
    positive, negative = keep * labels + spread, keep * (1 - labels) + spread
    if pos_weight is not None:
        positive = positive * pos_weight
    if weight is not None:
        positive, negative = positive * weight, negative * weight
    label = options.ignored_label(t.dtype)
    return positive, negative, None if label is None else np.asarray(t == label)


@quietly
def _forward(
    options: BinaryLossOptions,
    is_gradient: bool,
    divisor: int,
    scratch: Scratch,
    x: Array,
    t: Array,
    weight: Array | None,
    pos_weight: Array | None,
    each: Array | None,
    out: Array,
) -> float:
    compute = COMPUTE[x.dtype]
    logits = x.astype(compute, copy=False)
    positive, negative, ignored = _factors(options, compute, t, weight, pos_weight)
    size = np.abs(logits)
    e = np.exp(-size)
    factor = np.where(logits < 0, positive, negative)
    losses = (positive + negative) * np.log1p(e) + np.where(factor == 0, 0, factor * size)
    larger, smaller = 1 / (1 + e), e / (1 + e)
    is_negative = logits < 0
    result = y = np.where(is_negative, smaller, larger)
    if is_gradient:
        result = (negative * y - positive * np.where(is_negative, larger, smaller)) / compute.type(divisor or 1)
    if ignored is not None:
        losses = np.where(ignored, 0, losses)
        result = np.where(ignored, 0, result) if is_gradient else result
    if each is not None:
        each[...] = losses
    out[...] = result
    return 0.0 if each is not None else float(np.add.reduce(losses, axis=None, dtype=np.float64))


@quietly
def _backward(
    options: BinaryLossOptions,
    dloss: Any,
    divisor: int,
    scratch: Scratch,
    y: Array,
    t: Array,
    weight: Array | None,
    pos_weight: Array | None,
    each: Array | None,
    dx: Array,
) -> None:
    compute = COMPUTE[y.dtype]
    positive, negative, ignored = _factors(options, compute, t, weight, pos_weight)
    y = y.astype(compute, copy=False)
    upstream = np.asarray(dloss if each is None else each).astype(compute) / compute.type(divisor or 1)
    slope = (negative * y - positive * (1 - y)) * upstream
    dx[...] = slope if ignored is None else np.where(ignored, 0, slope)
