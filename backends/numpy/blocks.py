"""Work in blocks: pieces of arrays small enough to stay in cache, shared among threads, with buffers used again.

The blocks depend on the shape alone, never on the number of threads, and each is computed by itself: results are the
same, bit for bit, for any number of threads.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from plugrad.backends import threads

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = Any  # what cuts a block out of an array: an index tuple, or ... for all of it
T = TypeVar("T")

# Elements in a block: 512 KiB of float32. Of 2**14 to 2**18 it was the fastest for softmax of 4096 x 1024 and
# 512 x 50257 on two threads of an EPYC with 1 MiB of second-level cache each: 2**14 is half as fast, because the time
# between two NumPy calls, in which a thread holds Python's lock, then weighs more than the calls.
BLOCK = 2**17

# More threads than this wait for Python's lock: it is held for about a tenth of the time that a block takes.
MOST_THREADS = 8

# Up to this many classes, rows are worked on with their classes apart (see `Scratch.rows`): softmax of 4 classes is
# then 5 times as fast, of 10 classes 3.5 times, of 16 twice; of 32 it makes no difference and of 64 it is slower.
FEW_CLASSES = 24

# The same for rows that lie apart already, such as images with the classes along axis 1. NumPy then sums the classes
# one after another, not pairwise, so that rounding errors grow with their number.
SOME_CLASSES = 256


def cut(lead: tuple[int, ...], size: int) -> list[Index]:
    """Indices that cut an array into blocks along its leading axes `lead`, each entry of which has `size` elements."""
    room = max(1, BLOCK // max(1, size))  # entries in a block
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
    """Buffers of one thread, by name, that blocks use one after another."""

    __slots__ = ("_buffers",)

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array, holding what the last block left in the buffer of that name."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return (buffer if buffer.size == size else buffer[:size]).reshape(shape)

    def rows(self, name: str, x: Array, dtype: Any) -> Array:
        """An array for work on the rows of `x`, which lie along its last axis.

        Where the classes are few, or do not lie side by side in `x` either, the array has those of one row apart and
        those of one class side by side: NumPy then runs along many rows where it would start anew for each.
        """
        classes = x.shape[-1]
        if classes > FEW_CLASSES and (classes > SOME_CLASSES or x.flags.c_contiguous or abs(x.strides[-1]) <= x.itemsize):
            return self.array(name, x.shape, dtype)
        return self.array(name, (classes, x.size // classes), dtype).T.reshape(x.shape)


def run(task: Callable[[Index, Scratch], T], indices: Sequence[Index]) -> list[T]:
    """Call ``task(index, scratch)`` for every block, on several threads if there are several; results in order.

    Floating-point exceptions are silent in a task: NaN and infinities are results like any other.
    """
    results: dict[int, T] = {}
    turns = iter(range(len(indices)))  # shared: each thread takes the next block when it has finished one

    @np.errstate(all="ignore")
    def work() -> None:
        scratch = Scratch()
        for turn in turns:
            results[turn] = task(indices[turn], scratch)

    helpers = min(threads.count(), MOST_THREADS, len(indices)) - 1
    if helpers:
        _with_helpers(work, helpers, turns)
    else:
        work()
    return [results[turn] for turn in range(len(indices))]


def _with_helpers(work: Callable[[], None], helpers: int, turns: Iterator[int]) -> None:
    """Run `work` on this thread and on `helpers` others, and return, or raise, when all of them have stopped."""
    try:
        futures = [_pool().submit(work) for _ in range(helpers)]
    except RuntimeError:  # the interpreter is shutting down and starts no more threads
        futures = []
    try:
        work()
    finally:
        for _ in turns:  # after an error or an interrupt here, nobody starts another block
            pass
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
