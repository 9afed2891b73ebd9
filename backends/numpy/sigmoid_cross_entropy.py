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
    options: BinaryLossOptions, scratch: Scratch, compute: Any, t: Array, weight: Array | None, pos_weight: Array | None
) -> tuple[Array, Array, Array | None]:
    """What ``log(1 + exp(-x))`` and ``log(1 + exp(x))`` are multiplied by, and which elements are ignored."""
    keep, spread = compute.type(1 - options.label_smoothing), compute.type(options.label_smoothing / 2)
    positive, negative = scratch.array("positive", t.shape, compute), scratch.array("negative", t.shape, compute)
    np.copyto(positive, t, casting="unsafe")
    np.subtract(1, positive, out=negative)
    for factor in (positive, negative) if options.label_smoothing else ():
        factor *= keep
        factor += spread
    if pos_weight is not None:
        positive *= pos_weight
    if weight is not None:
        positive *= weight
        negative *= weight
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
    positive, negative, ignored = _factors(options, scratch, compute, t, weight, pos_weight)
    # Without masks, with which NumPy takes ten times as long: of exp(min(x, 0)) and exp(min(-x, 0)) one is 1.
    low, high, y, rest, larger, losses = (
        scratch.array(name, x.shape, compute) for name in ("low", "high", "y", "rest", "larger", "losses")
    )
    np.copyto(low, x, casting="unsafe")
    np.minimum(np.negative(low, out=high), 0, out=high)
    np.minimum(low, 0, out=low)
    np.exp(low, out=y)
    np.exp(high, out=rest)
    np.multiply(y, rest, out=losses)
    np.reciprocal(np.add(losses, 1, out=larger), out=larger)
    np.log1p(losses, out=losses)
    y *= larger
    rest *= larger
    if weight is not None or pos_weight is not None:  # else the factors sum to 1
        losses *= np.add(positive, negative, out=larger)
    for factor, part in ((positive, low), (negative, high)):
        if not part.min(initial=0) > -np.inf:
            part[factor == 0] = 0  # 0 times infinity
        losses -= np.multiply(factor, part, out=part)
    result = y
    if is_gradient:
        y *= negative
        rest *= positive
        y -= rest
        y /= compute.type(divisor or 1)
        if ignored is not None:
            y[ignored] = 0
    if ignored is not None:
        losses[ignored] = 0
    if each is not None:
        np.copyto(each, losses)
    np.copyto(out, result, casting="unsafe")
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
    positive, negative, ignored = _factors(options, scratch, compute, t, weight, pos_weight)
    slope = scratch.array("y", y.shape, compute)
    np.copyto(slope, y, casting="unsafe")
    negative *= slope
    positive *= np.subtract(1, slope, out=slope)
    np.subtract(negative, positive, out=slope)
    slope *= np.asarray(dloss if each is None else each).astype(compute) / compute.type(divisor or 1)
    if ignored is not None:
        slope[ignored] = 0
    np.copyto(dx, slope, casting="unsafe")
