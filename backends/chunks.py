"""The last layer of a classifier in chunks of rows, with its loss or for its largest logits: one chunk's are held.

The logits of a chunk are computed, overwritten by their gradient, and multiplied to the gradients of the inputs and of
the weights. The gradient of the weights is summed in the result itself. If its dtype is not the one to compute in, or
if the sum over so many chunks would drift, it is summed in the workspace, for as many classes at a time as fit; all
chunks are then computed once for each of these parts of the classes, their logits included.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from plugrad.backends.options import LossOptions
from plugrad.backends.workspace import Workspace

Array: TypeAlias = Any

ALIGNMENT = 64  # bytes, of the arrays in a workspace
ARRAYS = 6  # the most arrays in a workspace

# The options of a layer that is computed for its largest logits, which has no labels.
LARGEST = LossOptions("linear_top_k", -1, None, None, 0.0, "mean")


class Layer(NamedTuple):
    """The arguments: inputs, weights, biases and labels; no labels, None, for the largest logits."""

    x: Array
    w: Array
    b: Array | None
    t: Array

    @property
    def rows(self) -> int:
        """How many rows of logits there are."""
        return math.prod(self.x.shape[:-1])

    @property
    def is_index(self) -> bool:
        """Whether no label is a number for each class: they are class indices, or there are none."""
        return self.t is None or bool(self.t.ndim < self.x.ndim)


class Results(NamedTuple):
    """The arrays for the results; None for what is not wanted."""

    loss: Array
    dx: Array | None
    dw: Array | None
    db: Array | None

    @property
    def have_gradients(self) -> bool:
        """Whether any gradient is wanted."""
        return any(array is not None for array in self[1:])


def functions(
    compute: Callable[[Layer, LossOptions, Workspace, Results], None],
) -> tuple[Callable[..., None], Callable[..., None]]:
    """`linear_cross_entropy` and `linear_cross_entropy_value_and_grad` of a backend, by its function `compute`."""

    def linear_cross_entropy(
        x: Array, w: Array, b: Array | None, t: Array, options: LossOptions, workspace: Workspace, loss: Array
    ) -> None:
        """``loss = -sum(t log(softmax(x w + b)))``."""
        compute(Layer(x, w, b, t), options, workspace, Results(loss, None, None, None))

    def linear_cross_entropy_value_and_grad(
        x: Array,
        w: Array,
        b: Array | None,
        t: Array,
        options: LossOptions,
        workspace: Workspace,
        loss: Array,
        dx: Array | None,
        dw: Array | None,
        db: Array | None,
    ) -> None:
        """The same, and its gradients ``dx = dz w^T``, ``dw = x^T dz``, ``db = sum of the rows of dz``."""
        compute(Layer(x, w, b, t), options, workspace, Results(loss, dx, dw, db))

    for function in (linear_cross_entropy, linear_cross_entropy_value_and_grad):
        function.__module__ = compute.__module__  # as if they were written there
    return linear_cross_entropy, linear_cross_entropy_value_and_grad


def placed(
    layer: Layer, options: LossOptions, results: Results, empty: Callable[..., Array], is_strided: bool
) -> tuple[Results, list[tuple[Array, Array]]]:
    """Arrays to compute the results in, with rows as first axis, and pairs of target and array to copy at the end.

    An array is the result's own, or a new one if the result is an argument that is still read, or has no view of that
    shape: it is not contiguous and has more axes, or the backend takes contiguous arrays only (`is_strided` is false).
    """
    rows, (inputs, classes) = layer.rows, layer.w.shape
    shapes = (rows,) if options.reduction == "none" else (), (rows, inputs), (inputs, classes), (classes,)
    shared = layer.w, layer.b, options.weight, options.sample_weight
    all_read = (*shared, layer.x, layer.t)
    reads = all_read, shared, all_read, all_read  # of x and t the rows are read before those of dx are written
    moves: list[tuple[Array, Array]] = []
    found = [
        None if target is None else place(target, shape, read, empty, is_strided, moves)
        for target, shape, read in zip(results, shapes, reads, strict=True)
    ]
    return Results(*found), moves


def place(
    target: Array,
    shape: tuple[int, ...],
    reads: tuple[Array | None, ...],
    empty: Callable[..., Array],
    is_strided: bool,
    moves: list[tuple[Array, Array]],
) -> Array:
    """The array of a shape to compute one result in (see `placed`); a new one is entered into `moves`.

    `reads` are the arguments that are still read when the result is written.
    """
    is_read = any(target is array for array in reads)
    if not is_read and (target.flags.c_contiguous or (is_strided and target.ndim == len(shape))):
        return target.reshape(shape)
    aside = empty(shape, target.dtype)
    moves.append((target, aside))
    return aside


class Way(NamedTuple):
    """A way to sum the gradient of the weights over the chunks."""

    itemsize: int  # of the dtype that it is summed in; 0: it is summed in the result itself
    chunks: float = math.inf  # the most chunks
    parts: float = math.inf  # the most parts that the classes are cut into


class Chunking(NamedTuple):
    """The sizes of chunks.

    Attributes
    ----------
    rows : int
        The rows of a chunk.
    columns : int
        The columns of the weights that are copied at a time, and of their gradient that is summed in the workspace.
    way : int
        The index of the way to sum the gradient of the weights.
    bytes : int
        The size of the workspace.
    """

    rows: int
    columns: int
    way: int
    bytes: int


def planned(
    kernel: str,
    rows: int,
    classes: int,
    a_row: int,
    a_column: int,
    depth: int,
    ways: Sequence[Way],
    most: int,
    size: int,
) -> Chunking:
    """The largest chunks that fit a workspace of `size` bytes, all of about the same number of rows.

    Parameters
    ----------
    kernel : str
        The kernel's name, for messages.
    rows, classes : int
        The shape of all logits.
    a_row : int
        Bytes for each row of a chunk.
    a_column : int
        Bytes for each column of the weights that is copied.
    depth : int
        Rows of the weights.
    ways : sequence of Way
        The ways to sum the gradient of the weights; the first that fits is taken.
    most : int
        The most rows of a chunk.
    """
    reserve, least = ALIGNMENT * (ARRAYS + 1), []
    for number, way in enumerate(ways):
        fewest = max(1, math.ceil(rows / way.chunks))
        each = a_column + depth * way.itemsize
        fewest_columns = max(1, math.ceil(classes / way.parts))
        least.append(fewest * a_row + fewest_columns * each + reserve)
        if fewest > most or least[-1] > size:
            continue
        columns = classes
        if each:  # half of the workspace, within the limits above
            columns = min(classes, max(fewest_columns, size // 2 // each), (size - reserve - fewest * a_row) // each)
        chunks = math.ceil(rows / min(most, (size - reserve - columns * each) // a_row))
        even = math.ceil(rows / chunks)
        return Chunking(even, columns, number, even * a_row + columns * each + reserve)
    raise ValueError(
        f"{kernel}: max_workspace: expected at least {min(least)} bytes, for one row of {classes} classes, got {size}"
    )


def carved(memory: Array, address: int) -> Callable[[tuple[int, ...], np.dtype[Any]], Array]:
    """A function that makes arrays, one behind the other, in `memory`, an array of bytes at an address."""
    taken = -address % ALIGNMENT

    def take(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        nonlocal taken
        start, size = taken, math.prod(shape) * dtype.itemsize
        taken += -(-size // ALIGNMENT) * ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)

    return take


class Chunks(ABC):
    """One call, chunk by chunk. A backend implements the work on a chunk.

    Parameters
    ----------
    layer : Layer
        The arguments, with two axes.
    results : Results
        The arrays to compute the results in, with the rows along the first axis.
    plan : Chunking
        The sizes of chunks.
    copies_w : bool
        Whether the weights are copied before they are multiplied.
    sums : array or None
        The array in the workspace to sum the gradient of the weights in; None: it is summed in the result itself.
    """

    def __init__(self, layer: Layer, results: Results, plan: Chunking, copies_w: bool, sums: Array | None) -> None:
        self.x, self.w, self.b, self.t = layer
        self.loss, self.dx, self.dw, self.db = results
        self.rows, self.classes = layer.rows, layer.w.shape[1]
        self.plan, self.copies_w, self.sums = plan, copies_w, sums

    def compute(self) -> None:
        """Compute all chunks, once for each part of the gradient of the weights; other results in the last pass."""
        width = self.classes if self.sums is None else self.plan.columns
        for first in range(0, self.classes, width):
            self._once(slice(first, min(self.classes, first + width)), is_last=first + width >= self.classes)

    def _once(self, part: slice, is_last: bool) -> None:
        for start in range(0, self.rows, self.plan.rows):
            chunk = slice(start, min(self.rows, start + self.plan.rows))
            logits = self.logits(chunk)
            self.put_results(chunk, logits)
            if self.dw is not None:
                target = self.dw[:, part] if self.sums is None else self.part_of_sums(part)
                self.add_weights(chunk, logits[:, part], target)
            if self.db is not None and is_last:
                self.add_biases(chunk, logits, self.db)
            if self.dx is not None and is_last:  # over the rows themselves, perhaps
                self.put_rows(chunk, logits, self.dx[chunk])
        if self.dw is not None and self.sums is not None:
            self.put_weights(self.part_of_sums(part), self.dw[:, part])

    def part_of_sums(self, part: slice) -> Array:
        """The array in the workspace that a part of the gradient of the weights is summed in."""
        assert self.sums is not None  # noqa: S101  (for the checker of types)
        inputs, width = len(self.w), part.stop - part.start
        return self.sums[: inputs * width].reshape(inputs, width)

    def parts(self) -> Iterator[slice]:
        """Parts of the columns of the weights: one part, unless the weights are copied."""
        width = self.plan.columns if self.copies_w else self.classes
        for first in range(0, self.classes, width):
            yield slice(first, min(self.classes, first + width))

    @abstractmethod
    def logits(self, chunk: slice) -> Array:
        """The logits of a chunk."""

    @abstractmethod
    def put_results(self, chunk: slice, logits: Array) -> None:
        """Write the loss of a chunk, or its largest logits; if a gradient is wanted, overwrite the logits by theirs."""

    @abstractmethod
    def add_weights(self, chunk: slice, slopes: Array, target: Array) -> None:
        """Add the gradient of a chunk to a part of the gradient of the weights; the first chunk overwrites it."""

    @abstractmethod
    def put_weights(self, sums: Array, target: Array) -> None:
        """Copy a part of the gradient of the weights from the workspace to the result."""

    @abstractmethod
    def add_biases(self, chunk: slice, slopes: Array, target: Array) -> None:
        """Add the gradient of a chunk to that of the biases; the last chunk writes the result."""

    @abstractmethod
    def put_rows(self, chunk: slice, slopes: Array, target: Array) -> None:
        """Write the gradient of the rows of a chunk."""
