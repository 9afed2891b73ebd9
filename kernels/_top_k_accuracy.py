"""The share of rows whose label is among the largest logits."""

from __future__ import annotations

from typing import Any

from plugrad.backends import contract
from plugrad.backends.calls import in_library
from plugrad.backends.options import FLOAT64
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    axis_index,
    checked_options,
    fill,
    floating,
    given_back,
    labels,
    number_of_largest,
    result,
    some_classes,
)
from plugrad.kernels._kernel import kernel


@kernel(contract.Accuracy, "share of the rows whose label is among the k largest x_j", results=("accuracy",))
def top_k_accuracy(
    x: ArrayLike,
    t: ArrayLike,
    k: int = 1,
    *,
    axis: int = -1,
    ignore_index: int | None = None,
    out: Array | None = None,
) -> Loss:
    """The share of the rows whose label is among the `k` largest logits; it has no gradient.

    Of equal logits, those of lower classes come first. A row with a NaN is wrong.

    Parameters
    ----------
    x : array_like
        Logits, probabilities or other scores, any shape with at least one class along `axis`; float16, bfloat16,
        float32 or float64. Integers, booleans and sequences become float64.
    t : array_like
        Class indices of any integer dtype, with the shape of `x` less the class axis.
    k : int
        How many of the largest logits count, in ``[1, classes]``.
    axis : int
        The axis of the classes.
    ignore_index : int, optional
        Rows with this label do not count, whatever their logits. It may lie outside ``[0, classes)``.
    out : array, optional
        Where to write the result: shape ``()``, float64.

    Returns
    -------
    accuracy : scalar
        The number of right rows divided by the number of rows that count, in float64; 0 where none counts.

    Raises
    ------
    TypeError
        If `x` is complex, text or objects, `t` is not of an integer dtype, an array lies on another device than the
        backend computes on, or `k`, an option or `out` has a wrong type.
    ValueError
        If a label lies outside ``[0, classes)`` and is not `ignore_index` (on a GPU the result is NaN instead, unless
        ``check=True``), `k` is out of range, or a shape does not fit.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> x, t = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]], [1, 2]
    >>> float(K.top_k_accuracy(x, t)), float(K.top_k_accuracy(x, t, 2))
    (0.5, 1.0)
    """
    return _accuracy("top_k_accuracy", x, t, k, axis, ignore_index, out)


def _accuracy(kernel: str, x: Any, t: Any, k: Any, axis: Any, ignore_index: Any, out: Any) -> Loss:
    backend = backend_for(x, kernel)
    if backend.foreign is not None:
        return in_library(backend.foreign, x, _accuracy, kernel, x, t, k, axis, ignore_index, out)
    x = floating(kernel, "x", x, backend)
    options = checked_options(kernel, axis_index(kernel, axis, x.ndim), ignore_index, 0.0, "mean")
    some_classes(kernel, "x", x, options.axis)
    t = labels(kernel, t, x, options, backend)
    if t.ndim == x.ndim:
        raise ValueError(f"{kernel}: t: expected class indices, got one label per class; pass t.argmax({options.axis})")
    k = number_of_largest(kernel, k, x.shape[options.axis])
    accuracy, (x, t) = result(kernel, "out", out, (), FLOAT64, backend, (x, t))
    if x.size:
        backend.functions[kernel](x, t, k, options, accuracy)
    else:
        fill(kernel, 0, (accuracy,), backend)
    return given_back(accuracy, out, backend)
