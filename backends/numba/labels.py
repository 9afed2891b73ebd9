"""The labels of a loss, checked, in the forms that compiled code takes."""

from typing import Any

import numpy as np

from plugrad.backends.numba import losses
from plugrad.backends.numba.layout import Array, raw
from plugrad.backends.numpy.labels import check
from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64, LossOptions, bad_label

# Elements of softmax in a block of rows whose losses are added up by themselves, and the rows in one: sums of thousands
# of losses, one after another, would lose digits.
BLOCK = 2**14
MOST_ROWS = 64


LABELS = np.iinfo(np.int64)
NO_WEIGHT = {dtype: np.empty(0, dtype) for dtype in (FLOAT32, FLOAT64)}


class Labels:
    """What the compiled functions need to know of the labels and options of a loss.

    Attributes
    ----------
    t : array
        The labels one after another: class indices, one per row, or numbers in the dtype to compute in, one for each
        class.
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

    __slots__ = ("compute", "divisor", "ignored", "one_class", "options", "rows", "shares", "t", "weight")

    def __init__(self, t: Array, x: Array, options: LossOptions) -> None:
        self.compute = COMPUTE[x.dtype]
        real = self.compute.type
        classes = x.shape[options.axis]
        self.rows = x.size // classes
        self.options = options
        indices = t.ndim < x.ndim
        self.one_class = indices and not options.label_smoothing
        ignore = options.ignore_index
        # An index that no label can have is none.
        possible = indices and ignore is not None and LABELS.min <= ignore <= LABELS.max
        self.ignored = (ignore, True) if possible else (0, False)
        if indices and t.dtype == np.uint64:
            check(t, classes, options)  # by NumPy, to which numbers beyond int64 are what they are
            self.ignored = (-1, ignore is not None)
            t = t.astype(np.int64, order="C") if ignore is None else np.where(t == ignore, -1, t.astype(np.int64))
        elif indices:
            t = raw(t)
            row = losses.first_wrong(t.reshape(-1), classes, *self.ignored)
            if row >= 0:
                place = tuple(map(int, np.unravel_index(row, t.shape)))
                raise bad_label(int(t[place]), place, classes, options)
        elif t.dtype != self.compute:
            with np.errstate(all="ignore"):
                t = t.astype(self.compute, order="C")
        else:
            t = raw(t)
        self.t = t if t.ndim == 1 else t.reshape(-1)
        self.weight = NO_WEIGHT[self.compute] if options.weight is None else raw(options.weight)
        self.shares = (real(1 - options.label_smoothing), real(options.label_smoothing / classes))
        self.divisor = 1.0
        if options.reduction == "mean":
            plain = not indices or (options.weight is None and ignore is None)
            if options.divisor is not None:
                self.divisor = options.divisor
            else:
                self.divisor = float(self.rows) if plain else losses.count(self.t, self.weight, *self.ignored)
            if options.weight is not None and self.divisor:  # as small as they may be, their shares are not
                with np.errstate(all="ignore"):
                    self.weight = (self.weight / np.float64(self.divisor)).astype(self.compute)
                self.divisor = 1.0

    def losses(self, loss: Array) -> Array:
        """Where the losses of the rows go: nowhere, if only their sum is wanted."""
        if self.options.reduction != "none":
            return NO_WEIGHT[self.compute]
        direct = loss.flags.carray and loss is not self.options.weight  # which is read to the end
        return loss.reshape(-1) if direct else np.empty(self.rows, self.compute)

    def blocks(self, work: int) -> tuple[int, Array]:
        """How many rows of so much work make a block, and an array for the sum of the losses of each."""
        block = max(1, min(MOST_ROWS, BLOCK // work))
        return block, np.empty(-(-self.rows // block))

    def collect(self, each: Array, sums: Array, loss: Array) -> None:
        """Make the loss of the losses of the rows, or of the sums of the blocks."""
        if self.options.reduction != "none":
            total = sums[0] if sums.size == 1 else np.add.reduce(sums)
            with np.errstate(all="ignore"):
                loss[...] = total / self.divisor if self.divisor else 0
        elif not loss.flags.carray or loss is self.options.weight:
            loss[...] = each.reshape(loss.shape)

    def upstream(self, dloss: Any) -> tuple[Array, int]:
        """The gradient that arrives, divided as the reduction says: the array, and the step in it from row to row."""
        with np.errstate(all="ignore"):
            if self.options.reduction == "none":
                return np.array(dloss, self.compute, order="C").reshape(-1), 1
            return np.asarray(dloss, self.compute).reshape(1) / self.compute.type(self.divisor), 0
