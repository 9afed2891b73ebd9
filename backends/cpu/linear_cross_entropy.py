"""The last layer in chunks of rows (see `plugrad.backends.chunks`), on NumPy arrays.

`in_chunks` and `largest_in_chunks` make the kernels of a backend from the functions of it, its `ChunkKernels`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from plugrad.backends.chunks import LARGEST, Chunks, Layer, Results, Way, carved, place, placed, planned
from plugrad.backends.cpu.affine import GROUP, MATRIX_ROWS, THIN, add_weights
from plugrad.backends.cpu.blas import gemm, is_matrix
from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.cpu.class_indices import check, divided, unignored
from plugrad.backends.options import COMPUTE, FLOAT64, LossOptions
from plugrad.backends.workspace import Workspace

# Up to MOST_CHUNKS chunks are summed in float32: a sum of 122 chunks of 8,192 equal rows was off by 41 ulp. More are
# summed in float64 in the workspace, unless the classes would be cut into more than FEW_PARTS parts, for each of which
# the logits are computed again; then up to MANY_CHUNKS are summed in float32 all the same. Such sums are off by
# hundreds of ulp if all rows are alike, and by about ten if they are not.
MOST_CHUNKS, MANY_CHUNKS = 64, 1024
FEW_PARTS = 4

PIECE = 64  # rows that are gathered at a time, in memory of their own

RESULTS = 2**13  # of the largest logits, that are gathered at a time in the same way

HOST = "host"  # the key of host memory in a workspace

Loss: TypeAlias = Callable[[Array, Array, LossOptions, Array, Array], None]


class ChunkKernels(NamedTuple):
    """The functions of a backend that compute on the logits of a chunk."""

    loss: Loss  # may overwrite the logits
    loss_and_gradient: Loss
    column_sums: Callable[[Array, Array], Any]
    tanh: Callable[[Array, Array], Any]
    tanh_backward: Callable[[Array, Array, Array], Any]
    largest: Callable[[Array, Array], None]  # writes the classes of the largest logits, in order, of each row


@quietly
def in_chunks(
    kernels: ChunkKernels, layer: Layer, options: LossOptions, workspace: Workspace, results: Results
) -> None:
    """Compute the loss of a layer, and the gradients that are wanted."""
    rows, (inputs, classes), t = layer.rows, layer.w.shape, layer.t
    if layer.is_index:
        check(t, classes, options)
    divisor, weight, z_loss = divided(t, layer.is_index, rows, options)
    counted = _counted_rows(layer, options)
    found, moves = placed(layer, options, results, np.empty, is_strided=True)
    t = t.reshape((rows,) if layer.is_index else (rows, classes))
    flat = layer._replace(x=layer.x.reshape(rows, inputs), t=t)
    options = options._replace(axis=1, weight=weight, z_loss=z_loss, divisor=divisor)
    chunks = _HostChunks(kernels, flat, options, workspace, found, counted)
    if not divisor or (counted is not None and not counted.size):
        for array in found:
            if array is not None:
                array[...] = 0
    else:
        chunks.compute()
    for target, value in moves:
        target[...] = value.reshape(target.shape)


@quietly
def largest_in_chunks(
    kernels: ChunkKernels, layer: Layer, k: int, workspace: Workspace, values: Array, indices: Array
) -> None:
    """Find the `k` largest logits of each row of a layer, and their classes."""
    shape, moves = (layer.rows, k), list[tuple[Array, Array]]()
    shared = layer.w, layer.b  # the rows of x are read before those of the results are written
    found = [place(array, shape, shared, np.empty, True, moves) for array in (values, indices)]
    flat = layer._replace(x=layer.x.reshape(layer.rows, len(layer.w)))
    _LargestLogits(kernels, flat, workspace, *found).compute()
    for target, value in moves:
        target[...] = value.reshape(target.shape)


def _counted_rows(layer: Layer, options: LossOptions) -> Array | None:
    """The numbers of the rows that count; None if all do."""
    weights = options.sample_weight
    if weights is None and options.ignore_index is None:
        return None
    ignored: Any = None if weights is None else weights.reshape(-1) == 0
    if layer.is_index:
        ignored = unignored(layer.t, options, weights)[1]
    return None if ignored is None or not ignored.any() else np.flatnonzero(~ignored)


class _HostChunks(Chunks):
    """One call on NumPy arrays.

    Chunks consist of rows that count: `counted` has their numbers, None if all do. Others take part in no product.
    """

    def __init__(
        self,
        kernels: ChunkKernels,
        layer: Layer,
        options: LossOptions,
        workspace: Workspace,
        results: Results,
        counted: Array | None,
    ) -> None:
        # The plan does not depend on which rows count, but on whether some may not: so each replay of a capture has
        # the memory it needs.
        may_gather = options.ignore_index is not None or options.sample_weight is not None
        self.kernels = kernels
        self.options = options._replace(ignore_index=None, sample_weight=None) if may_gather else options
        weights = options.sample_weight
        self._sample_weight = None if weights is None else weights.reshape(-1)
        self._counted = counted
        x, w, dx, dw = layer.x, layer.w, results.dx, results.dw
        (rows, inputs), classes, compute = x.shape, w.shape[1], COMPUTE[x.dtype]
        copies_x, copies_w = (not is_matrix(array, compute) for array in (x, w))
        self._reads_x = not copies_x and counted is None
        copies_x |= may_gather
        self._writes_dx = counted is None and dx is not None and is_matrix(dx, compute)
        copies_dx = dx is not None and (may_gather or not is_matrix(dx, compute))
        copies_t = not layer.is_index and (may_gather or not (layer.t.dtype == compute and layer.t.flags.carray))
        caps = options.softcap is not None and results.have_gradients
        a_row = (classes * (1 + copies_t + caps) + inputs * (copies_x + copies_dx)) * compute.itemsize
        ways, dtypes = _ways(dw, rows, compute)
        most = rows if dw is None else MATRIX_ROWS
        a_column = inputs * compute.itemsize * copies_w
        plan = planned(options.kernel, rows, classes, a_row, a_column, inputs, ways, most, workspace.size)
        memory = workspace.memory(HOST, plan.bytes, lambda count: np.empty(count, np.uint8))
        take = carved(memory, memory.ctypes.data)
        logits = take((1 + caps, plan.rows, classes), compute)
        self._logits, self._tanh = logits[0], logits[1] if caps else None
        self._labels = take((plan.rows, classes), compute) if copies_t else None
        self._rows = take((plan.rows, inputs), compute) if copies_x else None
        self._slopes = take((plan.rows, inputs), compute) if copies_dx else None
        self._weights = take((inputs * plan.columns,), compute) if copies_w else None
        self._first_copied = -1  # the first of the columns in the copy
        sums = dtypes[plan.way]
        sums_of_parts = None if sums is None else take((inputs * plan.columns,), sums)
        super().__init__(layer, results, plan, copies_w, sums_of_parts)
        if counted is not None:
            self.rows = counted.size
        self._compute_loss = kernels.loss_and_gradient if results.have_gradients else kernels.loss
        self._each = np.empty(()) if options.reduction != "none" else None
        self._total = 0.0
        self._biases = (
            np.empty(classes),
            np.empty(classes, compute),
        )  # sums over all rows, and over a chunk

    def logits(self, chunk: slice) -> Array:
        """``z = x w + b``."""
        rows = self._readable_rows(chunk)
        z: Array = self._logits[: len(rows)]
        if self.b is not None:
            z[...] = self.b
        for part in self.parts():
            gemm(rows, self._columns(part), z[:, part], accumulate=self.b is not None)
        if self.options.softcap is not None:
            tanh = z if self._tanh is None else self._tanh[: len(z)]
            np.divide(z, self.options.softcap, out=tanh)
            self.kernels.tanh(tanh, tanh)
            np.multiply(tanh, self.options.softcap, out=z)
        return z

    def _readable_rows(self, chunk: slice) -> Array:
        """The rows of a chunk, as BLAS reads them."""
        return self.x[chunk] if self._reads_x else self._copied(self.x, chunk, self._rows)

    def _copied(self, array: Array, chunk: slice, memory: Array | None) -> Array:
        """The rows of a chunk of an array, copied to memory of the workspace."""
        assert memory is not None  # noqa: S101  (for the checker of types)
        rows = memory[: chunk.stop - chunk.start]
        if self._counted is None:
            rows[...] = array[chunk]
            return rows
        numbers = self._counted[chunk]
        for start in range(0, len(rows), PIECE):
            rows[start : start + PIECE] = array[numbers[start : start + PIECE]]
        return rows

    def _columns(self, part: slice) -> Array:
        """Columns of w, as BLAS reads them."""
        if self._weights is None:
            return self.w[:, part]  # type: ignore[no-any-return]
        width = part.stop - part.start
        copy: Array = self._weights[: len(self.w) * width].reshape(len(self.w), width)
        if self._first_copied != part.start:
            copy[...] = self.w[:, part]
            self._first_copied = part.start
        return copy

    def put_results(self, chunk: slice, logits: Array) -> None:
        """The loss, and ``y - t`` in place of the logits, scaled by the reduction."""
        counted: Any = chunk if self._counted is None else self._counted[chunk]
        t = self.t[counted] if self._labels is None else self._copied(self.t, chunk, self._labels)
        options = self.options
        if self._sample_weight is not None:
            options = options._replace(sample_weight=self._sample_weight[counted])
        if self._each is not None:
            self._compute_loss(logits, t, options, self._each, logits)
            self._total = float(self._each) + (self._total if chunk.start else 0.0)
            if chunk.stop == self.rows:
                self.loss[...] = self._total
        elif self._counted is None:
            self._compute_loss(logits, t, options, self.loss[chunk], logits)
        else:
            losses = np.empty(len(logits), self.loss.dtype)
            self._compute_loss(logits, t, options, losses, logits)
            if not chunk.start:
                self.loss[...] = 0
            self.loss[counted] = losses
        if self._tanh is not None:
            self.kernels.tanh_backward(logits, self._tanh[: len(logits)], logits)

    def add_weights(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dw += x^T dz``."""
        rows = self.x[chunk] if self._reads_x or self._rows is None else self._rows[: len(slopes)]
        if target.dtype == rows.dtype:
            gemm(rows.T, slopes, target, accumulate=chunk.start > 0)
            return
        if not chunk.start:
            target[...] = 0
        add_weights(rows, slopes, target)

    def put_weights(self, sums: Array, target: Array) -> None:
        """Copy the sums to the result."""
        np.copyto(target, sums, casting="same_kind")

    def add_biases(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``db += sum of the rows of dz``, in float64."""
        total, sums = self._biases
        self.kernels.column_sums(slopes, sums)
        np.add(total if chunk.start else 0, sums, out=total)
        if chunk.stop == self.rows:
            target[...] = total

    def put_rows(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dx = dz w^T``."""
        dx = target if self._writes_dx or self._slopes is None else self._slopes[: len(slopes)]
        for part in self.parts():
            gemm(slopes[:, part], self._columns(part).T, dx, accumulate=part.start > 0)
        if dx is target:
            return
        if self._counted is None:
            np.copyto(target, dx, casting="same_kind")
            return
        assert self.dx is not None  # noqa: S101  (for the checker of types)
        if not chunk.start:
            others = np.ones(len(self.dx), bool)
            others[self._counted] = False
            self.dx[others] = 0  # no chunk reads these rows, if they are those of x
        self.dx[self._counted[chunk]] = dx


class _LargestLogits(_HostChunks):
    """One call for the largest logits on NumPy arrays."""

    def __init__(
        self, kernels: ChunkKernels, layer: Layer, workspace: Workspace, values: Array, indices: Array
    ) -> None:
        super().__init__(kernels, layer, LARGEST, workspace, Results(None, None, None, None), None)
        self.values, self.indices = values, indices

    def put_results(self, chunk: slice, logits: Array) -> None:
        """The largest logits and their classes."""
        values, indices = self.values[chunk], self.indices[chunk]
        step = max(1, RESULTS // values.shape[1])
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            target = indices[part]
            classes = target if target.flags.carray else np.empty(target.shape, target.dtype)
            self.kernels.largest(logits[part], classes)
            values[part] = np.take_along_axis(logits[part], classes, 1)
            if classes is not target:
                target[...] = classes


def _ways(dw: Array | None, rows: int, compute: np.dtype[Any]) -> tuple[list[Way], list[np.dtype[Any] | None]]:
    """The ways to sum the gradient of the weights, and the dtype of each in the workspace, None: in the result."""
    wide = Way(FLOAT64.itemsize)
    if dw is None:
        return [Way(0)], [None]
    if dw.size <= THIN and rows > GROUP:
        return [wide], [FLOAT64]
    dtype = None if is_matrix(dw, compute) else compute
    narrow = Way(0 if dtype is None else compute.itemsize)
    if compute == FLOAT64:
        return [narrow], [dtype]
    few, many = narrow._replace(chunks=MOST_CHUNKS), narrow._replace(chunks=MANY_CHUNKS)
    return [few, wide._replace(parts=FEW_PARTS), many, wide], [dtype, FLOAT64, dtype, FLOAT64]
