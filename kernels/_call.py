"""The two ways in that most kernels share: one array in and one out, and the backward pass of such a kernel."""

from typing import Any

from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    axis_index,
    floating,
    given_back,
    promoted,
    result,
    same_shape,
    some_classes,
)

ELEMENTWISE = object()  # in place of an axis: the kernel has none


def forward(kernel: str, x: Any, out: Any, axis: Any = ELEMENTWISE) -> Array:
    """Compute ``y = kernel(x)``, element by element or, if there is an `axis`, along it."""
    backend = backend_for(x, kernel)
    x = floating(kernel, "x", x, backend)
    along = () if axis is ELEMENTWISE else (_class_axis(kernel, "x", x, axis),)
    reads = [x]
    y = result(kernel, "out", out, x.shape, x.dtype, backend, reads)
    if y.size:
        backend.functions[kernel](*reads, *along, y)
    return given_back(y, out)


def backward(kernel: str, dy: Any, y: Any, out: Any, axis: Any = ELEMENTWISE) -> Array:
    """Compute the gradient ``dx = kernel(dy, y)``, element by element or, if there is an `axis`, along it."""
    backend = backend_for(dy, kernel)
    dy = floating(kernel, "dy", dy, backend)
    y = floating(kernel, "y", y, backend)
    same_shape(kernel, "y", y, "dy", dy.shape)
    along = () if axis is ELEMENTWISE else (_class_axis(kernel, "y", y, axis),)
    if dy.dtype != y.dtype:
        dy, y = promoted((dy, y))
    reads = [dy, y]
    dx = result(kernel, "out", out, dy.shape, dy.dtype, backend, reads)
    if dx.size:
        backend.functions[kernel](*reads, *along, dx)
    return given_back(dx, out)


def _class_axis(kernel: str, name: str, x: Array, axis: Any) -> int:
    index = axis_index(kernel, axis, x.ndim)
    some_classes(kernel, name, x, index)
    return index
