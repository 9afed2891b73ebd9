"""JAX, with the functions of `plugrad.bridges.jax`, compiled by `jax.jit`."""

from collections.abc import Callable, Collection
from typing import Any

import jax
from jax import numpy as jnp

from plugrad.bench.cases import Case
from plugrad.bench.sides.jax import compiled, to_numpy
from plugrad.bridges import jax as bridge

__all__ = ["NAMES", "prepare", "to_numpy"]


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by the bridge."""
    return compiled(FUNCTIONS[case.name], case)


def _softmax_cross_entropy(axis: int, x: Any, t: Any) -> Any:
    return bridge.softmax_cross_entropy_with_integer_labels(jnp.moveaxis(x, axis, -1), t).mean()


def _sigmoid_cross_entropy(axis: int, x: Any, t: Any) -> Any:
    return bridge.sigmoid_binary_cross_entropy(x, t).mean()


def _linear_value_and_gradients(axis: int, x: Any, w: Any, b: Any, t: Any) -> Any:
    loss, gradients = jax.value_and_grad(bridge.linear_cross_entropy, (0, 1, 2))(x, w, b, t)
    return loss, *gradients


FUNCTIONS: dict[str, Callable[..., Any]] = {  # the first argument is the axis of the classes
    "softmax": lambda axis, x: bridge.softmax(x, axis),
    "log_softmax": lambda axis, x: bridge.log_softmax(x, axis),
    "relu": lambda axis, x: bridge.relu(x),
    "sigmoid": lambda axis, x: bridge.sigmoid(x),
    "softmax_cross_entropy_value_and_grad": jax.value_and_grad(_softmax_cross_entropy, 1),
    "sigmoid_cross_entropy_value_and_grad": jax.value_and_grad(_sigmoid_cross_entropy, 1),
    "linear_cross_entropy": lambda axis, *given: bridge.linear_cross_entropy(*given),
    "linear_cross_entropy_value_and_grad": _linear_value_and_gradients,
}
NAMES: Collection[str] = tuple(FUNCTIONS)
