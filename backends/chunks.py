"""The last layer of a classifier and its loss in chunks of rows, so that the logits of one chunk only are held.

For each chunk the logits are computed, turned into their gradient where they are, and multiplied to the gradients of
the inputs and of the weights. The latter are added up where they are wanted. Where that cannot be - their dtype is not
the one to compute in, or so many chunks are added up that it would drift - they are added up aside, for as many classes
at a time as there is room for; the chunks are then gone through once for each of these parts, and their logits computed
anew.
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
ARRAYS = 6  # of them at the most


class Layer(NamedTuple):
    """The arguments: inputs, weights, biases and labels."""

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
        """Whether the labels are class indices."""
        return bool(self.t.ndim < self.x.ndim)


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
    """The two functions of a backend that computes so."""

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

    return linear_cross_entropy, linear_cross_entropy_value_and_grad


def placed(
    layer: Layer, options: LossOptions, results: Results, empty: Callable[..., Array], is_strided: bool
) -> tuple[Results, list[tuple[Array, Array]]]:
    """Arrays to compute the results in, with rows as their first axis, and which of them are to be copied where.

    These are the results' own, or aside, where such an array is an argument that is still read, or cannot be seen so:
    if it has strides of its own, and more axes than that, or may have none (`is_strided` is false).
    """
    rows, (inputs, classes) = layer.rows, layer.w.shape
    shapes = (rows,) if options.reduction == "none" else (), (rows, inputs), (inputs, classes), (classes,)
    shared = layer.w, layer.b, options.weight
    all_read = (*shared, layer.x, layer.t)
    reads = all_read, shared, all_read, all_read  # of x and t the rows are read before those of dx are written
    found: list[Array | None] = []
    moves: list[tuple[Array, Array]] = []
    for target, shape, read in zip(results, shapes, reads, strict=True):
        if target is None:
            found.append(None)
        elif not any(target is array for array in read) and (
            target.flags.c_contiguous or (is_strided and target.ndim == len(shape))
        ):
            found.append(target.reshape(shape))
        else:
            aside = empty(shape, target.dtype)
            found.append(aside)
            moves.append((target, aside))
    return Results(*found), moves


class Way(NamedTuple):
    """A way to add up the gradient of the weights."""

    itemsize: int  # of what it is added up in aside; 0: where it is wanted
    chunks: float = math.inf  # at the most
    parts: float = math.inf  # that the classes are cut into, at the most


class Plan(NamedTuple):
    """How the work is cut up.

    Attributes
    ----------
    rows : int
        Of a chunk.
    columns : int
        Of the part of the weights that is copied, and of their gradient that is added up aside, at a time.
    way : int
        Which of the ways to add it up.
    bytes : int
        Of the workspace.
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
) -> Plan:
    """The largest chunks that a workspace of `size` bytes has room for, all about as large.

    Parameters
    ----------
    kernel : str
        The kernel's name, for messages.
    rows, classes : int
        Of all logits.
    a_row : int
        Bytes for each row of a chunk.
    a_column : int
        Bytes for each column of the weights that is copied.
    depth : int
        Rows of the weights.
    ways : sequence of Way
        The ways to add up the gradient of the weights, the first one that will do is taken.
    most : int
        Rows of a chunk at the most.
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
        if each:  # half of the workspace, but as it must be
            columns = min(classes, max(fewest_columns, size // 2 // each), (size - reserve - fewest * a_row) // each)
        chunks = math.ceil(rows / min(most, (size - reserve - columns * each) // a_row))
        even = math.ceil(rows / chunks)
        return Plan(even, columns, number, even * a_row + columns * each + reserve)
    raise ValueError(
        f"{kernel}: max_workspace: expected at least {min(least)} bytes, for one row of {classes} classes, got {size}"
    )


def carved(memory: Array, address: int) -> Callable[[tuple[int, ...], np.dtype[Any]], Array]:
    """A function that makes arrays in `memory`, an array of bytes at an address, one behind the other."""
    taken = -address % ALIGNMENT

    def take(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        nonlocal taken
        start, size = taken, math.prod(shape) * dtype.itemsize
        taken += -(-size // ALIGNMENT) * ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)

    return take


class Chunks(ABC):
    """The work of one call; what is done with a chunk is the backend's.

    Parameters
    ----------
    layer : Layer
        The arguments, with two axes.
    results : Results
        Where to compute the results, with the rows along the first axis.
    plan : Plan
        How the rows are cut up.
    copies_w : bool
        Whether the weights have to be copied to be multiplied.
    sums : array or None
        Where the gradient of the weights is added up aside.
    """

    def __init__(self, layer: Layer, results: Results, plan: Plan, copies_w: bool, sums: Array | None) -> None:
        self.x, self.w, self.b, self.t = layer
        self.loss, self.dx, self.dw, self.db = results
        self.rows, self.classes = layer.rows, layer.w.shape[1]
        self.plan, self.copies_w, self.sums = plan, copies_w, sums

    def compute(self) -> None:
        """All chunks, once for each part of the gradient of the weights; other results are written the last time."""
        width = self.classes if self.sums is None else self.plan.columns
        for first in range(0, self.classes, width):
            self._once(slice(first, min(self.classes, first + width)), is_last=first + width >= self.classes)

    def _once(self, part: slice, is_last: bool) -> None:
        for start in range(0, self.rows, self.plan.rows):
            chunk = slice(start, min(self.rows, start + self.plan.rows))
            logits = self.logits(chunk)
            self.put_loss(chunk, logits)
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
        """Where a part of the gradient of the weights is added up aside."""
        assert self.sums is not None  # noqa: S101  (for the checker of types)
        inputs, width = len(self.w), part.stop - part.start
        return self.sums[: inputs * width].reshape(inputs, width)

    def parts(self) -> Iterator[slice]:
        """Parts of the columns of the weights: all of them, unless they have to be copied."""
        width = self.plan.columns if self.copies_w else self.classes
        for first in range(0, self.classes, width):
            yield slice(first, min(self.classes, first + width))

    @abstractmethod
    def logits(self, chunk: slice) -> Array:
        """The logits of a chunk."""

    @abstractmethod
    def put_loss(self, chunk: slice, logits: Array) -> None:
        """The loss of a chunk; if a gradient is wanted, that of the logits takes their place."""

    @abstractmethod
    def add_weights(self, chunk: slice, slopes: Array, target: Array) -> None:
        """Add what a chunk gives to a part of the gradient of the weights, or put it there if it is the first."""

    @abstractmethod
    def put_weights(self, sums: Array, target: Array) -> None:
        """The part of the gradient of the weights that was added up aside."""

    @abstractmethod
    def add_biases(self, chunk: slice, slopes: Array, target: Array) -> None:
        """Add what a chunk gives to the gradient of the biases, and put that where it is wanted if it is the last."""

    @abstractmethod
    def put_rows(self, chunk: slice, slopes: Array, target: Array) -> None:
        """The gradient of the rows of a chunk."""
