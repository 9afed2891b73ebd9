"""Copying as much as a kernel moves, from an array to another, on all threads or on the GPU: what memory can do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends import threads
from plugrad.bench.cases import Case
from plugrad.bench.clocks import is_on_gpu


def prepare(case: Case) -> Callable[[], Any]:
    """A copy that moves the bytes of `case`; NumPy copies without Python's lock."""
    if case.bytes is None:
        raise ValueError(f"{case.name}: not bound by memory")
    source = np.ones(int(case.bytes) // 2, np.uint8)
    if is_on_gpu():
        read = backends.asarray(source)
        written = backends.current().empty(read.shape, read.dtype)
        return lambda: written.__setitem__(..., read)
    target = np.zeros_like(source)
    if source.size < 2**19:  # handing a part of it to another thread would take longer than copying it
        return lambda: np.copyto(target, source)
    parts = list(zip(*(np.array_split(x, threads.count()) for x in (target, source)), strict=True))
    pool = ThreadPoolExecutor(len(parts))

    def copy() -> None:
        others = [pool.submit(np.copyto, *part) for part in parts[1:]]
        np.copyto(*parts[0])
        for other in others:
            other.result()

    return copy
