"""The calls of kernels with one result: elementwise or along an axis, and the gradients of losses."""

from typing import Any

from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    axis_index,
    floating,
    given_back,
    loss_arguments,
    promoted,
    real,
    result,
    same_shape,
    upstream,
)

ELEMENTWISE = object()  # for kernels without an axis


def forward(kernel: str, x: Any, out: Any, axis: Any = ELEMENTWISE) -> Array:
    """Compute ``y = kernel(x)``, element by element or, if there is an `axis`, along it."""
    backend = backend_for(x, kernel)
    x = floating(kernel, "x", x, backend)
    along = () if axis is ELEMENTWISE else (axis_index(kernel, axis, x.ndim),)
    y, (x,) = result(kernel, "out", out, x.shape, x.dtype, backend, (x,))
    if y.size:
        backend.functions[kernel](x, *along, y)
    return given_back(y, out)


def backward(kernel: str, dy: Any, y: Any, out: Any, axis: Any = ELEMENTWISE) -> Array:
    """Compute the gradient ``dx = kernel(dy, y)``, element by element or, if there is an `axis`, along it."""
    backend = backend_for(dy, kernel)
    dy = real(kernel, "dy", dy, backend)
    y = real(kernel, "y", y, backend)
    same_shape(kernel, "y", y, "dy", dy.shape)
    along = () if axis is ELEMENTWISE else (axis_index(kernel, axis, y.ndim),)
    dy, y = promoted(dy, y)
    dx, (dy, y) = result(kernel, "out", out, dy.shape, dy.dtype, backend, (dy, y))
    if dx.size:
        backend.functions[kernel](dy, y, *along, dx)
    return given_back(dx, out)


def loss_backward(
    kernel: str,
    dloss: Any,
    name: str,
    x: Any,
    t: Any,
    axis: Any,
    weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Array:
    """Compute the gradient of a loss with respect to its rows, the argument called `name`."""
    backend = backend_for(x, kernel)
    x, t, options = loss_arguments(kernel, name, x, t, axis, weight, ignore_index, label_smoothing, reduction, backend)
    dloss = upstream(kernel, dloss, x, options, backend)
    reads = (x, t, options.weight, None if isinstance(dloss, float) else dloss)
    dx, (x, t, weight, _) = result(kernel, "out", out, x.shape, x.dtype, backend, reads)
    if x.size:
        backend.functions[kernel](dloss, x, t, options.with_weight(weight), dx)
    return given_back(dx, out)
