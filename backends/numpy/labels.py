"""The labels and options of a loss: the rows that count, their weights, and the labels they are compared with."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.cpu.class_indices import check, divided, unignored
from plugrad.backends.numpy.pool import Scratch
from plugrad.backends.numpy.rows import classes_last, elements, row_sums
from plugrad.backends.options import COMPUTE, LossOptions

FEW_LOSSES = 64  # whose sum is faster without NumPy


class LabelBlocks:
    """The labels of all rows, checked.

    Attributes
    ----------
    t : array
        One class index per row, or one number per class with the classes along the last axis.
    one_class : bool
        Whether each row is compared with one class only: class indices, not smoothed.
    divisor : float
        What the sum of the losses is divided by; 0 where nothing counts.
    weight : array or None
        The weight of each class, already divided so if there is one.
    sample_weight : array or None
        The weight of each row.
    z_loss : float
        The factor of the squared logarithms of sums, divided where `weight` is.
    compute : dtype
        What the loss is computed in.
    """

    __slots__ = (
        "classes",
        "compute",
        "divisor",
        "indices",
        "one_class",
        "options",
        "sample_weight",
        "t",
        "weight",
        "z_loss",
    )

    def __init__(self, t: Array, rows: Array, options: LossOptions) -> None:
        self.classes = rows.shape[options.axis]
        self.compute = COMPUTE[rows.dtype]
        self.options = options
        self.indices = t.ndim < rows.ndim
        self.one_class = self.indices and not options.label_smoothing
        if self.indices:
            check(t, self.classes, options)
        self.t = t if self.indices else classes_last(t, options.axis)
        self.sample_weight = options.sample_weight
        given = divided(t, self.indices, rows.size // self.classes, options)
        self.divisor, self.weight, self.z_loss = given

    def single(self, t: Array, of_rows: Array | None) -> tuple[Array, Array | None, Array | None]:
        """Of the rows of a block: the class, its weight (None: 1), and which rows are ignored (None: no row)."""
        labels, ignored = unignored(t, self.options, of_rows)
        weight = None if self.weight is None else self.weight[labels]
        if of_rows is not None:
            of_rows = of_rows.reshape(-1)
            weight = of_rows if weight is None else weight * of_rows
        return labels, weight, ignored

    def spread(
        self, t: Array, of_rows: Array | None, like: Array, scratch: Scratch
    ) -> tuple[Array, Array, Array | None]:
        """The weighted, smoothed labels of a block, laid out like the rows `like`.

        Returns them, their sum for each row, and which rows are ignored (None: no row).
        """
        smoothing = self.options.label_smoothing
        rows = scratch.like("labels", like)
        ignored = None
        if self.indices:
            labels, ignored = unignored(t, self.options, of_rows)
            rows[...] = smoothing / self.classes
            flat, index = elements(rows, labels)
            flat[index] += 1 - smoothing
        else:
            np.copyto(rows.reshape(t.shape), t, casting="same_kind")
            if smoothing:
                rows *= 1 - smoothing
                rows += smoothing / self.classes
            ignored = None if of_rows is None else of_rows.reshape(-1) == 0
        if self.weight is not None:
            rows *= self.weight
        if of_rows is not None:
            rows *= of_rows.reshape(-1, 1)
        if ignored is not None:
            rows[ignored] = 0
        return rows, row_sums(rows), ignored

    def upstream(self, dloss: Any) -> Any:
        """The gradient of the loss, divided as the reduction says: one number, or one for each row of a block."""
        dloss = np.asarray(dloss, self.compute)
        if self.options.reduction == "none":
            return dloss.reshape(-1)
        return dloss / self.compute.type(self.divisor)

    def single_gradient(self, t: Array, of_rows: Array | None, dloss: Any) -> tuple[Array, Any, Array | None]:
        """Of the rows of a block: the class, what its gradient is multiplied by, and which rows are ignored."""
        label, weight, ignored = self.single(t, of_rows)
        factor = self.upstream(dloss)
        if weight is not None:
            factor = factor * weight
        if ignored is not None:
            factor = np.where(ignored, 0, factor)
        return label, factor, ignored

    def add_z_loss(self, losses: Array, of_rows: Array | None, log_of_sum: Array) -> Array | None:
        """Add ``c z^2`` to the losses of a block, times the weights of its rows; ``z`` is the logarithm of a row's sum.

        Returns what the probabilities of each row are multiplied by in the gradient, ``2 c z``; None without a z loss.
        """
        if not self.z_loss:
            return None
        share: Array = log_of_sum * self.compute.type(self.z_loss)
        if of_rows is not None:
            share *= of_rows.reshape(-1)
        losses += share * log_of_sum
        share *= 2
        return share

    def collect(self, losses: Array, ignored: Array | None, loss: Array | None) -> float:
        """Take the losses of the rows of a block: write them to `loss` where each is wanted, else return their sum."""
        if ignored is not None:
            losses[ignored] = 0
        if loss is None:
            return sum(losses.tolist()) if losses.size <= FEW_LOSSES else float(np.add.reduce(losses, dtype=np.float64))
        loss[...] = losses.reshape(loss.shape)
        return 0.0

    def rows_of(self, loss: Any) -> Any:
        """`loss`, or its gradient, if it is an array with one entry per row; else None."""
        return loss if self.options.reduction == "none" and isinstance(loss, np.ndarray) else None

    def total(self, sums: list[float]) -> float:
        """The loss, a scalar, from the sums of the blocks; the order they are added in does not depend on threads."""
        if not self.divisor:
            return 0.0
        return (sums[0] if len(sums) == 1 else float(np.add.reduce(sums))) / self.divisor


def weighted(losses: Array, weight: Array) -> Array:
    """The losses of rows times the weights of their labels; an infinite loss of weight 0 is 0."""
    product = losses * weight
    product[(weight == 0) & np.isinf(losses)] = 0
    return product


def inner(labels: Array, logs: Array, scratch: Scratch) -> Array:
    """The inner products of the rows of labels and of logarithms, where a label of 0 makes 0 even of ``-inf``."""
    product = np.multiply(labels, logs, out=scratch.like("product", logs))
    total = row_sums(product)
    if np.isnan(total).any():
        product[(labels == 0) & np.isneginf(logs)] = 0
        total = row_sums(product)
    return total


def label_elements(p: Array, label: Array) -> tuple[Array, ...]:
    """The indices in `p` of one class per row, given flat."""
    lead = p.shape[:-1]
    return (*np.indices(lead, sparse=True), label.reshape(lead)) if len(lead) != 1 else (np.arange(*lead), label)
