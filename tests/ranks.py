"""Ranks in threads of one process: an engine for `plugrad.distributed` that needs no MPI."""

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from plugrad.tests.processes import PATIENCE

_Result = TypeVar("_Result")


class Ranks:
    """The state that the ranks share: the arrays of a message, and a count of messages and of the bytes in them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.meeting = threading.Barrier(size, timeout=PATIENCE)  # for a message that one rank never sends
        self.given: list[Any] = [None] * size
        self.sent: list[tuple[str, int]] = []  # the operation and the number of elements of each message


class Rank:
    """A communicator of `Ranks`."""

    def __init__(self, ranks: Ranks, rank: int, check: bool = True) -> None:
        self._ranks, self.rank, self.size, self.check = ranks, rank, ranks.size, check

    def _all(self, operation: str, array: Any) -> list[Any]:
        """The arrays of all ranks, copied, after all have come."""
        ranks = self._ranks
        ranks.given[self.rank] = operation, array.copy()
        ranks.meeting.wait()
        given = list(ranks.given)
        if self.rank == 0:
            ranks.sent.append((operation, array.size))
        ranks.meeting.wait()
        assert {what for what, _ in given} == {operation}, given
        assert {(each.shape, each.dtype) for _, each in given} == {(array.shape, array.dtype)}, given
        return [each for _, each in given]

    def allreduce(self, array: Any, op: str = "sum") -> None:
        first, *others = self._all(op, array)
        for other in others:
            if op == "sum":
                first = first + other
            elif isinstance(array, np.ndarray):
                first = np.maximum(first, other)
            else:
                import cupy

                first = cupy.where(first > other, first, other)
        array[...] = first

    def broadcast(self, array: Any, root: int = 0) -> None:
        array[...] = self._all(f"broadcast from {root}", array)[root]

    def barrier(self) -> None:
        self._all("barrier", np.zeros(0))


def on_ranks(size: int, work: Callable[[Any], _Result], *, check: bool = True) -> tuple[list[Any], Ranks]:
    """The result of `work` on each of `size` ranks, or the exception that it raises there; and their messages."""
    ranks = Ranks(size)
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = work(Rank(ranks, rank, check))
        except Exception as error:
            found[rank] = error
            if isinstance(error, threading.BrokenBarrierError | AssertionError):
                ranks.meeting.abort()

    # Each thread has the scope of this one.
    threads = [threading.Thread(target=contextvars.copy_context().run, args=(run, r)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, ranks


def results(size: int, work: Callable[[Any], _Result], *, check: bool = True) -> list[_Result]:
    """The result of `work` on each rank; raises its exception."""
    found, _ = on_ranks(size, work, check=check)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found
