"""Work in blocks: pieces of arrays small enough to stay in cache, shared among threads, with buffers used again.

The blocks depend on the shape alone, never on the number of threads, and each is computed by itself: results are the
same, bit for bit, for any number of threads.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from plugrad.backends import threads

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = Any  # what cuts a block out of an array: an index tuple, or ... for all of it
T = TypeVar("T")

# Elements in a block: 2 MiB of float32, so that a block and the buffers for it stay in the last-level cache. Of 2**15
# to 2**20 it was the fastest for softmax, its gradient and the loss with gradient from 1024 x 1024 to 512 x 50257, on
# two cores of an EPYC: 2**16 fits the second-level cache but takes half as long again, since between two NumPy calls
# a thread needs Python's lock, and to hand it from one thread to the other costs more than a cache miss.
BLOCK = 2**19

# More threads than this wait for Python's lock: it is held for about a tenth of the time that a block takes.
MOST_THREADS = 8


def cut(lead: tuple[int, ...], width: float) -> list[Index]:
    """Indices that cut arrays into blocks along their leading axes `lead`, each entry of which has `width` elements."""
    room = max(1, int(BLOCK / width))  # entries in a block
    if math.prod(lead) <= room:
        return [...]
    axis, entries = len(lead) - 1, 1
    while entries * lead[axis] <= room:
        entries *= lead[axis]
        axis -= 1
    step = max(1, room // entries)
    pieces = [slice(start, start + step) for start in range(0, lead[axis], step)]
    return [(*outer, piece) for outer in np.ndindex(*lead[:axis]) for piece in pieces]


class Scratch:
    """Arrays to work in, new ones each time: for work that is done in one block."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array whose values are yet undefined."""
        return np.empty(shape, dtype)

    def like(self, name: str, rows: Array) -> Array:
        """An array with the shape, dtype and layout of `rows`, which has two dimensions."""
        if rows.flags.c_contiguous:
            return self.array(name, rows.shape, rows.dtype)
        return self.array(name, rows.shape[::-1], rows.dtype).T


class Buffers(Scratch):
    """Arrays to work in that lie in the same few buffers for one block after another, and in one call after another.

    New memory would cost more than most kernels: the system hands it out page by page, at the first touch.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array in the buffer called `name`, which holds what the last block left there."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


quietly = np.errstate(all="ignore")  # decorates tasks in which NaN and infinities are results like any other
_FRESH = Scratch()
_idle: deque[Buffers] = deque(maxlen=MOST_THREADS)  # buffers that no thread is using, a few blocks in all


def may_hold_work(out: Array) -> bool:
    """Whether tasks may work in `out` before their results are there, if it is no array that they read."""
    return out.itemsize > 2 and out.flags.c_contiguous


def run(task: Callable[..., T], arrays: Sequence[Array | None], lead: tuple[int, ...], width: float) -> list[T]:
    """Call ``task(scratch, *blocks)`` for the blocks of `arrays`, on several threads if there are several blocks.

    Parameters
    ----------
    task : callable
        Works on one block of every array; None stays None.
    arrays : sequence of arrays or None
        Their leading axes are `lead`.
    lead : tuple of int
        The axes to cut.
    width : float
        The work on one entry along these axes, in elements of softmax.

    Returns
    -------
    list
        What the tasks returned, in the order of the blocks.
    """
    if math.prod(lead) * width <= BLOCK:
        return [task(_FRESH, *arrays)]
    if all(array is not None and array.shape == lead and array.flags.c_contiguous for array in arrays):
        arrays = [array.reshape(-1) for array in arrays if array is not None]
        lead = (math.prod(lead),)
    indices = cut(lead, width)
    results: dict[int, T] = {}
    # Each thread takes the next block when it has finished one. An iterator would give one of them twice, now and then,
    # where Python has no lock.
    turns = deque(range(len(indices)))

    def work() -> None:
        try:
            scratch = _idle.pop()
        except IndexError:
            scratch = Buffers()
        try:
            while True:
                try:
                    turn = turns.popleft()
                except IndexError:
                    break
                index = indices[turn]
                results[turn] = task(scratch, *(None if array is None else array[index] for array in arrays))
        finally:
            turns.clear()  # after an error or an interrupt nobody starts another block
        _idle.append(scratch)

    helpers = min(threads.count(), MOST_THREADS, len(indices)) - 1
    if helpers:
        _with_helpers(work, helpers)
    else:
        work()
    return [results[turn] for turn in range(len(indices))]


def _with_helpers(work: Callable[[], None], helpers: int) -> None:
    """Run `work` on this thread and on `helpers` others, and return, or raise, when all of them have stopped."""
    futures = []
    try:
        for _ in range(helpers):
            futures.append(_pool().submit(work))
    except RuntimeError:  # no more threads can be started: those that were do the work
        pass
    try:
        work()
    finally:
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


@functools.cache
def _pool() -> "ThreadPoolExecutor":
    """The threads beside the calling one, started at the first large array."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only needed for large arrays

    return ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="plugrad")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive in a forked process
