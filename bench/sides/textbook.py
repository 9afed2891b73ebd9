"""NumPy with the formulas of textbooks, as commonly written: ``e = np.exp(x - x.max(1, keepdims=True))`` and so on."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np

from plugrad.bench.cases import Case, network
from plugrad.bench.sizes import STEP

to_numpy = np.asarray


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def softmax_backward(dy: Any, y: Any) -> Any:
    return y * (dy - (dy * y).sum(1, keepdims=True))


def log_softmax(x: Any) -> Any:
    z = x - x.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def log_softmax_backward(dy: Any, y: Any) -> Any:
    return dy - np.exp(y) * dy.sum(1, keepdims=True)


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def relu_backward(dy: Any, y: Any) -> Any:
    return dy * (y > 0)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def sigmoid_backward(dy: Any, y: Any) -> Any:
    return dy * y * (1 - y)


def affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def affine_backward(dy: Any, x: Any, w: Any) -> Any:
    return dy @ w.T, x.T @ dy, dy.sum(0)


def linear_cross_entropy(x: Any, w: Any, b: Any, t: Any) -> Any:
    return softmax_cross_entropy(x @ w + b, t)[0]


def linear_cross_entropy_value_and_grad(x: Any, w: Any, b: Any, t: Any) -> Any:
    loss, dz = softmax_cross_entropy_value_and_grad(x @ w + b, t)
    return loss, *affine_backward(dz, x, w)


def cross_entropy(p: Any, t: Any) -> Any:
    return -np.log(np.take_along_axis(p, np.expand_dims(t, 1), 1)).mean()


def cross_entropy_backward(dloss: Any, p: Any, t: Any) -> Any:
    dp, at = np.zeros_like(p), np.expand_dims(t, 1)
    np.put_along_axis(dp, at, -dloss / np.take_along_axis(p, at, 1) / t.size, 1)
    return dp


def softmax_cross_entropy(x: Any, t: Any) -> Any:
    y = softmax(x)
    return cross_entropy(y, t), y


def softmax_cross_entropy_backward(dloss: Any, y: Any, t: Any) -> Any:
    dx, at = y.copy(), np.expand_dims(t, 1)
    np.put_along_axis(dx, at, np.take_along_axis(dx, at, 1) - 1, 1)
    dx *= dloss / t.size
    return dx


def softmax_cross_entropy_value_and_grad(x: Any, t: Any) -> Any:
    loss, y = softmax_cross_entropy(x, t)
    return loss, softmax_cross_entropy_backward(1.0, y, t)


FORMULAS: dict[str, Callable[..., Any]] = {
    formula.__name__: formula
    for formula in (
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
        linear_cross_entropy,
        linear_cross_entropy_value_and_grad,
        cross_entropy,
        cross_entropy_backward,
        softmax_cross_entropy,
        softmax_cross_entropy_backward,
        softmax_cross_entropy_value_and_grad,
    )
}
NAMES: Collection[str] = (*FORMULAS, STEP)


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by the formulas above."""
    if case.name == STEP:
        return _step(case)
    return partial(FORMULAS[case.name], *case.arguments())


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t, rate = given.x, given.t, given.x.dtype.type(given.rate)
    w1, b1, w2, b2 = given.parameters

    def step() -> Any:
        h = relu(affine(x, w1, b1))
        _, dz = softmax_cross_entropy_value_and_grad(affine(h, w2, b2), t)
        dh, dw2, db2 = affine_backward(dz, h, w2)
        da = relu_backward(dh, h)
        dw1, db1 = x.T @ da, da.sum(0)
        for parameter, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
            parameter -= rate * gradient
        return w1, b1, w2, b2

    return step
