"""Softmax cross-entropy of rows whose classes are spread over the ranks, in two messages: a maximum, then sums.

`_class_indices.py` and `_labels_per_class.py` have what differs between the two kinds of labels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.options import COMPUTE, FLOAT64, LossOptions
from plugrad.distributed._agreement import described, digest
from plugrad.kernels._arguments import floating, labels, loss_options
from plugrad.kernels._linear_cross_entropy import Logits
from plugrad.kernels.optim._checks import at_least_0

BLOCK = {True: 2**16, False: 2**24}  # elements that are worked on at a time, in host memory and on a device

# Rows whose exponentials but the largest sum to less than this are confident: the rounding of x - max would show.
CONFIDENT = 2.0**-18

APART = -1  # stands for the exponentials of the classes apart while they wait for their sums


class Options(NamedTuple):
    """The options of a loss whose classes are spread over ranks, checked.

    Attributes
    ----------
    loss : LossOptions
        Those of the plain kernels, with this rank's class weights.
    sample_weight : array of shape (rows,) or None
        The weight of each row, in the dtype to compute in.
    z_loss : float
        The factor of the square of the logarithm of the sum of exponentials.
    sums_weights : bool
        Whether rows sum the weights of several classes: there are weights, and labels are smoothed or one per class.
    """

    loss: LossOptions
    sample_weight: Any
    z_loss: float
    sums_weights: bool


def checked(
    call: str,
    name: str,
    logits: Logits,
    t: Any,
    given: Mapping[str, Any],
    backend: Backend,
    compares: bool,
) -> tuple[Any, Options, dict[str, object]]:
    """The labels, the options, and those facts of them that must be the same on all ranks.

    `logits` is the shape of this rank's logits, which come from the argument called `name`; `given` has the options by
    their names. Class indices are read only if the ranks compare them.
    """
    axis = given["axis"]
    plain = {key: given[key] for key in ("ignore_index", "label_smoothing", "reduction")}
    # The checks of the plain kernels, on a shape with some classes: here a rank may have none.
    index = axis if isinstance(axis, int) and -logits.ndim <= axis < logits.ndim else -1
    some = list(logits.shape)
    if logits.ndim:
        some[index] = max(2, some[index])
    pretended = Logits(tuple(some), logits.dtype)
    no_weights = {"weight": None, "sample_weight": None, "z_loss": 0.0}  # checked below, and kept apart
    options = loss_options(call, name, pretended, axis=axis, backend=backend, **plain, **no_weights)
    weight = given["weight"]
    compute = COMPUTE[logits.dtype]
    if weight is not None:
        weight = floating(call, "weight", weight, backend)
        mine = (logits.shape[options.axis],)
        if weight.shape != mine:
            raise ValueError(
                f"{call}: weight: expected one weight for each class of this rank, shape {mine}, got {weight.shape}"
            )
        with np.errstate(all="ignore"):
            options = options._replace(weight=weight.astype(compute))  # a copy: results may be written over weights
    rows = logits.shape[: options.axis] + logits.shape[options.axis + 1 :]
    t = labels(call, t, logits, options, backend)
    are_indices = t.ndim < logits.ndim
    sample_weight = given["sample_weight"]
    if sample_weight is not None:
        sample_weight = floating(call, "sample_weight", sample_weight, backend)
        if sample_weight.shape != rows:
            raise ValueError(
                f"{call}: sample_weight: expected one weight for each row, shape {rows}, got {sample_weight.shape}"
            )
        sample_weight = sample_weight.astype(compute).reshape(-1)
    z_loss = at_least_0(call, "z_loss", given["z_loss"])
    sums_weights = weight is not None and (options.label_smoothing > 0 or not are_indices)
    found = t, Options(options, sample_weight, z_loss, sums_weights)
    if not compares:
        return *found, {}
    is_host = backend.native is np.ndarray
    facts = {
        "arrays": backend.arrays,
        "dtype": str(logits.dtype),
        "rows": rows,
        "axis": options.axis,
        "t": f"{t.dtype}, {'class indices' if are_indices else 'one label per class'}",
        "values of t": digest(t) if is_host and are_indices else "not compared",
        "weight": "None" if weight is None else "given",
        "sample_weight": digest(sample_weight) if is_host and sample_weight is not None else described(sample_weight),
        "ignore_index": options.ignore_index,
        "label_smoothing": options.label_smoothing,
        "z_loss": z_loss,
        "reduction": options.reduction,
    }
    return *found, facts


class Classes(NamedTuple):
    """Which of all classes this rank has.

    Attributes
    ----------
    first : int
        The index of its first class.
    own : int
        How many it has.
    total : int
        How many all ranks have.
    """

    first: int
    own: int
    total: int

    @classmethod
    def of(cls, call: str, counts: list[int], rank: int) -> "Classes":
        """The classes of a rank, side by side in the order of the ranks."""
        if not sum(counts):
            raise ValueError(f"{call}: expected at least one class on some rank, got none on any")
        return cls(sum(counts[:rank]), counts[rank], sum(counts))


class Largest(NamedTuple):
    """The largest numbers over all ranks, in the dtype to compute in."""

    logits: Any  # of each row, NaN apart
    weight: Any  # the largest magnitude of a class weight that is finite, one element; none if rows do not sum weights
    tail: Any


def largest(comm: Any, x: Any, options: Options, xp: Any, is_host: bool, tail: Any = ()) -> Largest:
    """The message of maxima, with the numbers of `tail` behind the others."""
    dtype, weight = COMPUTE[x.dtype], options.loss.weight
    numbers = len(x) + options.sums_weights
    message = xp.full((numbers + len(tail),), -np.inf, dtype)
    if x.shape[1]:
        for block in blocks(x, is_host):
            found = x[block].max(axis=1).astype(dtype)
            message[block] = xp.where(xp.isnan(found), dtype.type(-np.inf), found)  # NaN comes with the sums
    if options.sums_weights:
        sizes = xp.abs(weight)
        message[len(x) : numbers] = xp.where(sizes < np.inf, sizes, dtype.type(0)).max() if len(weight) else 0
    if len(tail):
        message[numbers:] = tail
    comm.allreduce(message, "max")
    return Largest(message[: len(x)], message[len(x) : numbers], message[numbers:])


def blocks(x: Any, is_host: bool) -> Iterator[slice]:
    """Blocks of rows."""
    count = max(1, BLOCK[is_host] // max(1, x.shape[1]))
    for first in range(0, len(x), count):
        yield slice(first, min(len(x), first + count))


class Labels(ABC):
    """The labels of some rows: which rows count, and what the rows are compared with.

    Parameters
    ----------
    options : Options
        The options of the loss.
    classes : Classes
        The classes of this rank.
    is_host : bool
        Whether the arrays are in host memory.
    xp : module
        The module of the arrays.
    """

    ARRAYS: tuple[str, ...] = ("bad", "excluded", "sample_weight")  # the attributes with an element for each row

    def __init__(self, options: Options, classes: Classes, is_host: bool, xp: Any) -> None:
        self.options, self.classes, self.is_host, self.xp = options, classes, is_host, xp
        self.sample_weight = options.sample_weight
        self.excluded: Any = None if self.sample_weight is None else self.sample_weight == 0
        self.bad: Any = None  # rows whose labels are wrong, which a device does not tell

    def part(self, rows: Any) -> Self:
        """The labels of some of the rows."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        for name in self.ARRAYS:
            values = getattr(self, name)
            setattr(found, name, None if values is None else values[rows])
        return found

    @property
    def share(self) -> float:
        """The share of the label that smoothing gives to each class."""
        return self.options.loss.label_smoothing / self.classes.total

    @abstractmethod
    def label_weights(self, comm: Any) -> Any:
        """The class weights of the labels, by a message; None if there are none, or a row has no single label."""

    @abstractmethod
    def rows(self, comm: Any, x: Any, out: Any, top: Largest, label_weights: Any = None) -> "Rows[Any]":
        """The loss of these rows (see `Rows`).

        Parameters
        ----------
        comm : Communicator
            The ranks.
        x : array of shape (rows, classes)
            The logits of this rank's classes.
        out : array of this shape
            Where to write the gradient; may be `x`.
        top : Largest
            The largest logits and weight over all ranks.
        label_weights : array of shape (rows,), optional
            The class weights of the labels, if all ranks know them; else they are summed with the rest.
        """


class Divisors(NamedTuple):
    """The divisors of the parts of a loss: numbers, or on a device 0-d arrays; infinite if nothing counts."""

    labels: Any  # the part of the labels
    z: Any  # the part of z_loss


def divisors(of: Labels, count: int, label_weights: Any) -> Divisors:
    """The divisors of the mean of `count` rows, or 1. If the weights of all labels are 0, `of` excludes all rows."""
    if of.options.loss.reduction != "mean":
        return Divisors(1.0, 1.0)
    xp = of.xp
    rows = xp.ones((count,), FLOAT64) if of.sample_weight is None else of.sample_weight.astype(FLOAT64)
    if of.excluded is not None:
        rows = xp.where(of.excluded, 0.0, rows)
    by_labels = by_z = rows.sum()
    if label_weights is not None:
        by_labels = xp.where(rows == 0, 0.0, rows * label_weights).sum()
        if not of.options.z_loss:  # logits may be NaN
            nothing = xp.broadcast_to(by_labels == 0, rows.shape)
            of.excluded = nothing if of.excluded is None else of.excluded | nothing
    return Divisors(*(xp.where(each == 0, np.inf, each) for each in (by_labels, by_z)))


class Sums(NamedTuple):
    """The sums of each row over the classes of all ranks, and its loss.

    Of some classes the exponentials are summed apart, so that confident rows keep their accuracy: those of the label,
    or of the largest logits. `whole - apart` would be rounded; `others` is not.
    """

    whole: Any  # the sum of exp(x - top)
    log: Any  # its logarithm
    apart: Any  # exp(x - top) of a class apart
    others: Any  # whole - apart
    mass: Any  # the sum of the targets, times the weight of the row, divided as the reduction says
    loss: Any  # the loss of the labels, likewise


class Factors(NamedTuple):
    """The factors of the gradient of each row."""

    exponentials: Any  # of exp(x - top)
    apart: Any  # the gradient of a class apart, but for the part of the targets of the other classes


_L = TypeVar("_L", bound=Labels)


class Rows(ABC, Generic[_L]):
    """The loss of some rows, and its gradient; `Labels.rows` says of what.

    Sums over classes are of `class_weights`, the weights divided by the largest, `scale`: sums of weights may exceed
    the dtype, or be too small for it, where the loss does not.
    """

    def __init__(self, comm: Any, x: Any, out: Any, of: _L, top: Largest) -> None:
        self.comm, self.x, self.out, self.of, self.top = comm, x, out, of, top.logits
        self.options, self.classes, self.xp, self.is_host = of.options, of.classes, of.xp, of.is_host
        self.dtype = COMPUTE[x.dtype]
        self.zero = self.dtype.type(0)
        self.class_weights: Any = None
        self.scale: Any = None
        if of.options.sums_weights:
            scale = of.xp.where(top.weight == 0, self.dtype.type(1), top.weight)
            self.class_weights, self.scale = of.options.loss.weight / scale, scale.astype(FLOAT64)
        self.label_weights: Any = None  # the class weights of the labels, if known
        self.holds = out.dtype == self.dtype  # whether the exponentials wait in `out` for their sums

    @abstractmethod
    def _planes(self) -> int:
        """How many numbers of each row are summed; the first is the sum of the exponentials that are not apart."""

    @abstractmethod
    def _add_labels(self, block: slice, z: Any, each: Any) -> None:
        """Write the sums over the labels of a block to all planes but the first; `z` is ``x - top``."""

    @abstractmethod
    def _set_apart(self, e: Any, z: Any, rows: Any, value: Any) -> None:
        """Replace the exponentials of the classes apart."""

    @abstractmethod
    def _sums(self, by: Any) -> Sums:
        """The sums, of `planes`, `total_weight` and the divisor of the part of the labels."""

    @abstractmethod
    def _gradient(self, block: slice, e: Any, sums: Sums, by: Factors) -> Any:
        """The gradient of a block, of its exponentials, in which those apart are `APART`."""

    def exchange(self) -> None:
        """Send the message of sums. Then `planes` and `total_weight`, of the classes, are those of all ranks."""
        planes, rows, loss = self._planes(), len(self.x), self.options.loss
        message = self.xp.zeros((planes * rows + 1,), self.dtype)
        each = message[:-1].reshape(planes, rows)
        if self.classes.own:
            for block in blocks(self.x, self.is_host):
                self._add(block, each[:, block])
        if loss.label_smoothing:
            message[-1:] = self.classes.own if loss.weight is None else self.class_weights.sum()
        self.comm.allreduce(message)
        self.planes, self.total_weight = each, message[-1:]

    def _add(self, block: slice, each: Any) -> None:
        """The sums of a block of rows over this rank's classes."""
        xp = self.xp
        x, m = self.x[block].astype(self.dtype, copy=False), self.top[block, None]
        z = x - m
        self._add_labels(block, z, each)
        e = xp.exp(z)
        self._set_apart(e, z, block, self.zero)
        rest = e.sum(axis=1)
        if not self.is_host:
            rest = xp.where(rest < CONFIDENT, self._refined(x, m, block), rest)
        elif (confident := (rest < CONFIDENT).nonzero()[0]).size:
            rest[confident] = self._refined(x[confident], m[confident], block.start + confident)
        each[0] = rest
        if self.holds:
            self._set_apart(e, z, block, self.dtype.type(APART))
            self.out[block] = e

    def _refined(self, x: Any, m: Any, rows: Any) -> Any:
        """The sums of ``exp(x - m)`` with the rounding errors of the subtraction put right (Knuth's TwoSum)."""
        xp = self.xp
        z = x - m
        back = z - x
        error = (x - (z - back)) - (m + back)
        error = xp.where(error >= -1, error, self.dtype.type(-1))  # NaN where z is -inf, and exp(z) is 0
        e = xp.exp(z)
        e = e + e * error
        self._set_apart(e, z, rows, self.zero)
        return e.sum(axis=1)

    def losses_and_gradient(self, by: Divisors) -> tuple[Any, Any]:
        """Write the gradient; return the losses of the rows: the part of the labels, and that of `z_loss` or None."""
        sums, square, of_z = self._sums(by.labels), None, self.zero
        if self.options.z_loss:
            log = self.top + sums.log
            of_z = self.counted(log, self.options.z_loss, by.z)
            square = self.masked(of_z * log)
        if self.classes.own:
            self._write_gradient(sums, 2 * of_z)
        return self.masked(sums.loss), square

    def counted(self, each: Any, factor: float, by: Any, scale: Any = None) -> Any:
        """Values of the rows times a factor, a scale and the weights of the rows, divided; see `masked`.

        In float64, and the quotient of weights first: other products may be infinite, or 0.
        """
        rows = 1.0 if self.of.sample_weight is None else self.of.sample_weight.astype(FLOAT64)
        quotient = rows / by if scale is None else scale / by * rows
        return self.masked((each.astype(FLOAT64) * factor * quotient).astype(self.dtype))

    def masked(self, each: Any) -> Any:
        """Values of the rows: 0 for those that do not count, NaN for those of wrong labels."""
        of, xp = self.of, self.xp
        if of.bad is not None:
            each = xp.where(of.bad, self.dtype.type(np.nan), each)
        return each if of.excluded is None else xp.where(of.excluded, self.zero, each)

    def _write_gradient(self, sums: Sums, of_z: Any) -> None:
        """Write the gradient; the part of `z_loss` is `of_z` times the probabilities of each row."""
        xp, dtype, excluded = self.xp, self.dtype, self.of.excluded
        # For the label y - 1 is -others / whole, which keeps its accuracy where y is close to 1.
        at_apart = of_z * (sums.apart / sums.whole) - sums.mass * sums.others / sums.whole
        factors = Factors(self.masked((sums.mass + of_z) / sums.whole), self.masked(at_apart))
        for block in blocks(self.x, self.is_host):
            if self.holds:
                e = self.out[block]
            else:
                z = self.x[block].astype(dtype, copy=False) - self.top[block, None]
                e = xp.exp(z)
                self._set_apart(e, z, block, dtype.type(APART))
            if excluded is not None:
                e = xp.where(excluded[block, None], self.zero, e)
            self.out[block] = self._gradient(block, e, sums, factors).astype(self.out.dtype, copy=False)
