"""Memory for the results of layers, used again as soon as nobody holds what was computed in it."""

import math
import sys
from typing import Any

import numpy as np

from plugrad.backends import Backend
from plugrad.kernels._arguments import Array


def _references(arrays: list[Any], position: int) -> int:
    return sys.getrefcount(arrays[position])


ALONE = _references([object()], 0)  # the references there are to what a list alone holds; this varies among Pythons


class Buffers:
    """Arrays to compute results in, one after another.

    An array is handed out again only if no one else refers to it or to a view of it: a result that the caller keeps
    stays what it is. In a loop that keeps none, or the last one, there are two arrays at the most.
    """

    MOST = 2

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        """A copy, and what is read from a pickle, begins without memory."""
        return Buffers, ()

    def take(self, backend: Backend, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A C-contiguous array whose values are yet undefined; a smaller one lies in the memory of a larger one."""
        if backend.arrays != "numpy":  # CuPy and its like use memory again by themselves
            return backend.empty(shape, dtype)
        free = None
        for position in range(len(self._kept)):
            if _references(self._kept, position) > ALONE:
                continue
            array = self._kept[position]
            if array.dtype == dtype:
                if array.shape == shape:
                    return array
                size = math.prod(shape)
                if array.size >= size:
                    return array.reshape(-1)[:size].reshape(shape)
            free = position
            del array
        if free is None and len(self._kept) == self.MOST:
            free = 0  # whoever holds it has it alone from now on
        if free is not None:
            del self._kept[free]
        array = backend.empty(shape, dtype)
        if not isinstance(array.base, np.ndarray):  # else its views would refer to that, and not to it
            self._kept.append(array)
        return array
