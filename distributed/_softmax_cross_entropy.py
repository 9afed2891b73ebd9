"""Softmax cross-entropy and its gradient, with the classes spread over the ranks."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from plugrad import kernels as K
from plugrad.backends.calls import follows_first
from plugrad.backends.options import COMPUTE, FLOAT64
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.distributed._agreement import agreed
from plugrad.distributed._communicator import UNRECORDED, Communicator, check_communicator, checks
from plugrad.distributed._labels import labels_of
from plugrad.distributed._spread import Classes, Options, checked, divisors, largest
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    Out,
    axis_index,
    floating,
    given_back,
    given_results,
    loss_shape,
    result,
)
from plugrad.kernels._linear_cross_entropy import Logits

CALL = "distributed.softmax_cross_entropy_value_and_grad"
DIGIT = 2**20


@follows_first
def softmax_cross_entropy_value_and_grad(
    x: ArrayLike,
    t: ArrayLike,
    *,
    comm: Communicator,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    out: Out = None,
) -> tuple[Loss, Array]:
    """The loss of logits whose classes are spread over the ranks, and the gradient of this rank's logits.

    The same as `plugrad.kernels.softmax_cross_entropy_value_and_grad` of the logits of all ranks side by side, in the
    order of the ranks. The logits stay where they are: the ranks send a maximum of each row, and then its sums.

    Parameters
    ----------
    x : array_like
        The logits of this rank's classes: any number of them, none included. The other axes are the same on all ranks.
    t : array_like
        Class indices over all ranks, the same on each, with the shape of `x` less the class axis; or one label for each
        of this rank's classes, with the shape of `x`, and on all ranks of one dtype.
    comm : Communicator
        The ranks. With one rank this is the kernel itself.
    weight : array_like, optional
        The weights of this rank's classes.
    axis, sample_weight, ignore_index, label_smoothing, z_loss, reduction
        As for `plugrad.kernels.softmax_cross_entropy_value_and_grad`; the same on all ranks.
    out : array or tuple of arrays, optional
        Where to write `dx`, or ``(loss, dx)``, None for a new array.

    Returns
    -------
    loss : scalar or array
        The loss over all classes, the same on each rank.
    dx : array
        The gradient with respect to `x`.

    Raises
    ------
    TypeError, ValueError
        As for the kernel, on all ranks if any of them is called wrongly; and a ValueError that names the rank if
        arguments differ that must not.

    Examples
    --------
    >>> from plugrad import distributed
    >>> comm = distributed.mpi()
    >>> logits = [[0.0, 0.0]] if comm.size == 1 else [[0.0]]  # one rank with two classes, or two with one
    >>> loss, dx = distributed.softmax_cross_entropy_value_and_grad(logits, [1], comm=comm)
    >>> float(loss.round(6))
    0.693147
    """
    given: dict[str, Any] = {
        "axis": axis,
        "weight": weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
    }
    check_communicator(CALL, comm)
    if comm.size == 1:
        return K.softmax_cross_entropy_value_and_grad(x, t, out=out, **given)
    refuse_in_capture(f"{CALL}{UNRECORDED}")
    with np.errstate(all="ignore"):
        return _spread(x, t, comm, given, out)


def _spread(x: Any, t: Any, comm: Communicator, given: dict[str, Any], out: Any) -> tuple[Loss, Array]:
    failure: Exception | None = None
    facts: dict[str, object] = {}
    count = 0
    call: Any = None
    try:
        backend = backend_for(x)
        x = floating(CALL, "x", x, backend)
        axis_index(CALL, given["axis"], x.ndim)
        t, options, facts = checked(CALL, "x", Logits(x.shape, x.dtype), t, given, backend, checks(comm))
        loss_out, dx_out = given_results(CALL, out, ("loss", "dx"), lone="dx")
        dx, reads = result(CALL, "out: dx", dx_out, x.shape, x.dtype, backend, (x, t))
        shape = loss_shape(x, options.loss)
        loss, (x, t) = result(CALL, "out: loss", loss_out, shape, COMPUTE[x.dtype], backend, reads, (dx,))
        count = x.shape[options.loss.axis]
        call = backend, options, loss_out
    except Exception as error:  # all ranks are told, and raise
        failure = error
    # Ranks that do not compare arguments learn how many classes there are with the maxima; a GPU would have to wait.
    with_maxima = failure is None and not checks(comm) and call[0].native is np.ndarray
    told = agreed(comm, CALL, facts, failure, (count,), needs_numbers=not with_maxima)
    backend, options, loss_out = call
    _compute(x, t, comm, options, None if with_maxima else told[0], backend, loss, dx)
    return given_back(loss, loss_out, backend), dx


def _compute(
    x: Any, t: Any, comm: Communicator, options: Options, counts: list[int] | None, backend: Any, loss: Any, dx: Any
) -> None:
    """Compute the loss and the gradient of logits of any layout; `counts` has the classes of each rank, if known."""
    axis = options.loss.axis
    order = (*range(axis), *range(axis + 1, x.ndim), axis)
    moved = x.transpose(*order)
    flat = (math.prod(moved.shape[:-1]), moved.shape[-1])
    logits, is_host = moved.reshape(flat), backend.native is np.ndarray
    xp = importlib.import_module(backend.arrays)
    tail = np.zeros(0)
    if counts is None:
        table = np.zeros((comm.size, 2))  # of two digits, which float32 holds exactly
        table[comm.rank] = divmod(flat[1], DIGIT)
        tail = table.reshape(-1)
    top = largest(comm, logits, options, xp, is_host, tail)
    if counts is None:
        counts = [int(high) * DIGIT + int(low) for high, low in top.tail.reshape(-1, 2)]
    classes = Classes.of(CALL, counts, comm.rank)
    of = labels_of(t if t.ndim < x.ndim else t.transpose(*order), options, classes, moved.shape[:-1], backend)
    target = dx.transpose(*order)
    is_view = target.ndim == 2 or target.flags.c_contiguous
    written = target.reshape(flat) if is_view and dx is not t else backend.empty(flat, dx.dtype)
    rows = of.rows(comm, logits, written, top)
    rows.exchange()
    put_losses(loss, rows.losses_and_gradient(divisors(of, flat[0], rows.label_weights)), options)
    if written.shape != target.shape or not is_view or dx is t:
        target[...] = written.reshape(target.shape)


def put_losses(loss: Any, parts: tuple[Any, Any], options: Options) -> None:
    """Write the loss of all rows."""
    each, square = parts
    if options.loss.reduction == "none":
        loss[...] = (each if square is None else each + square).reshape(loss.shape)
        return
    total = each.astype(FLOAT64).sum()
    if square is not None:
        total = total + square.astype(FLOAT64).sum()
    loss[...] = total.astype(loss.dtype)
