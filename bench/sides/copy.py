"""Copies of as many bytes as a kernel moves, on all threads or on the GPU: the bound set by memory."""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from plugrad import backends
from plugrad.backends import threads
from plugrad.bench.cases import TIMED, Case
from plugrad.bench.clocks import is_on_gpu
from plugrad.kernels import KERNELS

NAMES: Collection[str] = (*KERNELS, *TIMED)
to_numpy = backends.to_numpy


def prepare(case: Case) -> Callable[[], Any]:
    """Return a copy that moves the bytes of `case`; NumPy releases the GIL while it copies."""
    if case.bytes is None:
        raise ValueError(f"{case.name}: not bound by memory")
    source = np.ones(int(case.bytes) // 2, np.uint8)
    if is_on_gpu():
        on_device = backends.asarray(source)
        copied = backends.current().empty(on_device.shape, on_device.dtype)
        return lambda: copied.__setitem__(..., on_device)
    target = np.zeros_like(source)
    if source.size < 2**19:  # starting another thread would take longer than the copy
        return lambda: np.copyto(target, source)
    parts = list(zip(*(np.array_split(x, threads.count()) for x in (target, source)), strict=True))
    pool = ThreadPoolExecutor(len(parts))

    def copy() -> None:
        others = [pool.submit(np.copyto, *part) for part in parts[1:]]
        np.copyto(*parts[0])
        for other in others:
            other.result()

    return copy
