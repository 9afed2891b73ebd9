"""The labels and options of a loss, checked, as compiled functions take them."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.cpu.class_indices import check, divided
from plugrad.backends.numba.arrays import contiguous
from plugrad.backends.numba.targets import IGNORES, checked, total_of_blocks
from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64, LossOptions, bad_label

INT64 = np.dtype(np.int64)  # of class indices in compiled code
NO_WEIGHT = {dtype: np.empty(0, dtype) for dtype in (FLOAT32, FLOAT64)}


def ignored_label(options: LossOptions) -> int | None:
    """The class index of ignored rows, or None if no row of int64 can have it."""
    ignore = options.ignore_index
    return ignore if ignore is not None and -(2**63) <= ignore < 2**63 else None


class LabelArrays:
    """The labels and options of a loss, as compiled functions take them.

    Attributes
    ----------
    t : array
        The labels, flat: class indices, one per row, or numbers in the dtype to compute in, one for each class.
    one_class : bool
        Whether each row is compared with one class only: class indices, not smoothed.
    compute : dtype
        The dtype that the loss is computed in.
    weight : array
        The weight of each class, empty without weights; divided by the divisor of a mean. With weights of rows or a z
        loss a matrix of one row that has all of them (see `targets`).
    ignore : int
        The class index of ignored rows; -1, which no label is then, if no row is ignored.
    divisor : float
        The divisor of the sum of the losses; 0 if no row counts.
    """

    __slots__ = ("compute", "divisor", "ignore", "one_class", "options", "rows", "t", "weight")

    def __init__(self, t: Array, x: Array, options: LossOptions) -> None:
        self.compute = COMPUTE[x.dtype]
        classes = x.shape[options.axis]
        self.rows = x.size // classes
        self.options = options
        is_index = t.ndim < x.ndim
        self.one_class = is_index and not options.label_smoothing
        self.ignore, self.divisor = -1, float(self.rows)
        self.weight = NO_WEIGHT[self.compute] if options.weight is None else contiguous(options.weight)
        if is_index:
            t = self._checked(t, classes)
        elif t.dtype != self.compute:
            with np.errstate(all="ignore"):
                t = t.astype(self.compute, order="C")
        else:
            t = contiguous(t)
        self.t = t if t.ndim == 1 else t.reshape(-1)
        if options.sample_weight is not None or options.z_loss:
            self._weigh_rows(t, is_index, classes)
            return
        if options.reduction != "mean":
            self.divisor = 1.0
        elif options.divisor is not None:
            self.divisor = options.divisor
        if options.reduction == "mean" and options.weight is not None and self.divisor:
            # Normalise the weights first: products of tiny weights would underflow.
            with np.errstate(all="ignore"):
                self.weight = (self.weight / np.float64(self.divisor)).astype(self.compute)
            self.divisor = 1.0

    def _weigh_rows(self, t: Array, is_index: bool, classes: int) -> None:
        """Set `divisor`, and `weight` to all weights; class indices of rows of weight 0 become the ignored one."""
        options = self.options
        ignore = None if options.ignore_index is None else self.ignore  # that of `t`, which is converted
        given = divided(t, is_index, self.rows, options._replace(ignore_index=ignore))
        self.divisor, of_classes, z_loss = given
        rows = self.rows
        self.weight = np.ones((1, rows + 1 + classes), self.compute)
        self.weight[0, rows] = z_loss
        if of_classes is not None:
            self.weight[0, rows + 1 :] = of_classes
        if options.sample_weight is not None:
            self.weight[0, :rows] = options.sample_weight.reshape(-1)
            if is_index:
                self.t = np.where(self.weight[0, :rows] == 0, self.ignore, self.t)

    def _checked(self, t: Array, classes: int) -> Array:
        """The class indices, contiguous; sets `ignore`, and `divisor` to that of a mean."""
        options, ignore = self.options, ignored_label(self.options)
        if t.dtype == np.uint64:  # NumPy compares numbers beyond int64 correctly
            check(t, classes, options)
            given = options.ignore_index
            t, ignore = t.astype(INT64) if given is None else np.where(t == given, -1, t.astype(INT64)), -1
        # Compiled for one dtype: other integers are converted, which takes a moment where the compiler takes seconds.
        t = contiguous(t.astype(INT64, copy=False))
        self.ignore, mode = (-1, 0) if ignore is None else (ignore, IGNORES)
        row, self.divisor = checked(t.reshape(-1), classes, self.weight, self.ignore, mode)
        if row >= 0:
            place = tuple(map(int, np.unravel_index(row, t.shape)))
            raise bad_label(int(t[place]), place, classes, options)
        return t

    def losses(self, loss: Array) -> Array:
        """The array for the losses of the rows, empty if only their sum is wanted."""
        if self.options.reduction != "none":
            return NO_WEIGHT[self.compute]
        return loss.reshape(-1) if self._is_direct(loss) else np.empty(self.rows, self.compute)

    def _is_direct(self, loss: Array) -> bool:
        """Whether the losses of rows may be written where they belong: weights are read to the end."""
        options = self.options
        return loss.flags.carray and loss is not options.weight and loss is not options.sample_weight

    def collect(self, each: Array, sums: Array, loss: Array) -> None:
        """Write the loss, given the losses of the rows, or the sums of the blocks."""
        if self.options.reduction != "none":
            total = sums[0] if sums.size == 1 else total_of_blocks(sums)
            with np.errstate(all="ignore"):
                loss[...] = total / self.divisor if self.divisor else 0
        elif not self._is_direct(loss):
            loss[...] = each.reshape(loss.shape)

    def upstream(self, dloss: Any) -> Array:
        """The upstream gradient, divided by the divisor: one number, or one for each row."""
        with np.errstate(all="ignore"):
            if self.options.reduction == "none":
                return np.array(dloss, self.compute, order="C").reshape(-1)
            return np.asarray(dloss, self.compute).reshape(1) / self.compute.type(self.divisor)
