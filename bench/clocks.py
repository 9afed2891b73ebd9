"""How calls are timed: by the clock of the host, or on a GPU by its own events."""

import time
from collections.abc import Callable
from typing import Any

from plugrad import backends

# More than the second-level cache of any GPU: written before each call, so that nothing of the last one is left there.
# It takes the GPU longer than the host takes to launch a call, whose time then has no gaps in it.
FLUSHED = 2**28

LEAST = 5  # calls


def is_on_gpu() -> bool:
    """Whether the selected backend computes on CuPy arrays."""
    return backends.current().arrays == "cupy"


def times(step: Callable[[], Any], seconds: float, least: int = LEAST) -> list[float]:
    """The time of each call, in seconds, of as many as fit, and at least so many."""
    return (_times_on_gpu if is_on_gpu() else _times_on_host)(step, seconds, least)


def _times_on_host(step: Callable[[], Any], seconds: float, least: int) -> list[float]:
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < least:
        start = time.perf_counter()
        step()
        found.append(time.perf_counter() - start)
    return found


def _times_on_gpu(step: Callable[[], Any], seconds: float, least: int) -> list[float]:
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    other = cupy.empty(FLUSHED, "uint8")
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < least:
        other[...] = 0
        start.record()
        step()
        stop.record()
        stop.synchronize()
        found.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return found


def host_time(step: Callable[[], Any]) -> float:
    """The time that a call takes on the host, in seconds, which does not wait for the GPU; the least of some rounds."""
    rounds, calls = 10, 50
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        found.append((time.perf_counter() - start) / calls)
    return min(found)
