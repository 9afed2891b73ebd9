"""Sharing work among threads, which are Python's own: compiled code runs without Python's lock.

Numba's own threads are not used. Those of GNU OpenMP keep spinning when they have nothing to do, as OpenBLAS's do, and
a training step that alternates between the two took 8 ms instead of 0.2; those of its workqueue abort the process when
two threads come at once. Here idle threads sleep, work too small to be shared stays with its caller, and any number of
threads may call at once: each takes part in its own work, and nobody waits but for pieces that are being computed.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from plugrad.backends import threads

# Work, in elements of softmax, below which waking another thread costs more than it saves: 45 us of work, on a machine
# where a thread needs 15 us to wake up.
WORTH_SHARING = 2**17

# Pieces for each thread: more than one, so that a thread that comes late or is interrupted delays the others less.
PIECES = 4


class _Job:
    """Work in pieces that threads take until there is none left."""

    def __init__(self, kernel: Callable[..., None], units: int, step: int, arguments: tuple[Any, ...]) -> None:
        self.kernel, self.units, self.step, self.arguments = kernel, units, step, arguments
        self.starts = deque(range(0, units, step))
        self.finished: SimpleQueue[BaseException | None] = SimpleQueue()  # an entry for each piece another thread did

    def work(self) -> int:
        """Compute pieces while there are any; returns how many."""
        done = 0
        while True:
            try:
                start = self.starts.popleft()
            except IndexError:
                return done
            self.kernel(start, min(start + self.step, self.units), *self.arguments)
            done += 1

    def help(self) -> None:
        """Compute pieces for the thread whose job it is."""
        while True:
            try:
                start = self.starts.popleft()
            except IndexError:
                return
            try:
                self.kernel(start, min(start + self.step, self.units), *self.arguments)
            except BaseException as error:
                self.finished.put(error)
            else:
                self.finished.put(None)


class _Team:
    """Threads that wait for jobs."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self.size = threads.count() - 1
        for _ in range(self.size):
            threading.Thread(target=self._serve, name="plugrad", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.jobs.get().help()


_team: _Team | None = None
_starting = threading.Lock()


def _forget() -> None:
    """In a forked child, where there are no threads but the one that forked."""
    global _team, _starting
    _team, _starting = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run(kernel: Callable[..., None], units: int, work: float, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)`` over all units, each of which is `work` elements of softmax."""
    if units * work < WORTH_SHARING or threads.count() == 1:
        kernel(0, units, *arguments)
        return
    global _team
    if _team is None:
        with _starting:
            if _team is None:
                _team = _Team()
    team = _team
    step = max(-(-units // (PIECES * (team.size + 1))), min(units, int(WORTH_SHARING / 8 / work)), 1)
    job = _Job(kernel, units, step, arguments)
    pieces = len(job.starts)
    for _ in range(min(team.size, pieces - 1)):
        team.jobs.put(job)
    own = job.work()
    errors = [error for _ in range(pieces - own) if (error := job.finished.get()) is not None]
    if errors:
        raise errors[0]
