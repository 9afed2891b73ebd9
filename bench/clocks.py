"""The time of a call: by the clock of the host, or on a GPU by its events."""

import time
from collections.abc import Callable
from typing import Any

from plugrad import backends

# More bytes than the second-level cache of any GPU holds. They are written before each call, so that no array of the
# last call is left there, and so that the GPU is busy until the host has launched the call.
FLUSHED = 2**28

LEAST = 5  # the least number of calls


def is_on_gpu() -> bool:
    """Whether the selected backend computes on CuPy arrays."""
    return backends.current().arrays == "cupy"


def times(step: Callable[[], Any], seconds: float, least: int = LEAST) -> list[float]:
    """Return the time of each call, in seconds: of the calls that fit into `seconds`, and at least `least`."""
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
    """Return the time until a call returns, in seconds, without waiting for the GPU: the least of ten averages."""
    rounds, calls = 10, 50
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            step()
        found.append((time.perf_counter() - start) / calls)
    return min(found)
