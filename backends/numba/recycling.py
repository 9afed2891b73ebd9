"""New arrays for large results, in the memory of earlier results that are gone.

The system hands out memory for a large array page by page at the first touch, and takes it back when the array is
gone. For softmax of 512 x 50257 that costs half as much again as the kernel. The C library keeps the
memory of smaller arrays.
"""

import contextlib
import ctypes
import math
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

LARGE = 2**25  # bytes from which glibc gives memory back at once
MOST = 2**28  # bytes that are kept at the most
WASTE = 1.25  # how many times larger memory may be than the array

_idle: deque[npt.NDArray[np.uint8]] = deque()  # the memory of arrays that are gone, the latest last
_leases: dict[int, weakref.ref[Any]] = {}  # references whose callbacks run when an array is gone, by their id


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A new C-contiguous array whose values are yet undefined."""
    if not shape or (size := math.prod(shape) * dtype.itemsize) < LARGE:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, buffer=_leased(_memory(size), size))


def _memory(size: int) -> npt.NDArray[np.uint8]:
    """Idle memory that fits, or new memory."""
    for _ in range(len(_idle)):
        try:
            memory = _idle.pop()
        except IndexError:  # other threads took the rest
            break
        if size <= memory.size <= WASTE * size:
            return memory
        _idle.appendleft(memory)
    return np.empty(size, np.uint8)


def _leased(memory: npt.NDArray[np.uint8], size: int) -> Any:
    """An object that lends `memory` to arrays; when the last of them is gone, the memory is idle."""
    lease = (ctypes.c_char * size).from_buffer(memory)  # type: ignore[arg-type]  # an array has a buffer

    def gone(reference: weakref.ref[Any]) -> None:
        del _leases[id(reference)]
        if memory.size > MOST:
            return
        _idle.append(memory)
        with contextlib.suppress(IndexError, RuntimeError):  # another thread changes it
            while sum(kept.size for kept in tuple(_idle)) > MOST:
                _idle.popleft()

    reference = weakref.ref(lease, gone)
    _leases[id(reference)] = reference
    return lease
