"""Blocks shared among a pool of threads, with buffers used again.

A task computes each block by itself, and the blocks depend on the shape alone: results have the same bits for any
number of threads.
"""

import contextlib
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from plugrad.backends import threads
from plugrad.backends.cpu import blocks, floating_point
from plugrad.backends.cpu.blocks import Array

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

# More threads than this wait for Python's lock: it is held for about a tenth of the time that a block takes.
MOST_THREADS = 8


class Scratch:
    """New arrays to work in, for work that is done in one block."""

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """A C-contiguous array whose values are yet undefined."""
        return np.empty(shape, dtype)

    def like(self, name: str, rows: Array) -> Array:
        """An array with the shape, dtype and layout of `rows`, which has two dimensions."""
        if rows.flags.c_contiguous:
            return self.array(name, rows.shape, rows.dtype)
        return self.array(name, rows.shape[::-1], rows.dtype).T


class ReusedScratch(Scratch):
    """Arrays in buffers that are used again for the next block, and in the next call.

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


FRESH = Scratch()
_idle: deque[ReusedScratch] = deque(maxlen=MOST_THREADS)  # buffers that no thread is using, a few blocks in all


def may_hold_work(out: Array) -> bool:
    """Whether a task may use `out` as scratch memory before it writes its result there, if it does not read `out`."""
    return out.itemsize > 2 and out.flags.c_contiguous


def run_blocks(
    task: Callable[..., T],
    arrays: Sequence[Array | None],
    lead: tuple[int, ...],
    width: float,
    with_position: bool = False,
) -> list[T]:
    """Call ``task(scratch, *parts)`` for each block of `arrays`, on several threads if there are several blocks.

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
    with_position : bool
        Whether the task gets the position of the block in C order too, behind the parts.

    Returns
    -------
    list
        What the tasks returned, in the order of the blocks.
    """
    if math.prod(lead) * width <= blocks.BLOCK:
        return [task(FRESH, *arrays, *((0,) if with_position else ()))]
    if all(array is not None and array.shape == lead and array.flags.c_contiguous for array in arrays):
        arrays = [array.reshape(-1) for array in arrays if array is not None]
        lead = (math.prod(lead),)
    indices = blocks.cut(lead, width)
    results: dict[int, T] = {}
    # Each thread takes the next block when it has finished one. An iterator would give one of them twice, now and then,
    # where Python has no lock.
    turns = deque(range(len(indices)))

    def work() -> None:
        try:
            scratch = _idle.pop()
        except IndexError:
            scratch = ReusedScratch()
        try:
            while True:
                try:
                    turn = turns.popleft()
                except IndexError:
                    break
                index = indices[turn]
                parts = [None if array is None else array[index] for array in arrays]
                place = (blocks.position(index, lead),) if with_position else ()
                results[turn] = task(scratch, *parts, *place)
        finally:
            turns.clear()  # after an error or an interrupt nobody starts another block
        _idle.append(scratch)

    helpers = min(threads.count(), MOST_THREADS, len(indices)) - 1
    if helpers:
        _with_helpers(work, turns.clear, helpers)
    else:
        work()
    return [results[turn] for turn in range(len(indices))]


def _with_helpers(work: Callable[[], None], stop: Callable[[], None], helpers: int) -> None:
    """Run `work` on this thread and on `helpers` others, and return, or raise, when all of them have stopped.

    After `stop` those that have not begun find nothing to do. A Ctrl-C may come at any place: so helpers report
    themselves, rather than being known by what the pool returns.
    """
    arrived, left, bell = deque[None](), deque[None](), SimpleQueue[None]()
    errors: list[BaseException] = []
    mode = floating_point.mode()

    def help_out() -> None:
        arrived.append(None)
        try:
            floating_point.set_mode(mode)
            work()
        except BaseException as error:
            errors.append(error)
        left.append(None)
        bell.put(None)

    while True:
        try:
            if not errors:
                with contextlib.suppress(RuntimeError):  # no more threads can be started: those that were do the work
                    for _ in range(helpers):
                        _pool().submit(help_out)
                work()
            while len(left) < len(arrived):
                bell.get()
            break
        except BaseException as error:  # of the task, or an interrupt, even while waiting
            stop()
            errors.append(error)
    if errors:
        raise errors[0]


@functools.cache
def _pool() -> "ThreadPoolExecutor":
    """The threads that help the calling one, started at the first large array.

    All of them start here, before there is work. A Ctrl-C while the executor starts one leaves a thread that it does
    not know, and Python waits for that thread at its end, unless the executor is gone as well.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only needed for large arrays

    pool = ThreadPoolExecutor(MOST_THREADS - 1, thread_name_prefix="plugrad")
    all_started = Event()
    try:
        for _ in range(min(threads.count(), MOST_THREADS) - 1):
            pool.submit(all_started.wait)
    finally:
        all_started.set()
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive in a forked process
