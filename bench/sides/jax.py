"""JAX, compiled by `jax.jit`. It has no ``out=``; a step of training donates the memory of its parameters."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from plugrad.bench.cases import Case, network, with_options
from plugrad.bench.sizes import STEP

to_numpy = np.asarray


def prepare(case: Case) -> Callable[[], Any]:
    """Return the case computed by JAX."""
    if case.name == STEP:
        return _step(case)
    return compiled(FUNCTIONS[case.name], case)


def compiled(function: Callable[..., Any], case: Case) -> Callable[[], Any]:
    """Return the case computed by a function of the axis and of arrays."""
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    given, options = case.arguments(), case.chosen()
    fixed = [place for place, x in enumerate(given) if isinstance(x, int)]  # which decide the shapes of results
    constants = {name: value for name, value in options.items() if not isinstance(value, np.ndarray)}
    call = jax.jit(partial(function, case.axis, **constants), static_argnums=fixed)
    arguments = [x if isinstance(x, int) else jnp.asarray(x) for x in given]
    arrays = {name: jnp.asarray(value) for name, value in options.items() if name not in constants}
    return lambda: jax.block_until_ready(call(*arguments, **arrays))


def _of_labels(values: Any, t: Any, axis: int) -> Any:
    """The values of the labelled classes."""
    return jnp.take_along_axis(values, jnp.expand_dims(t, axis), axis)


def _cross_entropy(axis: int, p: Any, t: Any) -> Any:
    return -_of_labels(jnp.log(p), t, axis).mean()


def _softmax_cross_entropy(
    axis: int, x: Any, t: Any, sample_weight: Any = 1.0, z_loss: float = 0.0, ignore_index: int | None = None
) -> Any:
    counts = 1.0 if ignore_index is None else t != ignore_index
    rows = jnp.broadcast_to(jnp.asarray(sample_weight * counts, x.dtype), t.shape)
    losses = -_of_labels(jax.nn.log_softmax(x, axis), t, axis).squeeze(axis)
    if z_loss:
        losses += z_loss * jax.nn.logsumexp(x, axis) ** 2
    return (losses * rows).sum() / rows.sum()


def _softmax_cross_entropy_backward(axis: int, dloss: Any, y: Any, t: Any) -> Any:
    return (y - jax.nn.one_hot(t, y.shape[axis], axis=axis, dtype=y.dtype)) * (dloss / t.size)


def _sigmoid_cross_entropy(axis: int, x: Any, t: Any, pos_weight: Any = 1.0, weight: Any = 1.0) -> Any:
    return -(weight * (pos_weight * t * jax.nn.log_sigmoid(x) + (1 - t) * jax.nn.log_sigmoid(-x))).mean()


def _top_k_accuracy(axis: int, x: Any, t: Any, k: int) -> Any:
    """By ranks, which take a pass over the logits; `jax.lax.top_k` sorts."""
    label = jnp.take_along_axis(x, jnp.expand_dims(t, axis), axis)
    return ((x > label).sum(axis) < k).mean()


def _linear_cross_entropy(
    axis: int, x: Any, w: Any, b: Any, t: Any, softcap: float | None = None, **options: Any
) -> Any:
    z = x @ w + b
    return _softmax_cross_entropy(axis, z if softcap is None else softcap * jnp.tanh(z / softcap), t, **options)


def _linear_cross_entropy_value_and_grad(axis: int, x: Any, w: Any, b: Any, t: Any, **options: Any) -> Any:
    loss, gradients = jax.value_and_grad(_linear_cross_entropy, (1, 2, 3))(axis, x, w, b, t, **options)
    return loss, *gradients


def _gelu(axis: int, x: Any, approximate: str = "none") -> Any:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _dropout(axis: int, x: Any) -> Any:
    """Dropout; its gradient makes the mask anew, as ours."""
    return jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), 2 * x, 0)


FUNCTIONS: dict[str, Callable[..., Any]] = {  # the first argument is the axis of the classes
    "softmax": lambda axis, x: jax.nn.softmax(x, axis),
    "softmax_backward": lambda axis, dy, y: y * (dy - (dy * y).sum(axis, keepdims=True)),
    "log_softmax": lambda axis, x: jax.nn.log_softmax(x, axis),
    "log_softmax_backward": lambda axis, dy, y: dy - jnp.exp(y) * dy.sum(axis, keepdims=True),
    "relu": lambda axis, x: jax.nn.relu(x),
    "relu_backward": lambda axis, dy, y: jnp.where(y > 0, dy, 0),
    "leaky_relu": lambda axis, x: jax.nn.leaky_relu(x),
    "leaky_relu_backward": lambda axis, dy, x: jnp.where(x > 0, dy, 0.01 * dy),
    "silu": lambda axis, x: jax.nn.silu(x),
    "silu_backward": lambda axis, dy, x: jax.vjp(jax.nn.silu, x)[1](dy)[0],
    **with_options("gelu", _gelu),
    **with_options(
        "gelu_backward", lambda axis, dy, x, **options: jax.vjp(partial(_gelu, axis, **options), x)[1](dy)[0]
    ),
    "tanh": lambda axis, x: jnp.tanh(x),
    "tanh_backward": lambda axis, dy, y: dy * (1 - y**2),
    "dropout": _dropout,
    "dropout_backward": _dropout,
    "sigmoid": lambda axis, x: jax.nn.sigmoid(x),
    "sigmoid_backward": lambda axis, dy, y: dy * y * (1 - y),
    "affine": lambda axis, x, w, b: x @ w + b,
    "affine_backward": lambda axis, dy, x, w: (dy @ w.T, x.T @ dy, dy.sum(0)),
    "cross_entropy": _cross_entropy,
    "cross_entropy_backward": lambda axis, dloss, p, t: dloss * jax.grad(_cross_entropy, 1)(axis, p, t),
    **with_options(
        "sigmoid_cross_entropy",
        lambda axis, x, t, **options: (_sigmoid_cross_entropy(axis, x, t, **options), jax.nn.sigmoid(x)),
    ),
    "sigmoid_cross_entropy_backward": lambda axis, dloss, y, t: (y - t) * (dloss / t.size),
    **with_options("sigmoid_cross_entropy_value_and_grad", jax.value_and_grad(_sigmoid_cross_entropy, 1)),
    "top_k_accuracy": _top_k_accuracy,
    "linear_top_k": lambda axis, x, w, b, k: jax.lax.top_k(x @ w + b, k),
    **with_options("linear_cross_entropy", _linear_cross_entropy),
    **with_options("linear_cross_entropy_value_and_grad", _linear_cross_entropy_value_and_grad),
    **with_options(
        "softmax_cross_entropy",
        lambda axis, x, t, **options: (_softmax_cross_entropy(axis, x, t, **options), jax.nn.softmax(x, axis)),
    ),
    "softmax_cross_entropy_backward": _softmax_cross_entropy_backward,
    **with_options("softmax_cross_entropy_value_and_grad", jax.value_and_grad(_softmax_cross_entropy, 1)),
}
NAMES: Collection[str] = (*FUNCTIONS, STEP)


def _step(case: Case) -> Callable[[], Any]:
    jax.config.update("jax_enable_x64", case.dtype == "float64")
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
