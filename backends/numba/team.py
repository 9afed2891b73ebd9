"""Sharing work among threads, which are Python's own: compiled code runs without Python's lock.

Numba's own threads are not used. Those of GNU OpenMP keep spinning when they have nothing to do, as OpenBLAS's do, and
a training step that alternates between the two took 8 ms instead of 0.2; those of its workqueue abort the process when
two threads come at once; TBB's are not found where pip installs them. Here work too small to be shared stays with its
caller, and any number of threads may call at once: each takes part in its own work, and waits only for pieces that
are being computed.

To wake a sleeping thread takes 20 to 60 us on a virtual machine. A thread that has finished a job therefore looks for
the next one for as long as that before it sleeps, and so does a caller that waits for the last pieces; at each look it
yields its processor to other threads, such as those of BLAS.
"""

import contextlib
import ctypes
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types

from plugrad.backends.cpu import floating_point
from plugrad.backends.numba import thread_count
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.memory import change, seen_now

# Work, in elements of softmax, below which another thread costs more than it saves: 45 us of work on
# the virtual machine that it was tuned on.
WORTH_SHARING = 2**17

# The least work in a piece, in the same unit: 10 us, when handing it out takes 1 to 5.
PIECE = 2**15

# How often a thread looks for something to do before it sleeps. A look takes 0.3 to 0.6 us.
LOOKS = 200

# How often a caller looks whether a helper that looks out has begun: for 10 us at most. Without that the helper would
# wait for Python's lock until the caller computes, and then for the system to wake it: on a Xeon, softmax of 512 x 512
# took half as long again.
LOOKS_AT_BEGIN = 2**14

# More threads than this would only wait for Python's lock, whatever PLUGRAD_NUM_THREADS says.
MOST_THREADS = 256

# The function that lets another thread use the processor, and its library; None is that of C, which Python has loaded.
GIVE_WAY, LIBRARY = ("SwitchToThread", "kernel32") if sys.platform == "win32" else ("sched_yield", None)

llvmlite.binding.add_symbol(GIVE_WAY, ctypes.cast(ctypes.CDLL(LIBRARY)[GIVE_WAY], ctypes.c_void_p).value)
_give_way = types.ExternalFunction(GIVE_WAY, types.int32())


# Threads tell each other by numbers on boards, which they change in compiled code, where Python's lock is free: the
# thread that sees a change takes the lock next. Were it held, that thread would sleep, and be woken 20 to 60 us later.
# No change is lost where two threads change a number at once: a helper could go to sleep with a job before it.


@compiled()
def look_out(board: Any, seen: int, looks: int, told: Any) -> bool:
    """Change the number on the board `told`; then wait, for at most `looks` looks, until that on `board` is not `seen`.

    Returns whether it changed.
    """
    change(told)
    for _ in range(looks):
        if seen_now(board) != seen:
            return True
        _give_way()
    return False


@compiled()
def call_in(board: Any, board_of_job: Any, looks: int) -> None:
    """Announce a job on the board, and wait, for at most `looks` looks, until a helper has begun and needs no lock.

    The wait is too short to give the processor away: on a busy machine it would come back after milliseconds.
    """
    change(board)
    for _ in range(looks):
        if seen_now(board_of_job) != 0:
            break
    else:
        return
    for _ in range(looks // 4):
        seen_now(board_of_job)


def pieces(units: int, work: float, workers: int) -> Iterator[tuple[int, int]]:
    """Ranges of units of `work` each: large ranges first, so that all workers end at about the same time."""
    least = max(1, int(PIECE / work))
    start = 0
    while start < units:
        stop = min(units, start + max(least, (units - start) // (workers + 1)))
        yield start, stop
        start = stop


_NOBODY = np.zeros(1, np.int64)  # a board that nobody looks at


class _Job:
    """Work in pieces that threads take until there is none left."""

    def __init__(
        self,
        kernel: Callable[..., Any],
        arguments: tuple[Any, ...],
        ranges: Iterator[tuple[int, int]],
    ) -> None:
        self.kernel, self.arguments = kernel, arguments
        self.ranges = deque(ranges)
        self.helpers: deque[None] = deque()  # an entry for each helper that arrived
        self.left: deque[None] = deque()  # an entry for each helper that left
        self.errors: list[BaseException] = []  # of helpers; those that arrive late add no errors
        self.board = np.zeros(1, np.int64)  # a number that changes when a helper begins or leaves
        self.bell: SimpleQueue[None] = SimpleQueue()  # rung after that
        self.mode = floating_point.mode()

    def work(self) -> None:
        """Compute pieces while there are any."""
        while True:
            try:
                start, stop = self.ranges.popleft()
            except IndexError:
                return
            self.kernel(start, stop, *self.arguments)

    def help(self) -> None:
        """Compute pieces for the thread whose job it is."""
        self.helpers.append(None)  # before it takes a piece, so that the caller waits for it
        try:
            floating_point.set_mode(self.mode)
            look_out(_NOBODY, 0, 0, self.board)
            self.work()
        except BaseException as error:
            self.errors.append(error)
        self.left.append(None)
        self.bell.put(None)  # wakes a caller that sleeps; for one that looks at the board, `look_out` changes it next

    def wait(self) -> None:
        """Return when all helpers that arrived have left; those that arrive meanwhile find no piece."""
        seen = self.board[0]  # read first: a helper that leaves after the next line changes it
        while len(self.left) < len(self.helpers):
            if not look_out(self.board, seen, LOOKS, _NOBODY) and len(self.left) < len(self.helpers):
                self.bell.get()
            seen = self.board[0]


class _Team:
    """Threads that wait for jobs."""

    def __init__(self) -> None:
        self.jobs: deque[_Job] = deque()
        self.board = np.zeros(1, np.int64)  # the number of jobs there have been
        self.looking: deque[None] = deque()  # an entry for each helper that looks out for a job
        self.sleeping: deque[SimpleQueue[None]] = deque()
        self.size = 0
        for _ in range(min(thread_count(), MOST_THREADS) - 1):
            try:
                threading.Thread(target=self._serve, name="plugrad", daemon=True).start()
            except RuntimeError:  # the system starts no more threads: those that exist do the work
                break
            self.size += 1

    def compute(self, job: _Job) -> None:
        """Compute a job with the idle threads, and return, or raise, when no thread computes any more."""
        errors: list[BaseException] = []
        while True:
            try:
                if not errors:
                    self._announce(job)
                    job.work()
                job.wait()
                break
            except BaseException as error:  # of the kernel, or an interrupt, even while waiting
                job.ranges.clear()
                with contextlib.suppress(ValueError):
                    while True:  # entries that no helper was told of would stay
                        self.jobs.remove(job)
                errors.append(error)
        job.arguments = ()  # so that helpers that arrive late do not keep them alive
        errors += job.errors
        if errors:
            raise errors[0]

    def _announce(self, job: _Job) -> None:
        """Announce a job to the helpers, one for each piece but one, unless all are busy."""
        wanted = min(self.size, len(job.ranges) - 1)
        if wanted < 1 or len(self.jobs) > self.size:
            return
        self.jobs.extend([job] * wanted)
        call_in(self.board, job.board, LOOKS_AT_BEGIN if self.looking else 0)
        if self.sleeping:
            # No interrupt comes between taking an alarm and ringing it, since no code of Python runs there.
            alarms = itertools.islice(iter(self.sleeping.popleft, None), wanted)
            with contextlib.suppress(IndexError):  # no other helper sleeps
                deque(map(SimpleQueue.put, alarms, itertools.repeat(None)), 0)

    def _serve(self) -> None:
        alarm: SimpleQueue[None] = SimpleQueue()
        while True:
            seen, told = int(self.board[0]), _NOBODY
            try:
                job = self.jobs.popleft()
            except IndexError:
                pass
            else:
                job.help()
                told = job.board
                del job
            looks = 0 if self.jobs else LOOKS  # jobs that were announced before `seen` was read
            self.looking.append(None)
            is_wanted = look_out(self.board, seen, looks, told)
            self.looking.pop()
            if is_wanted or not looks:
                continue
            self.sleeping.append(alarm)
            if self.board[0] == seen:
                alarm.get()
            else:  # a job was announced, perhaps with the alarm
                try:
                    self.sleeping.remove(alarm)
                except ValueError:
                    alarm.get()


_team: _Team | None = None
_starting = threading.RLock()


def _forget() -> None:
    """In a forked child, where there are no threads but the one that forked."""
    global _team, _starting
    _team, _starting = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share_work(kernel: Callable[..., Any], units: int, work: float, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)`` over all units, each `work` elements of softmax."""
    if units * work < WORTH_SHARING:
        kernel(0, units, *arguments)
        return
    global _team
    if _team is None:
        with _starting:
            if _team is None:
                _team = _Team()
    team = _team
    if not team.size:
        kernel(0, units, *arguments)
        return
    team.compute(_Job(kernel, arguments, pieces(units, work, team.size + 1)))
