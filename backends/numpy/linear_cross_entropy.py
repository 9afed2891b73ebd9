"""The last layer and its loss in chunks of rows (see `plugrad.backends.chunks`), on NumPy arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from plugrad.backends.blas import is_matrix, product
from plugrad.backends.chunks import Chunks, Layer, Results, Way, carved, functions, placed, planned
from plugrad.backends.numpy.affine import GROUP, MATRIX_ROWS, THIN, add_weights, column_sums
from plugrad.backends.numpy.blocks import Array, quietly
from plugrad.backends.numpy.labels import check, counted
from plugrad.backends.numpy.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_value_and_grad
from plugrad.backends.options import COMPUTE, FLOAT64, LossOptions
from plugrad.backends.workspace import Workspace

# So many chunks are added up in float32: a sum of 122 chunks of 8,192 equal rows was off by 41 ulp. More are added up
# in float64 aside, unless the classes would be cut into more parts than FEW_PARTS, for each of which the logits are
# computed anew; then up to MANY_CHUNKS are added up in float32 all the same, which are off by hundreds of ulp if all
# rows are alike, and by ten or so if they are not.
MOST_CHUNKS, MANY_CHUNKS = 64, 1024
FEW_PARTS = 4

NOTHING = np.empty(0, np.intp)

HOST = "host"  # where the workspaces of all backends are that compute on NumPy arrays

Loss: TypeAlias = Callable[[Array, Array, LossOptions, Array, Array], None]


class Room(NamedTuple):
    """What a backend on NumPy arrays computes by itself."""

    value: Loss  # the losses; the logits may be written over
    value_and_grad: Loss
    column_sums: Callable[[Array, Array], Any]


ROOM = Room(softmax_cross_entropy, softmax_cross_entropy_value_and_grad, column_sums)


@quietly
def in_chunks(room: Room, layer: Layer, options: LossOptions, workspace: Workspace, results: Results) -> None:
    """What the two functions compute, for any backend on NumPy arrays."""
    rows, (inputs, classes), t = layer.rows, layer.w.shape, layer.t
    if layer.is_index:
        check(t, classes, options)
    if options.reduction == "mean":
        options = options._replace(divisor=counted(t, options) if layer.is_index else float(rows))
    found, moves = placed(layer, options, results, np.empty, is_strided=True)
    t = t.reshape((rows,) if layer.is_index else (rows, classes))
    flat = layer._replace(x=layer.x.reshape(rows, inputs), t=t)
    chunks = _HostChunks(room, flat, options._replace(axis=1), workspace, found)
    if options.divisor == 0:
        for array in found:
            if array is not None:
                array[...] = 0
    else:
        chunks.compute()
    for target, value in moves:
        target[...] = value.reshape(target.shape)


class _HostChunks(Chunks):
    """The work of one call on NumPy arrays."""

    def __init__(self, room: Room, layer: Layer, options: LossOptions, workspace: Workspace, results: Results) -> None:
        self.room, self.options = room, options
        x, w, dx, dw = layer.x, layer.w, results.dx, results.dw
        (rows, inputs), classes, compute = x.shape, w.shape[1], COMPUTE[x.dtype]
        copies_x, copies_w = (not is_matrix(array, compute) for array in (x, w))
        copies_x |= dw is not None and options.ignore_index is not None  # rows that do not count become zeros there
        copies_dx = dx is not None and not is_matrix(dx, compute)
        copies_t = not layer.is_index and not (layer.t.dtype == compute and layer.t.flags.carray)
        a_row = (classes * (1 + copies_t) + inputs * (copies_x + copies_dx)) * compute.itemsize
        ways, aside = _ways(dw, rows, compute)
        most = rows if dw is None else MATRIX_ROWS
        a_column = inputs * compute.itemsize * copies_w
        plan = planned(options.kernel, rows, classes, a_row, a_column, inputs, ways, most, workspace.size)
        memory = workspace.memory(HOST, plan.bytes, lambda count: np.empty(count, np.uint8))
        take = carved(memory, memory.ctypes.data)
        self._logits = take((plan.rows, classes), compute)
        self._labels = take((plan.rows, classes), compute) if copies_t else None
        self._rows = take((plan.rows, inputs), compute) if copies_x else None
        self._slopes = take((plan.rows, inputs), compute) if copies_dx else None
        self._weights = take((inputs * plan.columns,), compute) if copies_w else None
        self._held = -1  # the first of the columns that are copied at the time
        sums = aside[plan.way]
        sums_of_parts = None if sums is None else take((inputs * plan.columns,), sums)
        super().__init__(layer, results, plan, copies_w, sums_of_parts)
        self._with_loss = room.value_and_grad if results.have_gradients else room.value
        self._each = np.empty(()) if options.reduction != "none" else None
        self._total = 0.0
        self._biases = np.empty(classes), np.empty(classes, compute)  # the sums of all rows, and of those of a chunk

    def logits(self, chunk: slice) -> Array:
        """``z = x w + b``."""
        rows = self._taken(chunk)
        z: Array = self._logits[: len(rows)]
        if self.b is not None:
            z[...] = self.b
        for part in self.parts():
            product(rows, self._columns(part), z[:, part], adds=self.b is not None)
        return z

    def _taken(self, chunk: slice) -> Array:
        """The rows of a chunk, in a form for BLAS."""
        if self._rows is None:
            return self.x[chunk]  # type: ignore[no-any-return]
        rows: Array = self._rows[: chunk.stop - chunk.start]
        rows[...] = self.x[chunk]
        return rows

    def _columns(self, part: slice) -> Array:
        """Columns of w, in a form for BLAS."""
        if self._weights is None:
            return self.w[:, part]  # type: ignore[no-any-return]
        width = part.stop - part.start
        copy: Array = self._weights[: len(self.w) * width].reshape(len(self.w), width)
        if self._held != part.start:
            copy[...] = self.w[:, part]
            self._held = part.start
        return copy

    def put_loss(self, chunk: slice, logits: Array) -> None:
        """The loss; ``z - t``, scaled as the reduction says."""
        t = self.t[chunk]
        if self._labels is not None:
            labels = self._labels[: len(logits)]
            labels[...] = t
            t = labels
        if self._each is None:
            self._with_loss(logits, t, self.options, self.loss[chunk], logits)
            return
        self._with_loss(logits, t, self.options, self._each, logits)
        self._total = float(self._each) + (self._total if chunk.start else 0.0)
        if chunk.stop == self.rows:
            self.loss[...] = self._total

    def add_weights(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dw += x^T dz``."""
        rows = self.x[chunk] if self._rows is None else self._rows[: len(slopes)]
        ignored = self._ignored(chunk)
        if ignored.size:
            rows[ignored] = 0  # what is infinite there, times 0, would not be 0
        if target.dtype == rows.dtype:
            product(rows.T, slopes, target, adds=chunk.start > 0)
            return
        if not chunk.start:
            target[...] = 0
        add_weights(rows, slopes, target)

    def put_weights(self, sums: Array, target: Array) -> None:
        """What was added up aside."""
        np.copyto(target, sums, casting="same_kind")

    def add_biases(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``db += sum of the rows of dz``, in float64."""
        total, sums = self._biases
        self.room.column_sums(slopes, sums)
        np.add(total if chunk.start else 0, sums, out=total)
        if chunk.stop == self.rows:
            target[...] = total

    def put_rows(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dx = dz w^T``."""
        dx = target if self._slopes is None else self._slopes[: len(slopes)]
        for part in self.parts():
            product(slopes[:, part], self._columns(part).T, dx, adds=part.start > 0)
        if dx is not target:
            np.copyto(target, dx, casting="same_kind")
        target[self._ignored(chunk)] = 0  # even where a weight is infinite

    def _ignored(self, chunk: slice) -> Array:
        """The rows of a chunk that do not count."""
        ignore = self.options.ignore_index
        return NOTHING if ignore is None else np.flatnonzero(self.t[chunk] == ignore)


def _ways(dw: Array | None, rows: int, compute: np.dtype[Any]) -> tuple[list[Way], list[np.dtype[Any] | None]]:
    """The ways to add up the gradient of the weights, and for each the dtype it is in aside, None for its own array."""
    wide = Way(FLOAT64.itemsize)
    if dw is None:
        return [Way(0)], [None]
    if dw.size <= THIN and rows > GROUP:
        return [wide], [FLOAT64]
    place = None if is_matrix(dw, compute) else compute
    there = Way(0 if place is None else compute.itemsize)
    if compute == FLOAT64:
        return [there], [place]
    few, many = there._replace(chunks=MOST_CHUNKS), there._replace(chunks=MANY_CHUNKS)
    return [few, wide._replace(parts=FEW_PARTS), many, wide], [place, FLOAT64, place, FLOAT64]


linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(lambda *given: in_chunks(ROOM, *given))
