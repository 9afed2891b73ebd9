"""The last layer and its loss in one, with the classes spread over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from plugrad import kernels as K
from plugrad.backends import Backend
from plugrad.backends.calls import follows_first
from plugrad.backends.chunks import ALIGNMENT, carved
from plugrad.backends.options import COMPUTE, FLOAT64
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.backends.workspace import Workspace, bytes_of
from plugrad.distributed._agreement import agreed
from plugrad.distributed._communicator import UNRECORDED, Communicator, check_communicator, checks
from plugrad.distributed._labels import labels_of
from plugrad.distributed._spread import Classes, Options, checked, divisors, largest
from plugrad.kernels._affine import GRADIENTS, biases, fit, gradients, needed
from plugrad.kernels._arguments import (
    Array,
    ArrayLike,
    Loss,
    Out,
    given_back,
    given_results,
    loss_shape,
    promoted,
    real,
    result,
)
from plugrad.kernels._linear_cross_entropy import Logits
from plugrad.kernels.optim._checks import at_least_0

CALL = "distributed.linear_cross_entropy_value_and_grad"
MOST_ROWS = 8192  # of a chunk: a product sums so many rows in float32 without drifting
MOST_CHUNKS = 64  # are summed in float32
SMALL = 2**16  # elements of weights whose gradients are summed in float64 in any case
ARRAYS = 7  # in a workspace


@follows_first
def linear_cross_entropy_value_and_grad(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None,
    t: ArrayLike,
    *,
    comm: Communicator,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
    needs: Iterable[str] = GRADIENTS,
    max_workspace: int | str | Workspace = "64MB",
    out: Out = None,
) -> tuple[Loss, Array, Array, Array]:
    """The loss of a last layer whose classes are spread over the ranks, and its gradients.

    The same as `plugrad.kernels.linear_cross_entropy_value_and_grad` of the weights of all ranks side by side, in the
    order of the ranks. The ranks send a maximum and sums of each row, and the gradient of its inputs, which is summed
    while the next chunk of rows is computed.

    Parameters
    ----------
    x : array_like
        Inputs of the layer, shape ``(..., in)``, the same on all ranks.
    w : array_like
        The weights of this rank's classes, shape ``(in, classes)``: any number of them, none included.
    b : array_like or None
        The biases of this rank's classes; None on all ranks, or on none.
    t : array_like
        Class indices over all ranks, the same on each, with the shape of `x` less the last axis; or one label for each
        of this rank's classes, shape ``(..., classes)``, and on all ranks of one dtype.
    comm : Communicator
        The ranks. With one rank this is the kernel itself.
    weight : array_like, optional
        The weights of this rank's classes in the loss.
    sample_weight, ignore_index, label_smoothing, z_loss, softcap, reduction
        As for `plugrad.kernels.linear_cross_entropy_value_and_grad`; the same on all ranks.
    needs : iterable of str
        Which of ``"dx"``, ``"dw"`` and ``"db"`` to compute, the same on all ranks.
    max_workspace : int, str or Workspace
        How much memory the call may use on this rank. The rank with the least decides how many rows make a chunk. To
        sum `dw` of float16 or bfloat16, or that of more than 64 chunks, takes an array of its size beside that.
    out : tuple of arrays, optional
        Where to write ``(loss, dx, dw, db)``, None for a new array.

    Returns
    -------
    loss : scalar or array
        The loss over all classes, the same on each rank.
    dx : array or None
        The gradient of `x`, summed over all ranks.
    dw, db : array or None
        The gradients of this rank's weights and biases.

    Raises
    ------
    TypeError, ValueError
        As for the kernel, on all ranks if any of them is called wrongly; and a ValueError that names the rank if
        arguments differ that must not.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import distributed
    >>> comm = distributed.mpi()
    >>> x, w = np.array([[1.0, 2.0]]), np.zeros((2, 2))
    >>> mine = np.array_split(w, comm.size, axis=1)[comm.rank]
    >>> loss, dx, dw, db = distributed.linear_cross_entropy_value_and_grad(x, mine, None, [1], comm=comm)
    >>> float(loss.round(6))
    0.693147
    """
    given: dict[str, Any] = {
        "weight": weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "reduction": reduction,
    }
    check_communicator(CALL, comm)
    if comm.size == 1:
        named: dict[str, Any] = {
            **given,
            "softcap": softcap,
            "needs": needs,
            "max_workspace": max_workspace,
            "out": out,
        }
        return K.linear_cross_entropy_value_and_grad(x, w, b, t, **named)
    refuse_in_capture(f"{CALL}{UNRECORDED}")
    with np.errstate(all="ignore"):
        return _spread(x, w, b, t, comm, given, softcap, needs, max_workspace, out)


class _Call(NamedTuple):
    """The arguments, checked."""

    x: Any
    w: Any
    b: Any
    t: Any
    options: Options
    softcap: float
    backend: Backend
    workspace: Workspace
    loss: Any
    dx: Any
    dw: Any
    db: Any
    loss_out: Any


def _spread(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    comm: Communicator,
    given: dict[str, Any],
    softcap: Any,
    needs: Any,
    max_workspace: Any,
    out: Any,
) -> tuple[Loss, Array, Array, Array]:
    failure: Exception | None = None
    facts: dict[str, object] = {}
    call: Any = None
    numbers = 0, 1
    try:
        call, facts = _checked(x, w, b, t, given, softcap, needs, max_workspace, out, checks(comm))
        numbers = call.w.shape[1], _plan(call).rows
    except Exception as error:  # all ranks are told, and raise
        failure = error
    counts, rows = agreed(comm, CALL, facts, failure, numbers, needs_numbers=True)
    _Chunks(call, comm, Classes.of(CALL, counts, comm.rank), min(rows)).compute()
    return given_back(call.loss, call.loss_out, call.backend), call.dx, call.dw, call.db


def _checked(
    x: Any,
    w: Any,
    b: Any,
    t: Any,
    given: dict[str, Any],
    softcap: Any,
    needs: Any,
    max_workspace: Any,
    out: Any,
    compares: bool,
) -> tuple[_Call, dict[str, object]]:
    """The arguments of this rank, checked, and those facts of them that must be the same on all ranks."""
    backend = backend_for(x)
    x, w = real(CALL, "x", x, backend), real(CALL, "w", w, backend)
    fit(CALL, x, w)
    if b is None:
        x, w = promoted(CALL, backend, x=x, w=w)
    else:
        x, w, b = promoted(CALL, backend, x=x, w=w, b=biases(CALL, b, w, backend))
    logits = Logits(x.shape[:-1] + w.shape[1:], x.dtype)
    t, options, facts = checked(CALL, "w", logits, t, {**given, "axis": -1}, backend, compares)
    cap = 0.0 if softcap is None else at_least_0(CALL, "softcap", softcap)
    if softcap is not None and not cap:
        raise ValueError(f"{CALL}: softcap: expected a finite number greater than 0, got {softcap}")
    is_kept = isinstance(max_workspace, Workspace)
    workspace = max_workspace if is_kept else Workspace(bytes_of(f"{CALL}: max_workspace", max_workspace))
    wanted = needed(CALL, needs)
    lone = wanted[0] if len(wanted) == 1 else None
    loss_out, *arrays = given_results(CALL, out, ("loss", *GRADIENTS), lone=lone)
    reads = (x, w, b, t)
    shapes = x.shape, w.shape, w.shape[1:]
    (dx, dw, db), reads = gradients(CALL, wanted, tuple(arrays), shapes, backend, reads)
    shape = loss_shape(logits, options.loss)
    loss, reads = result(CALL, "out: loss", loss_out, shape, COMPUTE[x.dtype], backend, reads, (dx, dw, db))
    x, w, b, t = reads
    if is_kept:
        workspace.claim(f"{CALL}: max_workspace")
    facts |= {"x": f"shape {x.shape}", "b": "None" if b is None else "given", "needs": wanted, "softcap": cap}
    return _Call(x, w, b, t, options, cap, backend, workspace, loss, dx, dw, db, loss_out), facts


class _Plan(NamedTuple):
    """The sizes of chunks on this rank: rows, the columns of the weights that are worked on at a time, bytes."""

    rows: int
    columns: int
    a_row: int
    a_column: int

    @property
    def bytes(self) -> int:
        """The memory that all arrays take."""
        return self.rows * self.a_row + self.columns * self.a_column + ALIGNMENT * (ARRAYS + 1)


def _plan(call: _Call, rows: int = 0) -> _Plan:
    """The largest chunks that fit the workspace, or those of a number of rows."""
    inputs, classes = call.w.shape
    size, compute = call.workspace.size, COMPUTE[call.x.dtype]
    copies = call.x.dtype != compute
    a_row = (classes * (1 + bool(call.softcap)) + inputs * (1 + 3 * (call.dx is not None))) * compute.itemsize
    a_column = inputs * compute.itemsize * (copies + (call.dw is not None))
    a_row = max(a_row, 1)
    reserve = ALIGNMENT * (ARRAYS + 1)
    columns = min(classes, max(1, size // 4 // a_column)) if a_column else classes
    least = a_row + columns * a_column + reserve
    if least > size:
        raise ValueError(f"{CALL}: max_workspace: expected at least {least} bytes, for one row, got {size}")
    most = (size - columns * a_column - reserve) // a_row
    count = math.prod(call.x.shape[:-1])
    return _Plan(rows or max(1, min(most, MOST_ROWS, count)), columns, a_row, a_column)


class _Chunks:
    """One call, chunk by chunk."""

    def __init__(self, call: _Call, comm: Communicator, classes: Classes, most: int) -> None:
        self.call, self.comm, self.classes = call, comm, classes
        backend, options = call.backend, call.options
        inputs = call.w.shape[0]
        self.compute_dtype = compute = COMPUTE[call.x.dtype]
        self.x = call.x.reshape(math.prod(call.x.shape[:-1]), inputs)
        of = self.of = labels_of(call.t, options, classes, call.x.shape[:-1], backend)
        self.xp: Any = of.xp
        self.label_weights: Any = of.label_weights(comm)
        self.by = divisors(of, len(self.x), self.label_weights)
        self.rows = len(self.x)
        self.index: Any = None  # the rows that count, if they are not all
        if of.excluded is not None and of.is_host:
            self.index = np.flatnonzero(~of.excluded)
            self.rows = len(self.index)
        number_of_chunks = math.ceil(self.rows / most)
        self.chunk_rows = max(1, math.ceil(self.rows / max(1, number_of_chunks)))
        plan = self.plan = _plan(call, self.chunk_rows)
        place = "distributed", getattr(getattr(call.x, "device", None), "id", "host")
        memory = call.workspace.memory(place, plan.bytes, lambda count: backend.empty((count,), np.dtype(np.uint8)))
        address = memory.ctypes.data if isinstance(memory, np.ndarray) else memory.data.ptr
        take = carved(memory, address)
        self._z = take((plan.rows, classes.own), compute)
        self._raw = take((plan.rows, classes.own), compute) if call.softcap else None
        self._x = take((plan.rows, inputs), compute)
        self._dx = [take((plan.rows, inputs), compute) for _ in range(3)] if call.dx is not None else []
        self._w = take((inputs, plan.columns), compute) if call.w.dtype != compute else None
        self._dw: Any = take((inputs * plan.columns,), compute) if call.dw is not None else None
        is_wide = number_of_chunks > MOST_CHUNKS or (number_of_chunks > 1 and call.w.size <= SMALL)
        reads = (call.x, call.w, call.b, call.t)
        self._sums_w: Any = None
        self._sums_b: Any = None
        if call.dw is not None:
            own = compute == call.dw.dtype and not is_wide and not any(call.dw is read for read in reads)
            self._sums_w = call.dw if own else backend.empty(call.dw.shape, FLOAT64 if is_wide else compute)
            if not self.rows:
                self._sums_w[...] = 0
        if call.db is not None:
            self._sums_b = backend.empty(call.db.shape, FLOAT64)
            self._sums_b[...] = 0
        self._waiting: list[tuple[Callable[[], None], Any, Any]] = []

    def compute(self) -> None:
        """Compute the loss and the gradients."""
        call, xp, options = self.call, self.xp, self.call.options
        reads = (call.w, call.b, call.t)
        dx = call.dx
        self._target: Any = None
        if dx is not None:
            is_own = not any(dx is read for read in reads) and (dx.ndim == 2 or dx.flags.c_contiguous)
            self._target = dx.reshape(self.x.shape) if is_own else call.backend.empty(self.x.shape, dx.dtype)
            if self.index is not None:
                self._target[_others(self.index, len(self.x))] = 0
        is_each = options.loss.reduction == "none"
        losses = xp.zeros((len(self.x),), self.compute_dtype) if is_each else None
        total = xp.zeros((1,), FLOAT64)
        for first in range(0, self.rows, self.chunk_rows):
            chunk = slice(first, min(self.rows, first + self.chunk_rows))
            each, square = self._chunk(chunk)
            if losses is not None:
                losses[self._places(chunk)] = each if square is None else each + square
            else:
                total += each.astype(FLOAT64).sum()
                if square is not None:
                    total += square.astype(FLOAT64).sum()
        while self._waiting:
            self._wait()
        if losses is not None:
            call.loss[...] = losses.reshape(call.loss.shape)
        else:
            call.loss[...] = total.astype(call.loss.dtype).reshape(())
        if dx is not None and not is_own:
            dx[...] = self._target.reshape(dx.shape)
        for target, sums in ((call.dw, self._sums_w), (call.db, self._sums_b)):
            if target is not None and sums is not target:
                target[...] = sums.astype(target.dtype)

    def _places(self, chunk: slice) -> Any:
        """Where the rows of a chunk are among all rows."""
        return chunk if self.index is None else self.index[chunk]

    def _chunk(self, chunk: slice) -> tuple[Any, Any]:
        """The losses of a chunk of rows; its gradients are added to the sums, or on their way."""
        call, xp = self.call, self.xp
        count, places = chunk.stop - chunk.start, self._places(chunk)
        of = self.of.part(places)
        x = self._x[:count]
        x[...] = self.x[places].astype(self.compute_dtype, copy=False)
        if of.excluded is not None and self.index is None:
            x[...] = xp.where(of.excluded[:, None], self.compute_dtype.type(0), x)
        z = self._z[:count]
        self._logits(x, z)
        if self._raw is not None:
            self._raw[:count] = z / call.softcap
            z[...] = xp.tanh(self._raw[:count]) * call.softcap
        top = largest(self.comm, z, call.options, xp, of.is_host)
        rows = of.rows(self.comm, z, z, top, None if self.label_weights is None else self.label_weights[places])
        rows.exchange()
        losses = rows.losses_and_gradient(self.by)
        if self._raw is not None:
            z /= xp.cosh(self._raw[:count]) ** 2  # the derivative of tanh
        if call.dx is not None:
            self._send_dx(chunk, x, z)
        self._add(x, z, is_first=not chunk.start)
        return losses

    def _parts(self) -> Iterable[slice]:
        for first in range(0, self.classes.own, max(1, self.plan.columns)):
            yield slice(first, min(self.classes.own, first + self.plan.columns))

    def _columns(self, part: slice) -> Any:
        """Columns of the weights in the dtype to compute in."""
        if self._w is None:
            return self.call.w[:, part]
        copy = self._w[:, : part.stop - part.start]
        copy[...] = self.call.w[:, part].astype(self.compute_dtype, copy=False)
        return copy

    def _logits(self, x: Any, z: Any) -> None:
        """``z = x w + b``."""
        b: Any = None if self.call.b is None else self.call.b.astype(self.compute_dtype, copy=False)
        if not x.shape[1]:
            z[...] = 0 if b is None else b
            return
        for part in self._parts():
            biases_of_part = None if b is None else b[part]
            self.call.backend.functions["affine"](x, self._columns(part), biases_of_part, z[:, part])

    def _send_dx(self, chunk: slice, x: Any, dz: Any) -> None:
        """``dz w^T``, whose sum over the ranks goes on while the next chunk is computed."""
        if len(self._waiting) == 2:
            self._wait()
        first, second, more = self._dx
        is_free = not self._waiting or self._waiting[0][1] is not first
        whole = first if is_free else second
        dx, more = whole[: len(dz)], more[: len(dz)]
        dx[...] = 0
        if dx.size:
            for part in self._parts():
                target = dx if not part.start else more
                self.call.backend.functions["affine_backward"](dz[:, part], x, self._columns(part), target, None, None)
                if part.start:
                    dx += more
        start = getattr(self.comm, "start_allreduce", None)
        if start is None:
            self.comm.allreduce(dx)
        wait = (lambda: None) if start is None else start(dx)
        self._waiting.append((wait, whole, chunk))

    def _wait(self) -> None:
        """Write the oldest gradient of inputs that is on its way."""
        wait, whole, chunk = self._waiting.pop(0)
        wait()
        dx, excluded = whole[: chunk.stop - chunk.start], self.of.excluded
        if excluded is not None and self.index is None:  # even where a weight is infinite
            dx = self.xp.where(excluded[chunk, None], self.compute_dtype.type(0), dx)
        self._target[self._places(chunk)] = dx.astype(self._target.dtype, copy=False)

    def _add(self, x: Any, dz: Any, is_first: bool) -> None:
        """Add the gradients of weights and biases of a chunk; the first one overwrites those of the weights."""
        call, depth = self.call, len(self.call.w)
        has_w = self._sums_w is not None and depth > 0
        for part in self._parts() if has_w or self._sums_b is not None else ():
            width = part.stop - part.start
            is_there = has_w and is_first and self._sums_w.dtype == self.compute_dtype
            dw: Any = self._sums_w[:, part] if is_there else None
            if has_w and not is_there:
                dw = self._dw[: depth * width].reshape(depth, width)
            db = None if self._sums_b is None else call.backend.empty((width,), self.compute_dtype)
            call.backend.functions["affine_backward"](dz[:, part], x, self._columns(part), None, dw, db)
            if has_w and not is_there:
                self._sums_w[:, part] = dw + (0 if is_first else self._sums_w[:, part])
            if db is not None:
                self._sums_b[part] += db


def _others(index: Any, count: int) -> Any:
    """The rows that are not in `index`."""
    is_out = np.ones(count, bool)
    is_out[index] = False
    return is_out
