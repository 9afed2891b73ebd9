"""Sharing work among threads, which are Python's own, and compute without Python's lock.

Numba's own threads are not used. Those of GNU OpenMP keep spinning when they have nothing to do, as OpenBLAS's do, and
a training step that alternates between the two took 8 ms instead of 0.2; those of its workqueue abort the process when
two threads come at once; TBB's are not found where pip installs them. Here work too small to be shared stays with its
caller, and so does work that comes while the team shares another's.

The threads tell each other by numbers in a box, which they read and change in compiled code. A caller writes down what
there is to compute, and how many jobs there have been; helpers that look out see it within a microsecond. Were Python's
lock needed for that, they would wait for each other, and be woken 20 to 60 us later.

To wake a sleeping thread takes as long on a virtual machine. A helper that has finished a job therefore looks for the
next one for as long as that before it sleeps; at each look it yields its processor to other threads, such as those of
BLAS.
"""

import contextlib
import ctypes
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import llvmlite.binding
import numpy as np
from numba import types

from plugrad.backends.cpu import floating_point
from plugrad.backends.numba import thread_count
from plugrad.backends.numba.atomics import add, call_on_piece, call_with_place, read, replace, write
from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.sharing import CONDUCT, COUNT, EXPONENT

# Work, in elements of softmax, below which another thread costs more than it saves: 25 us of work on the Xeon that it
# was tuned on. To wake a thread takes 5 us.
WORTH_SHARING = 2**16

# The least work in a piece, in the same unit.
PIECE = 2**12

# The most work of a thread in a call of compiled code: some milliseconds, after which Python may raise an interrupt.
MOST = 2**23

# How often a thread looks for something to do before it sleeps. A look takes 0.3 to 0.6 us.
LOOKS = 200

# More threads than this would wait for memory, whatever PLUGRAD_NUM_THREADS says.
MOST_THREADS = 256

# The function that lets another thread use the processor, and its library; None is that of C, which Python has loaded.
GIVE_WAY, LIBRARY = ("SwitchToThread", "kernel32") if sys.platform == "win32" else ("sched_yield", None)

llvmlite.binding.add_symbol(GIVE_WAY, ctypes.cast(ctypes.CDLL(LIBRARY)[GIVE_WAY], ctypes.c_void_p).value)
_give_way = types.ExternalFunction(GIVE_WAY, types.int32())

# The numbers in a box, those that different threads change in cache lines of their own. After `CONDUCT`, the first:
WORKERS, GET_MODE, SET_MODE = 1, 2, 3  # threads of the team and its callers; functions of `floating_point`
JOBS = 8  # how many there have been
INSIDE = 16  # how many helpers compute, and `CLOSED` unless there is a job
OWNER = 24  # 1 while a caller has the box
PIECE_OF, GIVEN, FIRST, UNITS, LEAST = range(32, 37)  # of the job: function, arguments, units, the least of a piece
MODE = 40  # of the floating-point unit
LINE = 8
NEXT = MODE + LINE  # of each worker in a line: the first unit of its share that nobody has taken
CLOSED = 2**32


@inlined()
def _compute(box: int, worker: int) -> None:
    """Take pieces of the worker's own share, then of others', until there is none or one fails.

    A piece is half of what is left of a share, so that all workers end at about the same time, and a thread finds its
    share of an array in its own caches if it had it in the call before.
    """
    workers, first, units, least = read(box, WORKERS), read(box, FIRST), read(box, UNITS), read(box, LEAST)
    for other in range(workers):
        share = (worker + other) % workers
        stop = first + units * (share + 1) // workers
        start = read(box, NEXT + LINE * share)
        while start < stop:
            end = min(stop, start + max(least, (stop - start) // 2))
            if replace(box, NEXT + LINE * share, start, end) and call_on_piece(
                read(box, PIECE_OF), read(box, GIVEN), start, end
            ):
                return
            start = read(box, NEXT + LINE * share)


@compiled()
def conduct(start: int, stop: int, piece: int, given: int) -> None:
    """Compute all units of a job with the helpers that look out; alone, if another caller has the box.

    It returns when no thread computes any more.
    """
    box, first, units = start & ~EXPONENT, stop >> COUNT, stop & (2**COUNT - 1)
    if not replace(box, OWNER, 0, 1):
        call_on_piece(piece, given, first, first + units)
        return
    write(box, PIECE_OF, piece)
    write(box, GIVEN, given)
    write(box, FIRST, first)
    write(box, UNITS, units)
    write(box, LEAST, 1 << (start & EXPONENT))
    workers = read(box, WORKERS)
    for worker in range(workers):
        write(box, NEXT + LINE * worker, first + units * worker // workers)
    if read(box, GET_MODE):
        call_with_place(read(box, GET_MODE), box, MODE)
    add(box, INSIDE, -CLOSED)
    add(box, JOBS, 1)
    _compute(box, 0)
    add(box, INSIDE, CLOSED)
    while read(box, INSIDE) != CLOSED:
        _give_way()
    write(box, OWNER, 0)


@inlined()
def _enter(box: int) -> bool:
    """Whether there is a job, for which the number of helpers inside is then one more."""
    inside = read(box, INSIDE)
    while inside < CLOSED:
        if replace(box, INSIDE, inside, inside + 1):
            return True
        inside = read(box, INSIDE)
    return False


@compiled()
def serve(numbers: Any, box: int, worker: int, seen: int, looks: int) -> int:
    """Help with jobs, until there was none for `looks` looks; returns how many there have been.

    `numbers` are those of the box, which stay in memory as long as a thread is in here.
    """
    left = looks
    while left:
        left -= 1
        jobs = read(box, JOBS)
        if jobs == seen:
            _give_way()
            continue
        seen, left = jobs, looks
        if _enter(box):
            if read(box, SET_MODE):
                call_with_place(read(box, SET_MODE), box, MODE)
            _compute(box, worker)
            add(box, INSIDE, -1)
    return seen


class _Team:
    """Threads that look at a box."""

    def __init__(self) -> None:
        wanted = min(thread_count(), MOST_THREADS)
        self.numbers = np.zeros(NEXT + LINE * (wanted + 1), np.int64)
        beyond = -self.numbers.ctypes.data % (EXPONENT + 1) // self.numbers.itemsize
        self.box = self.numbers[beyond:]
        self.address = self.box.ctypes.data
        self.box[INSIDE] = CLOSED
        if wanted > 1:
            self.box[[CONDUCT, GET_MODE, SET_MODE]] = address_of_conduct(), *floating_point.addresses()
        self.sleeping: deque[SimpleQueue[None]] = deque()
        self.size = 0
        for worker in range(1, wanted):
            try:
                threading.Thread(target=self._serve, args=(worker,), name="plugrad", daemon=True).start()
            except RuntimeError:  # the system starts no more threads: those that exist do the work
                break
            self.size += 1
        self.box[WORKERS] = self.size + 1

    def wake(self, wanted: int) -> None:
        """Wake so many of the helpers that sleep."""
        # No interrupt comes between taking an alarm and ringing it, since no code of Python runs there.
        alarms = itertools.islice(iter(self.sleeping.popleft, None), wanted)
        with contextlib.suppress(IndexError):  # none is left
            deque(map(SimpleQueue.put, alarms, itertools.repeat(None)), 0)

    def _serve(self, worker: int) -> None:
        alarm: SimpleQueue[None] = SimpleQueue()
        seen = 0
        while True:
            seen = serve(self.numbers, self.address, worker, seen, LOOKS)
            self.sleeping.append(alarm)
            if self.box[JOBS] == seen:
                alarm.get()
                continue
            try:
                self.sleeping.remove(alarm)
            except ValueError:  # it rings
                alarm.get()


def address_of_conduct() -> int:
    """Compile `conduct`, and return where it is."""
    conduct.compile((types.int64,) * 4)
    (made,) = conduct.overloads.values()
    address: int = made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    return address


_team: _Team | None = None
_starting = threading.RLock()


def _forget() -> None:
    """In a forked child, where there are no threads but the one that forked."""
    global _team, _starting
    _team, _starting = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share_work(kernel: Callable[..., Any], units: int, work: float, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)``, compiled in pieces, over all units, each `work` elements of softmax."""
    if units * work < WORTH_SHARING:
        kernel(0, units, *arguments)
        return
    global _team
    if _team is None:
        with _starting:
            if _team is None:
                _team = _Team()
    team = _team
    workers = team.size + 1
    most = min(max(workers, int(MOST * workers / work)), 2**COUNT - 1)
    if team.sleeping:
        team.wake(min(units - 1, int(units * work / PIECE) // 8))
    start = -team.address - (int(PIECE / work) or 1).bit_length() + 1
    for first in range(0, units, most):
        stop = min(units, first + most)
        if workers > 1 and stop - first > 1:
            kernel(start, (first << COUNT) + stop - first, *arguments)
        else:
            kernel(first, stop, *arguments)
