"""One label per class, one-hot or soft, of rows whose classes are spread over the ranks."""

from typing import Any, Self

import numpy as np

from plugrad.distributed._spread import Classes, Factors, Labels, Largest, Options, Rows, Sums


class LabelsPerClass(Labels):
    """One number for each of this rank's classes.

    Parameters
    ----------
    t : array of shape (rows, classes)
        The labels of this rank's classes.
    options, classes, is_host, xp
        As for `Labels`.
    """

    def __init__(self, t: Any, options: Options, classes: Classes, is_host: bool, xp: Any) -> None:
        super().__init__(options, classes, is_host, xp)
        self.t = t
        self.places: Any = None  # which rows of `t` these are; None if all

    def part(self, rows: Any) -> Self:
        """The labels of some of the rows; those of a list of rows are copied where they are read."""
        found = super().part(rows)
        if self.places is not None:
            found.places = self.places[rows]
        elif isinstance(rows, slice):
            found.t = self.t[rows]
        else:
            found.places = rows
        return found

    def label_weights(self, comm: Any) -> Any:
        """None: a row has no single label."""
        return None

    def rows(self, comm: Any, x: Any, out: Any, top: Largest, label_weights: Any = None) -> Rows[Any]:
        """The loss of these rows."""
        return _Rows(comm, x, out, self, top)

    def targets(self, dtype: Any, class_weights: Any) -> Any:
        """The labels after smoothing and weighting; 0 in rows that do not count."""
        loss = self.options.loss
        found = (self.t if self.places is None else self.t[self.places]).astype(dtype, copy=False)
        if loss.label_smoothing:
            found = found * dtype.type(1 - loss.label_smoothing) + dtype.type(self.share)
        if class_weights is not None:
            found = found * class_weights
        return found if self.excluded is None else self.xp.where(self.excluded[:, None], dtype.type(0), found)


def _replace(xp: Any, array: Any, value: Any, places: Any) -> None:
    """Replace the elements at places of a mask; on the CPU only those are written."""
    if xp is np:
        np.copyto(array, value, where=places)
    else:
        array[...] = xp.where(places, value, array)


class _Rows(Rows[LabelsPerClass]):
    """The loss of rows with one label per class. Apart are the largest logits, of all ranks that have such."""

    def _planes(self) -> int:
        """The other exponentials, the number of the largest logits, the targets, and targets times ``x - top``."""
        return 4

    def _add_labels(self, block: slice, z: Any, each: Any) -> None:
        targets = self.of.part(block).targets(self.dtype, self.class_weights)
        each[1] = (z == 0).sum(axis=1)
        each[2] = targets.sum(axis=1)
        product = targets * z
        _replace(self.xp, product, self.zero, targets == 0)  # even where z is -inf
        each[3] = product.sum(axis=1)

    def _set_apart(self, e: Any, z: Any, rows: Any, value: Any) -> None:
        _replace(self.xp, e, value, z == 0)

    def _sums(self, by: Any) -> Sums:
        rest, largest, mass, product = self.planes
        one = self.dtype.type(1)
        others = rest + (largest - one)
        log = self.xp.log1p(others)
        mass = self.counted(mass, 1.0, by, self.scale)
        self.weights = self.counted(self.xp.ones(rest.shape, self.dtype), 1.0, by, self.scale)
        losses = mass * log - self.counted(product, 1.0, by, self.scale)
        return Sums(rest + largest, log, one, others, mass, losses)

    def _gradient(self, block: slice, e: Any, sums: Sums, by: Factors) -> Any:
        targets = self.weights[block, None] * self.of.part(block).targets(self.dtype, self.class_weights)
        gradient = e * by.exponentials[block, None] - targets
        at_apart, mass = by.apart[block], sums.mass[block]
        if not self.is_host:
            return self.xp.where(e < 0, at_apart[:, None] + (mass[:, None] - targets), gradient)
        rows, columns = (e < 0).nonzero()
        gradient[rows, columns] = at_apart[rows] + (mass[rows] - targets[rows, columns])
        return gradient
