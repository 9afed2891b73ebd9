"""Gradients to be checked: those of kernels, layers and functions, each with the function that it belongs to."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plugrad import backends
from plugrad.backends.options import FLOAT64
from plugrad.backends.selection import backend_for
from plugrad.kernels import KERNELS, Kernel
from plugrad.kernels.gradcheck._arrays import Float64Array, as_float64, as_tuple, to_device_of
from plugrad.kernels.layers import Layer, Loss


class Problem(NamedTuple):
    """A gradient, and the function that it belongs to."""

    name: str
    x: Any  # the argument of the function
    analytic: Any
    f: Callable[[Float64Array], Any]
    scale: float = 0.0  # of the upstream gradient: rounding errors of a gradient such as y - t are proportional to it


def problems_of_kernel(
    kernel: Kernel, inputs: tuple[Any, ...], options: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[Problem]:
    """Yield a problem for each argument of a kernel that has a gradient."""
    if len(inputs) > len(kernel.arguments):
        raise TypeError(f"check: {kernel.name}: expected {', '.join(kernel.arguments)}; got {len(inputs)} arguments")
    if not kernel.backward and f"d{kernel.arguments[0]}" not in kernel.results:
        other = f"{kernel.name}_value_and_grad"
        hint = other if other in KERNELS else "its forward kernel"
        raise TypeError(f"check: {kernel.name}: expected a kernel that has a gradient; check {hint}")
    given = dict(zip(kernel.arguments, inputs, strict=False))
    known = {**given, **dict(zip(kernel.results, as_tuple(kernel.function(*inputs, **options)), strict=True))}
    first = kernel.results[0]
    weights: Float64Array = np.array(1.0)
    if kernel.backward:
        backward = KERNELS[kernel.backward]
        y = np.asarray(backends.to_numpy(known[first]))
        weights = rng.normal(size=y.shape)
        upstream = backend_for(inputs[0]).asarray(weights.astype(y.dtype)) if y.ndim else float(weights)
        saved = (known[name] for name in backward.arguments[1:])
        known |= zip(backward.results, as_tuple(backward.function(upstream, *saved, **options)), strict=True)
        weights = np.asarray(backends.to_numpy(upstream)).astype(FLOAT64)
    doubles = {
        name: x if name == "t" or x is None else to_device_of(as_float64(name, x), x) for name, x in given.items()
    }
    for name, x in given.items():
        if name != "t" and x is not None and f"d{name}" in known:
            f = partial(_weighed, kernel, doubles, options, name, weights)
            scale = _scale(weights, inputs[0] if np.ndim(weights) == 0 else None)
            yield Problem(f"d{name}", x, known[f"d{name}"], f, scale)


def _weighed(
    kernel: Kernel,
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    name: str,
    weights: Float64Array,
    x: Float64Array,
) -> Any:
    """Return the sum of a kernel's results, weighted by the upstream gradient, for another value of one argument."""
    arguments = {**given, name: to_device_of(x, given[name])}
    y = as_tuple(kernel.function(*arguments.values(), **options))[0]
    return (weights * np.asarray(backends.to_numpy(y))).sum()


def _scale(upstream: Any, rows: Any) -> float:
    """Return the largest magnitude of an upstream gradient, which a mean over `rows` divides by their number."""
    return float(np.max(np.abs(upstream), initial=0.0)) / (max(1, len(rows)) if np.ndim(rows) > 1 else 1)


def problems_of_layer(
    layer: Layer, inputs: tuple[Any, ...], loss: Loss | None, rng: np.random.Generator
) -> Iterator[Problem]:
    """Yield a problem for the inputs of a layer, and one for each parameter."""
    if len(inputs) != 1 + (loss is not None or isinstance(layer, Loss)):
        raise TypeError(
            f"check: {layer!r}: expected inputs, and labels with a loss (loss=...); got {len(inputs)} arguments"
        )
    x, *labels = inputs
    # Copies, so that nothing of the caller's changes.
    double, layer, loss = layer.astype(FLOAT64), copy.deepcopy(layer), copy.deepcopy(loss)
    if isinstance(layer, Loss):
        layer.forward(x, *labels)
        f = partial(_forward_at, x, lambda v: double.forward(v, *labels))
        yield Problem("dx", x, layer.backward(), f, _scale(1.0, x))
        return
    buffers = [(owner, name, copy.deepcopy(getattr(owner, name))) for _, owner, name in double._places_of_buffers()]
    forward = partial(_forward_from, double, buffers)
    y = layer.forward(copy.deepcopy(x))
    dy, end, scale = _drawn_end(y, rng) if loss is None else _loss_as_end(y, loss, labels, x)
    dx = layer.backward(dy)
    f = partial(_forward_at, x, lambda v: end(forward(v)))
    yield Problem("dx", x, dx, f, scale)
    inputs_as_float64 = as_float64("x", x)
    for (name, parameter), analytic, twin in zip(layer.named_params(), layer.grads, double.params, strict=True):

        def with_parameter(v: Float64Array, twin: Any = twin) -> Any:
            twin[...] = to_device_of(v, twin)
            return f(inputs_as_float64.copy())

        yield Problem(f"d{name}", parameter, analytic, with_parameter, scale)
        twin[...] = to_device_of(as_float64(name, parameter), twin)


def _forward_from(layer: Layer, buffers: list[tuple[Layer, str, Any]], x: Any) -> Any:
    """Compute the result of a layer whose buffers, such as the seed of a dropout, have the values that are given."""
    for owner, name, value in buffers:
        setattr(owner, name, copy.deepcopy(value))
    return layer.forward(x)


def _forward_at(like: Any, f: Callable[[Any], Any], x: Float64Array) -> Any:
    """Call a function with an array on the device of another one."""
    return f(to_device_of(x, like))


def _drawn_end(y: Any, rng: np.random.Generator) -> tuple[Any, Callable[[Any], Any], float]:
    """Draw an upstream gradient; return it, the sum of results weighted by it, and its scale."""
    weights = rng.normal(size=y.shape).astype(np.asarray(backends.to_numpy(y)).dtype)
    as_float = weights.astype(FLOAT64)
    return to_device_of(weights, y), lambda y: (as_float * backends.to_numpy(y)).sum(), _scale(weights, None)


def _loss_as_end(y: Any, loss: Loss, labels: list[Any], x: Any) -> tuple[Any, Callable[[Any], Any], float]:
    """Return the gradient of a loss for a result, the loss as a function of the result, and the gradient's scale."""
    loss.forward(y, *labels)
    return loss.backward(), lambda y: loss.forward(y, *labels), _scale(1.0, x)


def problems_of_function(f: Callable[..., Any], inputs: tuple[Any, ...], gradients: Any) -> Iterator[Problem]:
    """Yield a problem for each argument of a function whose gradient is given."""
    if gradients is None:
        raise TypeError("check: gradients: expected one for each argument of a function that is no kernel or layer")
    if len(inputs) == 1 and not isinstance(gradients, list | tuple):
        gradients = (gradients,)
    if len(gradients) != len(inputs):
        raise TypeError(f"check: gradients: expected one for each of {len(inputs)} arguments, got {len(gradients)}")
    doubles = [to_device_of(as_float64(f"argument {i}", x), x) for i, x in enumerate(inputs)]
    names = [name for name, _ in zip(_parameters(f), inputs, strict=False)]
    names += [f"argument {i}" for i in range(len(names), len(inputs))]
    for i, (name, x, analytic) in enumerate(zip(names, inputs, gradients, strict=True)):
        if analytic is not None:
            yield Problem(f"d{name}", x, analytic, partial(_with_another, f, doubles, i))


def _with_another(f: Callable[..., Any], arguments: Sequence[Any], position: int, x: Any) -> Any:
    """Return the result of a function for another value of one argument."""
    return f(*arguments[:position], to_device_of(x, arguments[position]), *arguments[position + 1 :])


def _parameters(f: Callable[..., Any]) -> list[str]:
    """Return the names of a function's positional arguments, if it has a signature."""
    try:
        parameters = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return []
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
