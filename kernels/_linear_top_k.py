"""The largest logits of a last layer, without the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from plugrad.backends import contract
from plugrad.backends.calls import in_library
from plugrad.backends.selection import backend_for
from plugrad.backends.workspace import Workspace
from plugrad.kernels._arguments import Array, ArrayLike, Out, fill, given_results, number_of_largest, result
from plugrad.kernels._kernel import kernel
from plugrad.kernels._linear_cross_entropy import MAX_WORKSPACE, claim, last_layer, workspace_of

RESULTS = ("values", "indices")
INT64 = np.dtype(np.int64)


@kernel(contract.LinearTopK, "the k largest of x w + b in each row, and their classes", results=RESULTS)
def linear_top_k(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    k: int = 1,
    *,
    max_workspace: int | str | Workspace = MAX_WORKSPACE,
    out: Out = None,
) -> tuple[Array, Array]:
    """The `k` largest logits ``x w + b`` of each row and their classes, without the other logits; no gradient.

    The logits are computed for some rows at a time, in a workspace, as by `linear_cross_entropy`.

    Parameters
    ----------
    x : array_like
        Inputs of the layer, shape ``(..., in)``.
    w : array_like
        Weights, shape ``(in, classes)``, with at least one class.
    b : array_like or None
        Biases, shape ``(classes,)``.
    k : int
        How many logits of each row to return, in ``[1, classes]``.
    max_workspace : int, str or Workspace
        How much memory the call may use, besides its arguments and results: bytes, or text such as ``"64MB"`` or
        ``"1GiB"``. For `rows` rows at a time it needs ``rows * classes * 4`` bytes, or 8 in float64. A `Workspace`
        keeps the memory for the next call.
    out : tuple of arrays, optional
        Where to write ``(values, indices)``, None for a new array; `values` may be written to an argument of its shape.

    Returns
    -------
    values : array
        The largest logits, largest first, shape ``(..., k)``, in the promoted dtype of `x`, `w` and `b`. NaN comes
        before all numbers. Logits of float16 and bfloat16 arrays are compared in float32, and then rounded.
    indices : array
        Their classes, int64, shape ``(..., k)``. Of equal logits, those of lower classes come first.

    Raises
    ------
    TypeError
        As for `affine`; if `k` is not an integer, `max_workspace` is no size, or `out` has a wrong type.
    ValueError
        As for `affine`; if there is no class or `k` is out of range; if `max_workspace` is too small for one row, and
        the message then names the least that works; or if it is a `Workspace` that another thread uses.

    Notes
    -----
    Logits that differ in their last digits only may change places with `max_workspace`, as those of matrix products
    depend on how they are cut up. Besides the workspace, each thread uses a few megabytes at the most; backend
    ``"numpy"`` sorts whole rows where `k` is more than a thirty-second of the classes, and takes some times the memory
    of one row. Arguments and results of three or more dimensions that are not C-contiguous are copied as a whole, on a
    GPU also those of two, and so are arguments that have to be promoted.

    Examples
    --------
    >>> from plugrad import kernels as K
    >>> values, indices = K.linear_top_k([[1.0, 2.0]], [[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]], None, 2)
    >>> values, indices
    (array([[3., 2.]]), array([[2, 1]]))
    """
    return _largest("linear_top_k", x, w, b, k, max_workspace, out)


def _largest(kernel: str, x: Any, w: Any, b: Any, k: Any, max_workspace: Any, out: Any) -> tuple[Array, Array]:
    backend = backend_for(x)
    if backend.foreign is not None:
        return in_library(backend.foreign, x, _largest, kernel, x, w, b, k, max_workspace, out)
    x, w, b = last_layer(kernel, x, w, b, backend)
    k = number_of_largest(kernel, k, w.shape[1])
    workspace = workspace_of(kernel, max_workspace)
    values_out, indices_out = given_results(kernel, out, RESULTS, lone=None)
    shape = (*x.shape[:-1], k)
    values, reads = result(kernel, "out: values", values_out, shape, x.dtype, backend, (x, w, b))
    indices, (x, w, b) = result(kernel, "out: indices", indices_out, shape, INT64, backend, reads, (values,))
    if values.size:
        claim(kernel, workspace, max_workspace, backend)
        backend.functions[kernel](x, w, b, k, workspace, values, indices)
    else:
        fill(kernel, 0, (values, indices), backend)
    return values, indices
