"""PyTorch, with the functions of `plugrad.bridges.torch`, and `torch.autograd.grad` for the gradients of losses."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch

from plugrad.bench.cases import Case
from plugrad.bench.sides.torch import tensors, to_numpy
from plugrad.bridges import torch as bridge

__all__ = ["NAMES", "prepare", "to_numpy"]


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by the bridge."""
    return partial(FUNCTIONS[case.name], case.axis, *tensors(case))


def value_and_gradients(loss_of: Callable[..., Any], *inputs: Any) -> tuple[Any, ...]:
    """A loss, and its gradients with respect to the inputs."""
    for tensor in inputs:
        tensor.requires_grad_()
    loss = loss_of(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def linear_value_and_gradients(loss_of: Callable[..., Any], x: Any, w: Any, b: Any, t: Any) -> tuple[Any, ...]:
    """The loss of a last layer, and its gradients, that of the weights as the kernels have it."""
    loss, dx, dw, db = value_and_gradients(lambda x, w, b: loss_of(x, w, t, linear_bias=b), x, w, b)
    return loss, dx, dw.T, db


def _softmax_cross_entropy(axis: int, x: Any, t: Any) -> tuple[Any, ...]:
    return value_and_gradients(lambda x: bridge.cross_entropy(x, t), x)


FUNCTIONS: dict[str, Callable[..., Any]] = {  # the first argument is the axis of the classes
    "softmax": lambda axis, x: bridge.softmax(x, axis),
    "log_softmax": lambda axis, x: bridge.log_softmax(x, axis),
    "relu": lambda axis, x: bridge.relu(x),
    "sigmoid": lambda axis, x: bridge.sigmoid(x),
    "affine": lambda axis, x, w, b: bridge.linear(x, w.T, b),
    "softmax_cross_entropy_value_and_grad": _softmax_cross_entropy,
    "linear_cross_entropy": lambda axis, x, w, b, t: bridge.linear_cross_entropy(x, w, t, linear_bias=b),
    "linear_cross_entropy_value_and_grad": lambda axis, *given: linear_value_and_gradients(
        bridge.linear_cross_entropy, *given
    ),
}
NAMES: Collection[str] = tuple(FUNCTIONS)
