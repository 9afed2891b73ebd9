"""The calls of kernels with one result: elementwise or along an axis, and the gradients of losses."""

from typing import Any

from plugrad.backends.calls import in_library
from plugrad.backends.options import COMPUTE
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    axis_index,
    can_take,
    fill,
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


def forward(
    kernel: str,
    x: Any,
    out: Any,
    axis: Any = ELEMENTWISE,
    options: Any = None,
    reads: tuple[Any, ...] = (),
    name: str = "x",
) -> Array:
    """Compute ``y = kernel(x)``, element by element or, if there is an `axis`, along it.

    `options` are those of the form `ElementwiseWithOptions`, and `reads` the arrays among them. `name` is that of the
    argument `x`.
    """
    backend = backend_for(x, kernel)
    if type(x) is not backend.native or x.dtype not in COMPUTE:
        if backend.foreign is not None:
            return in_library(backend.foreign, x, forward, kernel, x, out, axis, options, reads, name)
        x = floating(kernel, name, x, backend)
    if axis is not ELEMENTWISE:
        axis = axis_index(kernel, axis, x.ndim)
    if out is None:
        y: Any = backend.empty(x.shape, x.dtype)
    elif not reads and can_take(out, x.shape, x.dtype, x):
        y = out
    else:
        y, (x, *_) = result(kernel, "out", out, x.shape, x.dtype, backend, (x, *reads))
    if y.size:
        if options is not None:
            backend.functions[kernel](x, options, y)
        elif axis is ELEMENTWISE:
            backend.functions[kernel](x, y)
        else:
            backend.functions[kernel](x, axis, y)
    else:
        fill(kernel, 0, (y,), backend)
    return y if y.ndim else given_back(y, out, backend)


def backward(
    kernel: str, dy: Any, y: Any, out: Any, axis: Any = ELEMENTWISE, options: Any = None, name: str = "y"
) -> Array:
    """Compute the gradient ``dx = kernel(dy, y)``, element by element or, if there is an `axis`, along it.

    `name` is that of the argument `y`, and `options` are those of the form `ElementwiseBackwardWithOptions`.
    """
    backend = backend_for(dy, kernel)
    is_ready = type(dy) is type(y) is backend.native and dy.dtype is y.dtype and y.dtype in COMPUTE
    if not is_ready:
        if backend.foreign is not None:
            return in_library(backend.foreign, dy, backward, kernel, dy, y, out, axis, options, name)
        dy, y = real(kernel, "dy", dy, backend), real(kernel, name, y, backend)
    if dy.shape != y.shape:
        same_shape(kernel, name, y, "dy", dy.shape)
    if axis is not ELEMENTWISE:
        axis = axis_index(kernel, axis, y.ndim)
    if not is_ready:
        dy, y = promoted(kernel, backend, **{"dy": dy, name: y})
    if out is None:
        dx: Any = backend.empty(y.shape, y.dtype)
    elif can_take(out, y.shape, y.dtype, dy, y):
        dx = out
    else:
        dx, (dy, y) = result(kernel, "out", out, y.shape, y.dtype, backend, (dy, y))
    if dx.size:
        if options is not None:
            backend.functions[kernel](dy, y, options, dx)
        elif axis is ELEMENTWISE:
            backend.functions[kernel](dy, y, dx)
        else:
            backend.functions[kernel](dy, y, axis, dx)
    else:
        fill(kernel, 0, (dx,), backend)
    return dx if dx.ndim else given_back(dx, out, backend)


def loss_backward(
    kernel: str,
    dloss: Any,
    name: str,
    x: Any,
    t: Any,
    axis: Any,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    reduction: Any,
    out: Any,
) -> Array:
    """Compute the gradient of a loss with respect to its rows, the argument called `name`."""
    backend = backend_for(x, kernel)
    if backend.foreign is not None:
        given = axis, weight, sample_weight, ignore_index, label_smoothing, reduction
        return in_library(backend.foreign, x, loss_backward, kernel, dloss, name, x, t, *given, out)
    x, t, options = loss_arguments(
        kernel, name, x, t, axis, weight, sample_weight, ignore_index, label_smoothing, 0.0, reduction, backend
    )
    dloss = upstream(kernel, dloss, x, options, backend)
    reads = (x, t, options.weight, options.sample_weight, None if isinstance(dloss, float) else dloss)
    dx, (x, t, weight, sample_weight, _) = result(kernel, "out", out, x.shape, x.dtype, backend, reads)
    if x.size:
        backend.functions[kernel](dloss, x, t, options.with_weights(weight, sample_weight), dx)
    else:
        fill(kernel, 0, (dx,), backend)
    return given_back(dx, out, backend)
