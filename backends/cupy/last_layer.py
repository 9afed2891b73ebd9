"""The last layer in chunks of rows, its loss and its largest logits (see `plugrad.backends.chunks`), on the device.

For 16-bit arrays the logits are float32: cuBLAS multiplies the arrays as they are. Products with the gradient of the
logits are computed in float32, for which rows and weights are copied to float32.
"""

from typing import Any

import cupy
import numpy as np

from plugrad.backends.chunks import LARGEST, Chunks, Layer, Results, Way, carved, functions, place, placed, planned
from plugrad.backends.cupy import blas
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import kernel
from plugrad.backends.cupy.kernels import (
    largest_instance,
    last_layer_instance,
    softmax_cross_entropy,
    softmax_cross_entropy_value_and_grad,
)
from plugrad.backends.cupy.labels import NULL, THREADS, LossArguments
from plugrad.backends.cupy.products import SUMMED_ROWS, column_sums, matrix, product
from plugrad.backends.cupy.rows import MOST_BLOCKS, WARP, Layout, contiguous
from plugrad.backends.matrix_layout import is_row_major
from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64, LossOptions
from plugrad.backends.workspace import Workspace

# dw of at most THIN elements is summed in float64 if there are more than GROUP rows. A BLAS may sum the rows one after
# another in float32, and thousands of like numbers would drift by hundreds of ulp.
THIN, GROUP = 2**12, 256

# The arguments for ``ROW_PARAMETERS`` in last_layer.cu where every row counts.
ALL_COUNT = (NULL, 0, 0, NULL, 0, 0, 1.0, 0.0, 1.0, NULL, NULL, 0.0, 0)


def in_chunks(layer: Layer, options: LossOptions, workspace: Workspace, results: Results) -> None:
    """Compute the loss, and those gradients that `results` has arrays for."""
    x, w, b, t = layer
    rows, (inputs, classes) = layer.rows, w.shape
    loss_arguments = LossArguments(t, x, options, Layout(rows, classes, 1))
    found, moves = placed(layer, options, results, cupy.empty, is_strided=False)
    x, t = x.reshape(rows, inputs), contiguous(t).reshape((rows,) if layer.is_index else (rows, classes))
    _DeviceChunks(_readable(Layer(x, w, b, t)), loss_arguments, workspace, found).compute()
    for target, value in moves:
        target[...] = value.reshape(target.shape)


linear_cross_entropy, linear_cross_entropy_value_and_grad = functions(in_chunks)


def linear_top_k(
    x: Array, w: Array, b: Array | None, k: int, workspace: Workspace, values: Array, indices: Array
) -> None:
    """The `k` largest logits ``x w + b`` of each row, and their classes."""
    layer = Layer(x, w, b, None)
    shape, moves = (layer.rows, k), list[tuple[Array, Array]]()
    # The rows of x are read before those of the results are written.
    found = [place(array, shape, (w, b), cupy.empty, False, moves) for array in (values, indices)]
    flat = layer._replace(x=x.reshape(layer.rows, len(w)))
    _LargestLogits(_readable(flat), workspace, *found).compute()
    for target, value in moves:
        target[...] = value.reshape(target.shape)


def _readable(layer: Layer) -> Layer:
    """A layer whose arrays cuBLAS and the kernels read as they are."""
    x, w, b, t = layer
    return Layer(x if is_row_major(x) else cupy.ascontiguousarray(x), matrix(w), b if b is None else contiguous(b), t)


def _memory(workspace: Workspace, count: int) -> Array:
    """The memory of a workspace on the current device and stream; for a CUDA graph memory of the graph's own."""

    def empty(count: int) -> Array:
        return cupy.empty((count,), np.uint8)

    if blas.is_captured():
        return empty(count)
    place = "cupy", cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr
    return workspace.memory(place, count, empty)


class _DeviceChunks(Chunks):
    """The chunks of one call on the device; without `loss_arguments` for the largest logits."""

    def __init__(
        self, layer: Layer, loss_arguments: LossArguments | None, workspace: Workspace, results: Results
    ) -> None:
        self.loss_arguments: Any = loss_arguments
        self.options = LARGEST if loss_arguments is None else loss_arguments.options_for(slice(0))
        self.all_count = loss_arguments is None or loss_arguments.all_count
        x, dx, dw = layer.x, results.dx, results.dw
        (rows, inputs), classes, compute = x.shape, layer.w.shape[1], COMPUTE[x.dtype]
        is_narrow = x.dtype != compute
        is_thin = dw is not None and compute == FLOAT32 and dw.size <= THIN and rows > GROUP
        copies_x = dw is not None and not is_thin and (is_narrow or not self.all_count)
        copies_w = copies_dx = dx is not None and is_narrow
        caps = self.options.softcap is not None and results.have_gradients
        a_row = (classes * (1 + caps) + inputs * (copies_x + copies_dx)) * compute.itemsize
        a_row += (classes + inputs) * FLOAT64.itemsize * is_thin
        sums = FLOAT64 if is_thin else compute if dw is not None and is_narrow else None
        most = rows if dw is None else SUMMED_ROWS
        ways, a_column = [Way(sums.itemsize if sums else 0)], inputs * compute.itemsize * copies_w
        plan = planned(self.options.kernel, rows, classes, a_row, a_column, inputs, ways, most, workspace.size)
        memory = _memory(workspace, plan.bytes)
        take = carved(memory, memory.data.ptr)
        logits = take((1 + caps, plan.rows, classes), compute)
        self._logits, self._tanh = logits[0], logits[1] if caps else None
        self._rows = take((plan.rows * inputs,), compute) if copies_x else None
        self._slopes = take((plan.rows, inputs), compute) if copies_dx else None
        self._weights = take((inputs * plan.columns,), compute) if copies_w else None
        self._doubles = take((plan.rows * (inputs + classes),), FLOAT64) if is_thin else None
        sums_of_parts = None if sums is None else take((inputs * plan.columns,), sums)
        super().__init__(layer, results, plan, copies_w, sums_of_parts)
        self._with_loss = softmax_cross_entropy_value_and_grad if results.have_gradients else softmax_cross_entropy
        self._losses = None if self.options.reduction == "none" else cupy.empty(-(-rows // plan.rows), compute)
        self._biases = (
            cupy.empty(classes, compute),
            cupy.empty(classes, FLOAT64),
        )  # sums of a chunk, and of all

    def _launch(self, name: str, dtype: np.dtype[Any], rows: int, *arguments: Any) -> None:
        """Launch a kernel with a block for each row."""
        if rows:  # CUDA rejects a grid of 0 blocks
            kernel(name, last_layer_instance(dtype))((min(MOST_BLOCKS, rows),), (THREADS,), (rows, *arguments))

    def _targets(self, chunk: slice | None) -> tuple[Any, ...]:
        """The arguments for ``ROW_PARAMETERS`` in last_layer.cu; without a chunk every row counts."""
        return ALL_COUNT if chunk is None else (self.t[chunk], *self.loss_arguments.for_chunk(chunk), self.classes)

    def _widened(self, name: str, rows: Array, target: Array, chunk: slice | None = None) -> Array:
        """Copy rows to `target`; rows of a chunk that do not count become zeros."""
        target = target[: rows.size].reshape(rows.shape)
        step = rows.strides[0] // rows.dtype.itemsize
        self._launch(name, rows.dtype, len(rows), rows.shape[1], rows, step, *self._targets(chunk), target)
        return target

    def logits(self, chunk: slice) -> Array:
        """``z = x w + b``."""
        z = self._logits[: chunk.stop - chunk.start]
        if self.b is not None:
            self._launch("put_biases", self.b.dtype, len(z), self.classes, self.b, z)
        product(self.x[chunk], self.w, z, adds=self.b is not None)
        if self.options.softcap is not None:
            tanh = NULL if self._tanh is None else self._tanh
            self._launch("cap", self.x.dtype, len(z), self.classes, z, self.options.softcap, tanh)
        return z

    def put_results(self, chunk: slice, logits: Array) -> None:
        """Compute the loss, and ``dz = softmax(z) - t`` times the factor of the reduction."""
        part, options = self.loss[chunk] if self._losses is None else None, self.loss_arguments.options_for(chunk)
        if self._losses is not None:
            number = chunk.start // self.plan.rows
            part = self._losses[number : number + 1].reshape(())
        self._with_loss(logits, self.t[chunk], options, part, logits)
        if self._losses is not None and chunk.stop == self.rows:
            column_sums(self._losses.reshape(-1, 1), self.loss.reshape(1))
        if self._tanh is not None:
            self._launch("uncap", self.x.dtype, len(logits), self.classes, self._tanh, logits)

    def add_weights(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dw += x^T dz``."""
        rows = self.x[chunk]
        if self._doubles is not None:
            rows = self._widened("double_rows", rows, self._doubles, chunk)
            slopes = self._widened("double_rows", slopes, self._doubles[rows.size :])
        elif self._rows is not None:
            rows = self._widened("widen_rows", rows, self._rows, chunk)
        product(rows.T, slopes, target, adds=chunk.start > 0)

    def put_weights(self, sums: Array, target: Array) -> None:
        """Round sums that are in another dtype to `target`."""
        name, more = ("narrow_rows", ALL_COUNT) if self._doubles is None else ("narrow_total", ())
        self._launch(name, target.dtype, len(sums), sums.shape[1], sums, *more, target, self.classes)

    def add_biases(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``db += sum of the rows of dz``, in float64."""
        sums, total = self._biases
        column_sums(slopes, sums)
        given = self.classes, sums, int(chunk.start == 0), total, target if chunk.stop == self.rows else NULL
        blocks = min(MOST_BLOCKS, -(-self.classes // THREADS))
        kernel("add_to_total", last_layer_instance(target.dtype))((blocks,), (THREADS,), given)

    def put_rows(self, chunk: slice, slopes: Array, target: Array) -> None:
        """``dx = dz w^T``."""
        dx = target if self._slopes is None else self._slopes[: len(target)]
        for part in self.parts():
            product(slopes[:, part], self._columns(part).T, dx, adds=part.start > 0)
        if dx is not target or not self.all_count:
            inputs = target.shape[1]
            self._launch("narrow_rows", target.dtype, len(target), inputs, dx, *self._targets(chunk), target, inputs)

    def _columns(self, part: slice) -> Array:
        """Columns of w in the compute dtype."""
        if self._weights is None:
            return self.w[:, part]
        if is_row_major(self.w):
            return self._widened("widen_rows", self.w[:, part], self._weights)
        return self._widened("widen_rows", self.w.T[part], self._weights).T


class _LargestLogits(_DeviceChunks):
    """The chunks of one call for the largest logits."""

    def __init__(self, layer: Layer, workspace: Workspace, values: Array, indices: Array) -> None:
        super().__init__(layer, None, workspace, Results(None, None, None, None))
        self.values, self.indices = values, indices

    def put_results(self, chunk: slice, logits: Array) -> None:
        """The largest logits and their classes."""
        rows, k = len(logits), self.values.shape[1]
        given = rows, self.classes, k, logits, self.values[chunk], self.indices[chunk]
        threads = min(THREADS, -(-self.classes // WARP) * WARP)
        kernel("largest", largest_instance(self.values.dtype))((min(MOST_BLOCKS, rows),), (threads,), given)
