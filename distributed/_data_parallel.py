"""Data-parallel training: each rank has some of the rows, and all have the parameters."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from plugrad.backends import to_numpy
from plugrad.backends.host import name_of
from plugrad.backends.options import COMPUTE, is_supported
from plugrad.backends.selection import backend_for, refuse_in_capture
from plugrad.distributed._agreement import agreed, described, digest
from plugrad.distributed._communicator import UNRECORDED, Communicator, check_communicator, checks
from plugrad.kernels._arguments import Array
from plugrad.kernels.optim import Optimizer
from plugrad.kernels.optim._checks import check_writeable, checked_grads, views_of


def broadcast(arrays: Iterable[Array], comm: Communicator, root: int = 0) -> None:
    """Replace the elements of arrays by those of one rank, in place: one message for all arrays of a dtype.

    Parameters
    ----------
    arrays : iterable of arrays
        As many on each rank, of the same shapes and dtypes.
    comm : Communicator
        The ranks.
    root : int
        The rank whose elements all get.

    Returns
    -------
    None
        The arrays are changed.

    Raises
    ------
    TypeError
        If an array has a dtype that is not sent.
    ValueError
        If shapes, dtypes or `root` differ between ranks, or an array is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import distributed
    >>> w = np.ones(3)
    >>> distributed.broadcast([w], distributed.mpi())
    >>> w
    array([1., 1., 1.])
    """
    refuse_in_capture(f"distributed.broadcast{UNRECORDED}")
    check_communicator("broadcast", comm)
    given, failure = _given("broadcast", "arrays", arrays)
    if failure is None and (isinstance(root, bool) or not isinstance(root, int) or not 0 <= root < comm.size):
        failure = ValueError(f"broadcast: root: expected a rank in [0, {comm.size}), got {root!r}")
    agreed(comm, "broadcast", {**_facts("arrays", given, comm), "root": root}, failure)
    if comm.size == 1:
        return
    for group in _by_dtype(given):
        flat = _flattened(group, group[0].dtype)
        comm.broadcast(flat, root)
        if comm.rank != root:
            _unflatten(flat, group)


def sum_gradients(grads: Iterable[Array], comm: Communicator) -> None:
    """Replace gradients by their sums over all ranks, in place: one message for all arrays of a dtype.

    float16 and bfloat16 are summed in float32, and rounded once.

    Parameters
    ----------
    grads : iterable of arrays
        As many on each rank, of the same shapes and dtypes.
    comm : Communicator
        The ranks.

    Returns
    -------
    None
        The gradients are changed.

    Raises
    ------
    TypeError
        If an array is not of a floating dtype.
    ValueError
        If shapes or dtypes differ between ranks, or an array is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import distributed
    >>> comm, dw = distributed.mpi(), np.ones(3)
    >>> distributed.sum_gradients([dw], comm)
    >>> dw / comm.size
    array([1., 1., 1.])
    """
    refuse_in_capture(f"distributed.sum_gradients{UNRECORDED}")
    check_communicator("sum_gradients", comm)
    given, failure = _given("sum_gradients", "grads", grads, floating=True)
    agreed(comm, "sum_gradients", _facts("grads", given, comm), failure)
    if comm.size == 1:
        return
    for group in _by_dtype(given):
        flat = _flattened(group, COMPUTE[group[0].dtype])
        comm.allreduce(flat)
        _unflatten(flat, group)


class DataParallel:
    """An optimizer whose gradients come from all ranks: its step is that of the mean over the whole batch.

    ``grad = (sum over ranks of grads) / (sum over ranks of count)``, then ``optimizer.step``. That is right for ranks
    with different numbers of rows, or none, where a mean of the ranks' means is not. The parameters of the rank 0 are
    sent to all when it is made; after each step all ranks hold the same bits.

    Parameters
    ----------
    optimizer : Optimizer
        One of `plugrad.kernels.optim`, made alike on all ranks, of parameters of the same shapes and dtypes.
    comm : Communicator
        The ranks.

    Raises
    ------
    TypeError
        If `optimizer` is no optimizer of `plugrad.kernels.optim`.
    ValueError
        If the optimizers differ between ranks, in what they keep for parameters too: load a state on all ranks.

    Examples
    --------
    >>> import numpy as np
    >>> from plugrad import distributed, kernels as K
    >>> from plugrad.kernels import optim
    >>> comm = distributed.mpi()
    >>> x, t, w = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), np.zeros((2, 2))
    >>> trainer = distributed.DataParallel(optim.SGD([w], lr=1.0), comm)
    >>> mine = slice(comm.rank, None, comm.size)  # every size-th row is this rank's
    >>> loss, dz = K.softmax_cross_entropy_value_and_grad(K.affine(x[mine], w), t[mine], reduction="sum")
    >>> dw = K.affine_backward(dz, x[mine], w, needs=("dw",))[1]
    >>> trainer.step([dw], count=len(t[mine]))
    >>> w
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """

    def __init__(self, optimizer: Optimizer, comm: Communicator) -> None:
        check_communicator("DataParallel", comm)
        self.optimizer, self.comm = optimizer, comm
        self._flat: list[Any] = []  # the messages of a step, kept for the next
        failure, facts = None, {}
        if isinstance(optimizer, Optimizer):
            facts = {**self._state(), **self._values(), **_facts("params", optimizer.params, comm)}
        else:
            kind = name_of(type(optimizer))
            failure = TypeError(f"DataParallel: optimizer: expected one of plugrad.kernels.optim, got {kind}")
        agreed(comm, "DataParallel", facts, failure)
        self._compared = self._version()  # the state that was the same on all ranks
        broadcast(optimizer.params, comm)

    def __repr__(self) -> str:
        return f"DataParallel({self.optimizer!r}, rank {self.comm.rank} of {self.comm.size})"

    def step(self, grads: Iterable[Array], count: Any) -> None:
        """Update the parameters by the gradients of the mean over the rows of all ranks.

        Parameters
        ----------
        grads : iterable of arrays
            The gradients of the *sum* of this rank's losses (``reduction="sum"``), one for each parameter; zeros on a
            rank without rows. Those of several batches may be added up before. They are not changed.
        count : float
            What this rank's sum is to be divided by for the mean: the number of its rows that count, or the sum of
            their weights. Where all ranks have 0, the gradients are 0.

        Raises
        ------
        TypeError, ValueError
            If a gradient has not the shape and dtype of its parameter, or `count` is no number of at least 0, or the
            state of the optimizer differs between ranks. No parameter is changed then.
        """
        refuse_in_capture(f"DataParallel.step{UNRECORDED}")
        params, failure = self.optimizer.params, None
        given: tuple[Any, ...] = ()
        try:
            given = checked_grads("DataParallel.step", params, views_of("DataParallel.step: grads", tuple(grads)))
            for position, parameter in enumerate(params):
                check_writeable(f"DataParallel: params: {position}", parameter)
            rows = _count(count)
        except (TypeError, ValueError) as error:
            failure, rows = error, None
        facts = {**self._state(), **_facts("grads", given, self.comm)}
        if self._version() != self._compared:  # a state was loaded or a step made meanwhile, perhaps on some ranks only
            facts |= self._values()
        agreed(self.comm, "DataParallel.step", facts, failure)
        total = _total(rows, self.comm)
        groups = _by_dtype(given)
        flats = self._flat = [
            _flattened(group, COMPUTE[group[0].dtype], kept)
            for group, kept in zip(groups, self._flat or [None] * len(groups), strict=True)
        ]
        found: dict[int, Any] = {}
        for group, flat in zip(groups, flats, strict=True):
            self.comm.allreduce(flat)
            _divide(flat, total)
            narrow = flat.astype(group[0].dtype, copy=False)
            found |= {id(array): part for array, part in zip(group, _parts(narrow, group), strict=True)}
        self.optimizer.step([found[id(array)] for array in given])
        self._compared = self._version()

    def _state(self) -> dict[str, object]:
        """The facts that must be the same on all ranks for their parameters to stay the same."""
        optimizer = self.optimizer
        rate = "a schedule" if callable(optimizer.lr) else optimizer.lr
        numbers = {name: getattr(optimizer, name) for name in optimizer.NUMBERS}
        kept = [name for name in optimizer.ARRAYS if any(array is not None for array in getattr(optimizer, name))]
        named = {"optimizer": type(optimizer).__name__, "arrays of the optimizer": ", ".join(kept) or "none"}
        return {**named, "steps": optimizer.steps, "lr": rate, **numbers}

    def _version(self) -> tuple[int, int]:
        """How many steps the optimizer has made, and how many states it has loaded."""
        return self.optimizer.steps, self.optimizer._loaded

    def _values(self) -> dict[str, object]:
        """The values that the optimizer keeps for its parameters, as facts; on a GPU this waits for them."""
        if not checks(self.comm):
            return {}
        kept = self.optimizer._named_arrays()
        return {f"the optimizer's {name}": digest(to_numpy(array)) for name, array in kept.items()}


def _given(
    call: str, name: str, arrays: Iterable[Array], *, floating: bool = False
) -> tuple[tuple[Any, ...], Exception | None]:
    """The arrays, and why they cannot be sent, if they cannot."""
    if hasattr(arrays, "dtype"):
        return (), TypeError(f"{call}: {name}: expected a sequence of arrays, got one array; pass [array]")
    if not isinstance(arrays, Iterable):
        return (), TypeError(f"{call}: {name}: expected a sequence of arrays, got {name_of(type(arrays))}")
    try:
        given = views_of(f"{call}: {name}", tuple(arrays), are_written=True)
        for position, array in enumerate(given):
            what = f"{call}: {name}: {position}"
            if not backend_for(array).owns(type(array)):
                raise TypeError(f"{what}: expected an array of the backend, got {name_of(type(array))}")
            if not is_supported(array.dtype) and (floating or array.dtype.kind not in "iub"):
                raise TypeError(f"{what}: expected float16, bfloat16, float32 or float64, got dtype {array.dtype}")
            check_writeable(what, array)
    except (TypeError, ValueError) as error:
        return (), error
    return given, None


def _facts(name: str, arrays: Sequence[Any], comm: Communicator) -> dict[str, object]:
    """The facts of arrays that the ranks compare, if they do."""
    if not checks(comm):
        return {}
    return {f"number of {name}": len(arrays), **{f"{name} {i}": described(a) for i, a in enumerate(arrays)}}


def _by_dtype(arrays: Iterable[Any]) -> list[list[Any]]:
    """The arrays that go into one message: those of a dtype, in order."""
    groups: dict[np.dtype[Any], list[Any]] = {}
    for array in arrays:
        groups.setdefault(array.dtype, []).append(array)
    return list(groups.values())


def _flattened(group: list[Any], dtype: np.dtype[Any], kept: Any = None) -> Any:
    """The elements of the arrays one behind the other, in an array of this dtype, `kept` if there is one."""
    size = sum(array.size for array in group)
    is_same = kept is not None and kept.size == size and kept.dtype == dtype
    flat = kept if is_same else backend_for(group[0]).empty((size,), dtype)
    for array, part in zip(group, _parts(flat, group), strict=True):
        part[...] = array.astype(dtype, copy=False)
    return flat


def _unflatten(flat: Any, group: list[Any]) -> None:
    """Copy the elements back to the arrays."""
    with np.errstate(all="ignore"):  # a sum that float16 cannot hold becomes infinite
        for array, part in zip(group, _parts(flat, group), strict=True):
            array[...] = part.astype(array.dtype, copy=False)


def _parts(flat: Any, group: list[Any]) -> list[Any]:
    """A view of `flat` for each array, in its shape."""
    found, first = [], 0
    for array in group:
        found.append(flat[first : first + array.size].reshape(array.shape))
        first += array.size
    return found


def _count(count: Any) -> Any:
    """The divisor of this rank: a float, or an array without dimensions on a device, which is not waited for."""
    is_number = isinstance(count, int | float | np.integer | np.floating) and not isinstance(count, bool)
    if not is_number and getattr(count, "shape", None) != ():
        raise TypeError(f"DataParallel.step: count: expected a number, got {name_of(type(count))}")
    if not is_number and not isinstance(count, np.ndarray):
        return count.astype(np.float64).reshape(1)
    if not 0 <= float(count) < np.inf:
        raise ValueError(f"DataParallel.step: count: expected a finite number of at least 0, got {count}")
    return float(count)


def _total(rows: Any, comm: Communicator) -> Any:
    """The sum of the divisors of all ranks; on a device an array of one element."""
    message = np.array([rows]) if isinstance(rows, float) else rows
    comm.allreduce(message)
    return float(message[0]) if isinstance(rows, float) else message


def _divide(flat: Any, total: Any) -> None:
    """Divide in place; where nothing counts the result is 0."""
    if not isinstance(total, float):
        xp = importlib.import_module(type(total).__module__.partition(".")[0])
        flat[...] = xp.where(total == 0, 0, flat / xp.where(total == 0, 1, total)).astype(flat.dtype)
    elif total:
        flat /= flat.dtype.type(total)
    else:
        flat[...] = 0
