"""What the labels and options of a loss come to: which rows count, by how much, and against which labels."""

from typing import Any

import numpy as np

from plugrad.backends.numpy.blocks import Array, Index, Scratch, cut
from plugrad.backends.numpy.rows import Elements, classes_last, flat_rows
from plugrad.backends.options import COMPUTE, LossOptions, bad_label

UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Labels:
    """The labels of all rows, checked.

    Attributes
    ----------
    t : array
        One class index per row, or one number per class with the classes along the last axis.
    one_class : bool
        Whether each row is compared with one class only: class indices, not smoothed.
    scale : float
        What the sum of the losses is multiplied by; 0 where nothing counts.
    compute : dtype
        What the loss is computed in.
    """

    __slots__ = ("classes", "compute", "indices", "one_class", "options", "scale", "t")

    def __init__(self, t: Array, rows: Array, options: LossOptions) -> None:
        classes = rows.shape[-1]
        self.compute = COMPUTE[rows.dtype]
        self.indices = t.ndim < rows.ndim
        self.t = t if self.indices else classes_last(t, options.axis)
        self.classes = classes
        self.options = options
        self.one_class = self.indices and not options.label_smoothing
        if self.indices:
            check(t, classes, options)
        divisor = self._divisor() if options.reduction == "mean" else 1.0
        self.scale = 1.0 / divisor if divisor else 0.0

    def _divisor(self) -> float:
        """The number of rows that count, each as often as its label weighs."""
        if not self.indices:
            return self.t.size / self.classes
        if self.options.weight is None and self.options.ignore_index is None:
            return float(self.t.size)
        return sum(self._counted(index) for index in cut(self.t.shape, 1))

    def _counted(self, index: Index) -> float:
        labels, ignored = self._indices(index)
        if self.options.weight is None:
            return float(labels.size - (0 if ignored is None else np.count_nonzero(ignored)))
        weights = self.options.weight[labels].astype(np.float64)
        return float(np.add.reduce(weights if ignored is None else weights[~ignored]))

    def _indices(self, index: Index) -> tuple[Array, Array | None]:
        """The class indices of a block, with 0 for ignored rows, and which rows are ignored, None for no row."""
        labels = self.t[index].reshape(-1)
        if self.options.ignore_index is None:
            return labels, None
        ignored = labels == self.options.ignore_index
        return (np.where(ignored, 0, labels), ignored) if ignored.any() else (labels, None)

    def single(self, index: Index) -> tuple[Elements, Array | None, Array | None]:
        """Of the rows of a block: the element of the label, its weight (None: 1), and which rows are ignored."""
        labels, ignored = self._indices(index)
        weight = self.options.weight
        return (np.arange(labels.size), labels), None if weight is None else weight[labels], ignored

    def spread(self, index: Index, like: Array, scratch: Scratch) -> tuple[Array, Array, Array | None]:
        """The weighted, smoothed labels of a block with the shape and dtype of `like`.

        Returns them with two dimensions, their sum for each row, and which rows are ignored.
        """
        smoothing = self.options.label_smoothing
        a = scratch.rows("labels", like, like.dtype)
        rows = flat_rows(a)
        ignored = None
        if self.indices:
            labels, ignored = self._indices(index)
            rows[...] = smoothing / self.classes
            rows[np.arange(labels.size), labels] += 1 - smoothing
        else:
            np.copyto(a, self.t[index], casting="same_kind")
            if smoothing:
                rows *= 1 - smoothing
                rows += smoothing / self.classes
        if self.options.weight is not None:
            rows *= self.options.weight
        if ignored is not None:
            rows[ignored] = 0
        return rows, np.add.reduce(rows, axis=-1), ignored

    def upstream(self, dloss: Any, index: Index) -> Any:
        """The gradient of the loss, divided as the reduction says, for the rows of a block: one number, or one each."""
        if self.options.reduction == "none":
            dloss = dloss[index].reshape(-1)
        return np.asarray(dloss, self.compute) * self.compute.type(self.scale)

    def store(self, loss: Array, totals: list[float]) -> None:
        """Write the loss, a scalar, from the sums of the blocks, unless it was written row by row."""
        if self.options.reduction != "none":
            loss[...] = float(np.add.reduce(np.array(totals))) * self.scale if self.scale else 0.0

    def collect(self, losses: Array, ignored: Array | None, loss: Array, index: Index) -> float:
        """Take the losses of the rows of a block: write them where each is wanted, else return their sum."""
        if ignored is not None:
            losses[ignored] = 0
        if self.options.reduction == "none":
            target = loss[index]
            target[...] = losses.reshape(target.shape)
            return 0.0
        return float(np.add.reduce(losses, dtype=np.float64))


def check(t: Array, classes: int, options: LossOptions) -> None:
    """Refuse class indices outside ``[0, classes)`` that are not ignored."""
    # Seen as unsigned, negative labels are larger than any class: the largest label tells whether all are right.
    unsigned = t.view(UNSIGNED[t.itemsize])
    if unsigned.flat[unsigned.argmax()] < classes:
        return
    for index in cut(t.shape, 1):
        bad = unsigned[index] >= classes
        if options.ignore_index is not None:
            bad &= t[index] != options.ignore_index
        if bad.any():
            row = np.unravel_index(bad.argmax(), bad.shape)
            raise bad_label(int(t[index][row]), _place(index, row), classes, options.ignore_index)


def _place(index: Index, row: tuple[np.intp, ...]) -> tuple[int, ...]:
    """The indices in the whole array of element `row` of the block at `index`."""
    within = tuple(map(int, row))
    if index is ...:
        return within
    *outer, piece = index
    return (*outer, piece.start + within[0], *within[1:])


def weighted(losses: Array, weight: Array | None) -> Array:
    """The losses of rows times the weights of their labels; an infinite loss of weight 0 is 0."""
    if weight is None:
        return losses
    product = losses * weight
    product[(weight == 0) & np.isinf(losses)] = 0
    return product


def inner(labels: Array, logs: Array, scratch: Scratch) -> Array:
    """The inner products of the rows of labels and of logarithms, where a label of 0 makes 0 even of ``-inf``."""
    product = flat_rows(scratch.rows("product", logs, logs.dtype))
    total = np.add.reduce(np.multiply(labels, logs, out=product), axis=-1)
    if np.isnan(total).any():
        product[(labels == 0) & np.isneginf(logs)] = 0
        total = np.add.reduce(product, axis=-1)
    return total
