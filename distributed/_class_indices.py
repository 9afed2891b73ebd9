"""Class indices, counted over the classes of all ranks, as labels of rows whose classes are spread over the ranks."""

from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.options import FLOAT64, bad_label
from plugrad.backends.selection import options as options_in_force
from plugrad.distributed._spread import Classes, Factors, Labels, Largest, Options, Rows, Sums


class ClassIndices(Labels):
    """One class for each row, the same on all ranks.

    Parameters
    ----------
    t : array of shape (rows,)
        The class of each row.
    options, classes, is_host, xp
        As for `Labels`.
    shape : tuple of int
        The shape of the rows, for messages.
    backend : Backend
        The backend.
    """

    ARRAYS = (*Labels.ARRAYS, "mine", "columns")

    def __init__(
        self,
        t: Any,
        options: Options,
        classes: Classes,
        is_host: bool,
        xp: Any,
        shape: tuple[int, ...],
        backend: Backend,
    ) -> None:
        super().__init__(options, classes, is_host, xp)
        ignore, limits = options.loss.ignore_index, np.iinfo(t.dtype)
        ignored = None
        if ignore is not None and limits.min <= ignore <= limits.max:  # else no label is that
            ignored = t == t.dtype.type(ignore)
        bad = t >= t.dtype.type(classes.total) if classes.total <= limits.max else None
        if limits.min < 0:
            bad = t < 0 if bad is None else bad | (t < 0)
        if ignored is not None and bad is not None:
            bad = bad & (ignored == 0)
        if bad is not None and (is_host or options_in_force().get("check")):
            wrong = np.flatnonzero(backend.to_numpy(bad))
            if wrong.size:
                row = tuple(int(i) for i in np.unravel_index(int(wrong[0]), shape))
                raise bad_label(int(t[int(wrong[0])]), row, classes.total, options.loss)
            bad = None
        self.bad = bad
        if ignored is not None:
            self.excluded = ignored if self.excluded is None else ignored | self.excluded
        local = t.astype(np.int64) - classes.first
        mine = (local >= 0) & (local < classes.own)
        if self.excluded is not None:
            mine = mine & (self.excluded == 0)
        self.mine, self.columns = mine, xp.where(mine, local, 0)

    def weights(self) -> Any:
        """The class weight of each row's label where it is one of this rank's, else 0."""
        weight, xp = self.options.loss.weight, self.xp
        if not self.classes.own:
            return xp.zeros(self.mine.shape, weight.dtype)
        return xp.where(self.mine, weight[self.columns], weight.dtype.type(0))

    def label_weights(self, comm: Any) -> Any:
        """The class weights of the labels, by a message, or None."""
        if self.options.loss.weight is None:
            return None
        weights = self.weights()
        comm.allreduce(weights)
        return weights

    def rows(self, comm: Any, x: Any, out: Any, top: Largest, label_weights: Any = None) -> Rows[Any]:
        """The loss of these rows."""
        return _Rows(comm, x, out, self, top, label_weights)


class _Rows(Rows[ClassIndices]):
    """The loss of rows with class indices. Apart is the label."""

    def __init__(self, comm: Any, x: Any, out: Any, of: ClassIndices, top: Largest, label_weights: Any) -> None:
        super().__init__(comm, x, out, of, top)
        share = self.dtype.type(of.share)
        self.shares = share if self.class_weights is None else self.class_weights * share  # of the targets
        self.label_weights = label_weights
        self.asks_weights = self.options.loss.weight is not None and label_weights is None

    def _planes(self) -> int:
        """The other exponentials, ``x - top`` of the label, its weight, to smooth the sum of ``shares (x - top)``."""
        return 2 + self.asks_weights + bool(self.options.loss.label_smoothing)

    def _add_labels(self, block: slice, z: Any, each: Any) -> None:
        xp, of, loss = self.xp, self.of.part(block), self.options.loss
        each[1] = xp.where(of.mine, z[xp.arange(len(z)), of.columns], self.zero)
        if self.asks_weights:
            each[2] = of.weights()
        if loss.label_smoothing:
            product = z * self.shares
            each[-1] = (product if loss.weight is None else xp.where(self.shares == 0, self.zero, product)).sum(axis=1)

    def _set_apart(self, e: Any, z: Any, rows: Any, value: Any) -> None:
        of, index = self.of.part(rows), self.xp.arange(len(e))
        e[index, of.columns] = self.xp.where(of.mine, value, e[index, of.columns])

    def exchange(self) -> None:
        """Send the message of sums."""
        super().exchange()
        if self.asks_weights:
            self.label_weights = self.planes[2]

    def _sums(self, by: Any) -> Sums:
        xp, loss, dtype = self.xp, self.options.loss, self.dtype
        rest, label = self.planes[0], self.planes[1]
        single = xp.exp(label)
        log = xp.log1p(rest + (single - dtype.type(1)))
        ones = xp.ones(rest.shape, dtype)
        weights = None if self.label_weights is None else self.label_weights.astype(FLOAT64)
        mass = self.counted(ones, 1 - loss.label_smoothing, by, weights)
        losses = xp.where((mass == 0) & (label == -np.inf), self.zero, mass * (log - label))
        if loss.label_smoothing:
            self.spread = self.counted(ones, 1.0, by, self.scale)
            total = self.counted(self.total_weight, self.of.share, by, self.scale)
            losses = losses + (total * log - self.counted(self.planes[-1], 1.0, by, self.scale))
            mass = mass + total
            self.others = total - self.counted(ones, self.of.share, by, weights)  # the targets of the other classes
        return Sums(rest + single, log, single, rest, mass, losses)

    def _gradient(self, block: slice, e: Any, sums: Sums, by: Factors) -> Any:
        loss = self.options.loss
        e = e * by.exponentials[block, None]
        at_label = by.apart[block]
        if loss.label_smoothing:
            e = e - self.spread[block, None] * self.shares
            at_label = at_label + self.others[block]
        self._set_apart(e, e, block, at_label)
        return e
