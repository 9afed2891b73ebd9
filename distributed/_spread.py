"""Softmax cross-entropy of rows whose classes are spread over the ranks, in two messages: a maximum, then sums."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import Backend
from plugrad.backends.options import COMPUTE, FLOAT64, LossOptions, bad_label
from plugrad.backends.selection import options as options_in_force
from plugrad.distributed._agreement import described, digest
from plugrad.kernels._arguments import floating, labels, loss_options
from plugrad.kernels._linear_cross_entropy import Logits
from plugrad.kernels.optim._checks import at_least_0

BLOCK = {True: 2**16, False: 2**24}  # elements that are worked on at a time, in host memory and on a device

# Rows whose exponentials but the largest sum to less than this are confident: the rounding of x - max would show.
CONFIDENT = 2.0**-18


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
    """

    loss: LossOptions
    sample_weight: Any
    z_loss: float


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
    their names. The labels are read only if the ranks compare them.
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
    if np.ndim(t) == logits.ndim:
        raise ValueError(
            f"{call}: t: expected class indices, counted over the classes of all ranks, of shape {rows}, got shape "
            f"{np.shape(t)}; one label per class is for one rank"
        )
    t = labels(call, t, pretended, options, backend).reshape(-1)
    sample_weight = given["sample_weight"]
    if sample_weight is not None:
        sample_weight = floating(call, "sample_weight", sample_weight, backend)
        if sample_weight.shape != rows:
            raise ValueError(
                f"{call}: sample_weight: expected one weight for each row, shape {rows}, got {sample_weight.shape}"
            )
        sample_weight = sample_weight.astype(compute).reshape(-1)
    z_loss = at_least_0(call, "z_loss", given["z_loss"])
    found = t, Options(options, sample_weight, z_loss)
    if not compares:
        return *found, {}
    is_host = backend.native is np.ndarray
    facts = {
        "arrays": backend.arrays,
        "dtype": str(logits.dtype),
        "rows": rows,
        "axis": options.axis,
        "t": f"{t.dtype}, {digest(t)}" if is_host else str(t.dtype),
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


def largest(comm: Any, x: Any, xp: Any, is_host: bool, tail: Any = ()) -> tuple[Any, Any]:
    """The largest logit of each row over all ranks, NaN apart, and the largest of each number behind them in `tail`."""
    dtype = COMPUTE[x.dtype]
    message = xp.full((len(x) + len(tail),), -np.inf, dtype)
    if x.shape[1]:
        for block in blocks(x, is_host):
            found = x[block].max(axis=1).astype(dtype)
            message[block] = xp.where(xp.isnan(found), dtype.type(-np.inf), found)  # NaN comes with the sums
    if len(tail):
        message[len(x) :] = tail
    comm.allreduce(message, "max")
    return message[: len(x)], message[len(x) :]


def blocks(x: Any, is_host: bool) -> Iterator[slice]:
    """Blocks of rows."""
    count = max(1, BLOCK[is_host] // max(1, x.shape[1]))
    for first in range(0, len(x), count):
        yield slice(first, min(len(x), first + count))


class Labels:
    """The labels of all rows: which rows count, which labels are this rank's.

    Parameters
    ----------
    t : array
        Class indices over all ranks, one for each row.
    options : Options
        The options of the loss.
    classes : Classes
        The classes of this rank.
    shape : tuple of int
        The shape of the rows, for messages.
    backend : Backend
        The backend.
    """

    def __init__(self, t: Any, options: Options, classes: Classes, shape: tuple[int, ...], backend: Backend) -> None:
        xp: Any = importlib.import_module(backend.arrays)
        self.is_host = backend.native is np.ndarray
        self.options, self.classes = options, classes
        ignore, limits = options.loss.ignore_index, np.iinfo(t.dtype)
        excluded = None
        if ignore is not None and limits.min <= ignore <= limits.max:  # else no label is that
            excluded = t == t.dtype.type(ignore)
        bad = t >= t.dtype.type(classes.total) if classes.total <= limits.max else None
        if limits.min < 0:
            bad = t < 0 if bad is None else bad | (t < 0)
        if excluded is not None and bad is not None:
            bad = bad & (excluded == 0)
        if bad is not None and (self.is_host or options_in_force().get("check")):
            wrong = np.flatnonzero(backend.to_numpy(bad))
            if wrong.size:
                row = tuple(int(i) for i in np.unravel_index(int(wrong[0]), shape))
                raise bad_label(int(t[int(wrong[0])]), row, classes.total, options.loss)
            bad = None
        self.bad = bad
        if options.sample_weight is not None:
            none = options.sample_weight == 0
            excluded = none if excluded is None else excluded | none
        self.excluded = excluded
        local = t.astype(np.int64) - classes.first
        mine = (local >= 0) & (local < classes.own)
        if excluded is not None:
            mine = mine & (excluded == 0)
        self.mine, self.columns = mine, xp.where(mine, local, 0)
        self.xp = xp
        self.sample_weight = options.sample_weight

    def part(self, rows: Any) -> "Labels":
        """The labels of some rows."""
        found = object.__new__(Labels)
        found.__dict__.update(self.__dict__)
        for name in ("bad", "excluded", "mine", "columns", "sample_weight"):
            values = getattr(self, name)
            setattr(found, name, None if values is None else values[rows])
        return found

    def weights(self) -> Any:
        """The class weight of each row's label where it is one of this rank's, else 0."""
        weight, xp = self.options.loss.weight, self.xp
        if not self.classes.own:
            return xp.zeros(self.mine.shape, weight.dtype)
        return xp.where(self.mine, weight[self.columns], weight.dtype.type(0))


class Scale(NamedTuple):
    """The factors of losses and gradients: numbers, or on a device arrays without dimensions."""

    labels: Any  # the part of the labels
    z: Any  # the part of z_loss


def scale(of: Labels, label_weights: Any, dtype: np.dtype[Any]) -> Scale:
    """One over the divisors of the mean; 0 where nothing counts, 1 for the other reductions."""
    if of.options.loss.reduction != "mean":
        return Scale(dtype.type(1), dtype.type(1))
    xp = of.xp
    rows = xp.ones(of.mine.shape, FLOAT64) if of.sample_weight is None else of.sample_weight.astype(FLOAT64)
    if of.excluded is not None:
        rows = xp.where(of.excluded, 0.0, rows)
    both = [rows if label_weights is None else xp.where(rows == 0, 0.0, rows * label_weights), rows]
    found = []
    for each in both:
        divisor = each.sum()
        found.append(xp.where(divisor == 0, 0.0, 1 / xp.where(divisor == 0, 1.0, divisor)))
    return Scale(*found)


class Sums(NamedTuple):
    """The sums of each row over the classes of all ranks."""

    top: Any  # the largest logit
    rest: Any  # the sum of exp(x - top) without the label's
    label: Any  # x - top of the label
    weights: Any  # the class weight of the label, or None
    spread: Any  # the sum of w (x - top) over all classes, for smoothing, or None
    total_weight: Any  # the sum of all class weights, for smoothing


class Rows:
    """The loss of some rows, and its gradient.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    x : array of shape (rows, classes)
        The logits of this rank's classes.
    out : array of this shape
        Where to write the gradient; may be `x`.
    of : Labels
        The labels of the rows.
    top : array of shape (rows,)
        The largest logit of each row over all ranks (see `largest`).
    label_weights : array of shape (rows,), optional
        The class weights of the labels, if all ranks know them; else they are summed with the rest.
    """

    def __init__(self, comm: Any, x: Any, out: Any, of: Labels, top: Any, label_weights: Any = None) -> None:
        self.top = top
        self.comm, self.x, self.out, self.of, self.xp = comm, x, out, of, of.xp
        self.label_weights = label_weights
        self.dtype = COMPUTE[x.dtype]
        self.holds = out.dtype == self.dtype  # whether the exponentials wait in `out` for their sums

    def _blocks(self) -> Iterator[slice]:
        return blocks(self.x, self.of.is_host)

    @property
    def _share(self) -> float:
        """The share of the label that smoothing gives to each class."""
        loss = self.of.options.loss
        return loss.label_smoothing / self.of.classes.total

    def sums(self) -> Sums:
        """The message of sums."""
        xp, of, dtype, rows = self.xp, self.of, self.dtype, len(self.x)
        loss, top = of.options.loss, self.top
        asks_weights = loss.weight is not None and self.label_weights is None
        planes = 2 + asks_weights + bool(loss.label_smoothing)
        message = xp.zeros((planes * rows + 1,), dtype)
        each = message[:-1].reshape(planes, rows)
        if asks_weights:
            each[2] = of.weights()
        if of.classes.own:
            for block in self._blocks():
                self._add(block, top, each)
        if loss.label_smoothing:
            message[-1:] = of.classes.own if loss.weight is None else loss.weight.sum()
        self.comm.allreduce(message)
        weights = each[2] if asks_weights else self.label_weights
        return Sums(top, each[0], each[1], weights, each[-1] if loss.label_smoothing else None, message[-1:])

    def _add(self, block: slice, top: Any, each: Any) -> None:
        """The sums of a block of rows over this rank's classes."""
        xp, of, loss = self.xp, self.of.part(block), self.of.options.loss
        x, m = self.x[block].astype(self.dtype, copy=False), top[block, None]
        z = x - m
        index, zero = xp.arange(len(z)), self.dtype.type(0)
        label = z[index, of.columns]
        each[1, block] = xp.where(of.mine, label, zero)
        if loss.label_smoothing:
            if loss.weight is None:
                each[-1, block] = z.sum(axis=1)
            else:
                each[-1, block] = xp.where(loss.weight == 0, zero, z * loss.weight).sum(axis=1)
        e = xp.exp(z)
        at_label = e[index, of.columns]
        e[index, of.columns] = xp.where(of.mine, zero, at_label)
        rest = e.sum(axis=1)
        if not of.is_host:
            rest = xp.where(rest < CONFIDENT, self._refined(x, m, of.mine, of.columns), rest)
        elif (confident := (rest < CONFIDENT).nonzero()[0]).size:
            rest[confident] = self._refined(x[confident], m[confident], of.mine[confident], of.columns[confident])
        each[0, block] = rest
        if self.holds:
            self.out[block] = e

    def _refined(self, x: Any, m: Any, mine: Any, columns: Any) -> Any:
        """The sums of rows of ``exp(x - m)`` with the rounding errors of the subtraction put right (Knuth's TwoSum)."""
        xp = self.xp
        z = x - m
        back = z - x
        error = (x - (z - back)) - (m + back)
        error = xp.where(error >= -1, error, self.dtype.type(-1))  # NaN where z is -inf, and exp(z) is 0
        e = xp.exp(z)
        e = e + e * error
        index = xp.arange(len(z))
        e[index, columns] = xp.where(mine, self.dtype.type(0), e[index, columns])
        return e.sum(axis=1)

    def losses(self, sums: Sums) -> tuple[Any, Any]:
        """The losses of the rows: the part of the labels, and that of `z_loss` or None."""
        xp, of, dtype = self.xp, self.of, self.dtype
        loss, zero = of.options.loss, dtype.type(0)
        _, log = self._whole(sums)
        weights = dtype.type(1) if sums.weights is None else sums.weights
        mine = (1 - loss.label_smoothing) * weights
        each = xp.where((mine == 0) & (sums.label == -np.inf), zero, mine * (log - sums.label))
        if loss.label_smoothing:
            each = each + dtype.type(self._share) * (sums.total_weight * log - sums.spread)
        square = None
        if of.options.z_loss:
            square = dtype.type(of.options.z_loss) * (sums.top + log) ** 2
        return self._counted(each), None if square is None else self._counted(square)

    def _whole(self, sums: Sums) -> tuple[Any, Any]:
        """The sum of the exponentials of each row, and its logarithm."""
        single = self.xp.exp(sums.label)
        return sums.rest + single, self.xp.log1p(sums.rest + (single - self.dtype.type(1)))

    def _counted(self, each: Any) -> Any:
        """Values of the rows times their weights; 0 for those that do not count, NaN for those of wrong labels."""
        of, xp = self.of, self.xp
        if of.sample_weight is not None:
            each = each * of.sample_weight
        if of.bad is not None:
            each = xp.where(of.bad, self.dtype.type(np.nan), each)
        return each if of.excluded is None else xp.where(of.excluded, self.dtype.type(0), each)

    def write_gradient(self, sums: Sums, by: Scale) -> None:
        """Write the gradient of the losses to `out`."""
        xp, dtype, of = self.xp, self.dtype, self.of
        loss, share = of.options.loss, dtype.type(self._share)
        if not of.classes.own:
            return
        whole, log = self._whole(sums)
        weights = xp.ones(whole.shape, dtype) if sums.weights is None else sums.weights
        mine = (1 - loss.label_smoothing) * weights
        spread = share * sums.total_weight if loss.label_smoothing else dtype.type(0)
        all_of_row = mine + spread
        by_labels, by_z = xp.asarray(by.labels).astype(dtype), xp.asarray(by.z).astype(dtype)
        z_part = 2 * of.options.z_loss * (sums.top + log) * by_z if of.options.z_loss else dtype.type(0)
        one = xp.ones(whole.shape, dtype)
        row = self._counted(one)
        factor = self._counted((all_of_row * by_labels + z_part) / whole)
        # For the label y - 1 is -rest / sum, which keeps its accuracy where y is close to 1.
        at_label = -all_of_row * sums.rest / whole + spread - (weights * share if loss.label_smoothing else 0)
        at_label = self._counted(at_label * by_labels + z_part * (xp.exp(sums.label) / whole))
        for block in self._blocks():
            part = of.part(block)
            index = xp.arange(block.stop - block.start)
            if self.holds:
                e = self.out[block]
            else:
                e = xp.exp(self.x[block].astype(dtype, copy=False) - sums.top[block, None])
            if part.excluded is not None:
                e = xp.where(part.excluded[:, None], dtype.type(0), e)
            e = e * factor[block, None]
            if loss.label_smoothing:
                each = share if loss.weight is None else share * loss.weight
                e = e - (row[block, None] * by_labels) * each
            e[index, part.columns] = xp.where(part.mine, at_label[block], e[index, part.columns])
            self.out[block] = e.astype(self.out.dtype, copy=False)
