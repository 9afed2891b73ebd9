"""JAX, compiled by `jax.jit`. It has no ``out=``; a step of training gives its parameters' memory back to it."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from plugrad.bench.cases import STEP, Case, network


def prepare(case: Case) -> Callable[[], Any]:
    """The case, computed by JAX."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    if case.name == STEP:
        return _step(case)
    call, arguments = jax.jit(_formula(case)), [jnp.asarray(x) for x in case.arguments()]
    return lambda: jax.block_until_ready(call(*arguments))


def _formula(case: Case) -> Callable[..., Any]:
    axis = case.axis

    def loss_of(p: Any, t: Any) -> Any:
        return -jnp.take_along_axis(jnp.log(p), jnp.expand_dims(t, axis), axis).mean()

    def loss_of_logits(x: Any, t: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x, axis), jnp.expand_dims(t, axis), axis).mean()

    def loss_of_layer(x: Any, w: Any, b: Any, t: Any) -> Any:
        return loss_of_logits(x @ w + b, t)

    def gradients_of_layer(x: Any, w: Any, b: Any, t: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of_layer, (0, 1, 2))(x, w, b, t)
        return loss, *gradients

    forward: dict[str, Callable[..., Any]] = {
        "softmax": lambda x: jax.nn.softmax(x, axis),
        "log_softmax": lambda x: jax.nn.log_softmax(x, axis),
        "relu": jax.nn.relu,
        "sigmoid": jax.nn.sigmoid,
        "affine": lambda x, w, b: x @ w + b,
        "cross_entropy": loss_of,
        "linear_cross_entropy": loss_of_layer,
        "softmax_cross_entropy": lambda x, t: (loss_of_logits(x, t), jax.nn.softmax(x, axis)),
    }
    backward: dict[str, Callable[..., Any]] = {
        "softmax_backward": lambda dy, y: y * (dy - (dy * y).sum(axis, keepdims=True)),
        "log_softmax_backward": lambda dy, y: dy - jnp.exp(y) * dy.sum(axis, keepdims=True),
        "relu_backward": lambda dy, y: jnp.where(y > 0, dy, 0),
        "sigmoid_backward": lambda dy, y: dy * y * (1 - y),
        "affine_backward": lambda dy, x, w: (dy @ w.T, x.T @ dy, dy.sum(0)),
        "cross_entropy_backward": lambda dloss, p, t: dloss * jax.grad(loss_of)(p, t),
        "softmax_cross_entropy_backward": lambda dloss, y, t: (
            (y - jax.nn.one_hot(t, y.shape[axis], axis=axis, dtype=y.dtype)) * (dloss / t.size)
        ),
        "linear_cross_entropy_value_and_grad": gradients_of_layer,
        "softmax_cross_entropy_value_and_grad": jax.value_and_grad(loss_of_logits),
    }
    return (forward | backward)[case.name]


def _step(case: Case) -> Callable[[], Any]:
    given = network(case)
    x, t = jnp.asarray(given.x), jnp.asarray(given.t)
    parameters = [jnp.asarray(parameter) for parameter in given.parameters]

    def loss_of(parameters: Any, x: Any, t: Any) -> Any:
        w1, b1, w2, b2 = parameters
        logs = jax.nn.log_softmax(jax.nn.relu(x @ w1 + b1) @ w2 + b2)
        return -jnp.take_along_axis(logs, t[:, None], 1).mean()

    def update(parameters: Any, x: Any, t: Any) -> Any:
        gradients = jax.grad(loss_of)(parameters, x, t)
        return [p - given.rate * g for p, g in zip(parameters, gradients, strict=True)]

    compiled = jax.jit(update, donate_argnums=0)

    def step() -> Any:
        nonlocal parameters
        parameters = jax.block_until_ready(compiled(parameters, x, t))
        return parameters

    return step
