"""The labels of a loss, checked, in the forms that compiled code takes."""

from typing import Any

import numpy as np

from plugrad.backends.numba import losses
from plugrad.backends.numba.layout import Array
from plugrad.backends.numpy.labels import check
from plugrad.backends.options import COMPUTE, LossOptions

# Elements of softmax in a block of rows whose losses are added up by themselves, and the rows in one: sums of thousands
# of losses, one after another, would lose digits.
BLOCK = 2**14
MOST_ROWS = 64


LABELS = np.iinfo(np.int64)


class Labels:
    """What the compiled functions need to know of the labels and options of a loss.

    Attributes
    ----------
    t : array
        One class index per row, or numbers in the dtype to compute in, one for each class; C-contiguous.
    one_class : bool
        Whether each row is compared with one class only: class indices, not smoothed.
    compute : dtype
        What the loss is computed in.
    weight : array
        The weight of each class, already divided as the reduction says if there are any; else empty.
    ignored : tuple
        The class index of rows that do not count, and whether there is one.
    shares : tuple
        Of the targets ``t * keep + spread``.
    divisor : float
        What the sum of the losses is still to be divided by; 0 where nothing counts.
    """

    __slots__ = ("compute", "divisor", "ignored", "ndim", "one_class", "options", "rows", "shares", "t", "weight")

    def __init__(self, t: Array, x: Array, options: LossOptions) -> None:
        self.compute = COMPUTE[x.dtype]
        real = self.compute.type
        classes = x.shape[options.axis]
        self.rows = x.size // classes
        self.options, self.ndim = options, x.ndim
        indices = t.ndim < x.ndim
        self.one_class = indices and not options.label_smoothing
        if indices:
            check(t, classes, options)
            if t.dtype == np.uint64 or not t.flags.c_contiguous:
                t = t.astype(np.int64)
        else:
            t = t.astype(self.compute, order="C", copy=False)
        self.t = t
        ignore = options.ignore_index
        # An index that no label can have is none.
        possible = indices and ignore is not None and LABELS.min <= ignore <= LABELS.max
        self.ignored = (np.int64(ignore), True) if possible and ignore is not None else (np.int64(0), False)
        self.weight = np.empty(0, self.compute) if options.weight is None else np.ascontiguousarray(options.weight)
        self.shares = (real(1 - options.label_smoothing), real(options.label_smoothing / classes))
        self.divisor = 1.0
        if options.reduction == "mean":
            plain = not indices or (options.weight is None and ignore is None)
            self.divisor = float(self.rows) if plain else losses.count(t.reshape(-1), self.weight, *self.ignored)
            if options.weight is not None and self.divisor:  # as small as they may be, their shares are not
                self.weight = (self.weight / np.float64(self.divisor)).astype(self.compute)
                self.divisor = 1.0

    def losses(self, loss: Array) -> Array:
        """Where the losses of the rows go: nowhere, if only their sum is wanted."""
        if self.options.reduction != "none":
            return np.empty(0, self.compute)
        return loss.reshape(-1) if loss.flags.c_contiguous else np.empty(self.rows, self.compute)

    def blocks(self, work: int) -> tuple[int, Array]:
        """How many rows of so much work make a block, and an array for the sum of the losses of each."""
        block = max(1, min(MOST_ROWS, BLOCK // work))
        return block, np.empty(-(-self.rows // block))

    def collect(self, each: Array, sums: Array, loss: Array) -> None:
        """Make the loss of the losses of the rows, or of the sums of the blocks."""
        if self.options.reduction != "none":
            loss[...] = np.add.reduce(sums) / self.divisor if self.divisor else 0
        elif not loss.flags.c_contiguous:
            loss[...] = each.reshape(loss.shape)

    def upstream(self, dloss: Any) -> tuple[Array, int]:
        """The gradient that arrives, divided as the reduction says: the array, and the step in it from row to row."""
        if self.options.reduction == "none":
            return np.ascontiguousarray(dloss, self.compute).reshape(-1), 1
        return np.array([dloss / self.divisor], self.compute), 0

    def by_rows(self, x: Array) -> Array:
        """`x`, with the shape of the logits, as a matrix of rows; or the class indices, one after another."""
        if x.ndim == self.ndim:
            x = np.moveaxis(x, self.options.axis, -1)
            return np.ascontiguousarray(x).reshape(self.rows, -1)
        return x.reshape(-1)
