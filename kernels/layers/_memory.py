"""Memory for the results of layers, reused as soon as nobody refers to them."""

import math
import sys
from typing import Any

import numpy as np

from plugrad.backends import Backend


def _references(arrays: list[Any], position: int) -> int:
    return sys.getrefcount(arrays[position])


# The number of references to an object that only a list holds; it differs between versions of Python.
UNSHARED = _references([object()], 0)


class ResultMemory:
    """Arrays for successive results of one layer.

    An array is reused only if nobody else refers to it or to a view of it: a result that the caller keeps never
    changes. A loop that keeps no result, or only the last one, needs two arrays at most.
    """

    MOST = 2
    WORTHWHILE = 2**16  # bytes; a smaller array is made sooner than a used one is found, and fits memory just freed

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def take(self, backend: Backend, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return a C-contiguous array with undefined values, in the memory of an unused one that is large enough.

        None where it is not worthwhile: the kernel then makes an array itself.
        """
        size = math.prod(shape)
        if size * dtype.itemsize < self.WORTHWHILE or backend.arrays != "numpy":  # CuPy and its like reuse memory
            return None if shape else backend.empty(shape, dtype)  # else the result would be a scalar
        free = None
        for position in range(len(self._kept)):
            if _references(self._kept, position) > UNSHARED:
                continue
            array = self._kept[position]
            if array.dtype == dtype:
                if array.shape == shape:
                    return array
                if array.size >= size:
                    return array.reshape(-1)[:size].reshape(shape)
            free = position
            del array
        if free is None and len(self._kept) == self.MOST:
            free = 0  # the caller keeps it: from now on the caller alone
        if free is not None:
            del self._kept[free]
        array = backend.empty(shape, dtype)
        if not isinstance(array.base, np.ndarray):  # views of a view refer to its base, so its uses cannot be counted
            self._kept.append(array)
        return array
