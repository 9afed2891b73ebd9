"""Kernels that compute each element by itself."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.rows import ACCESS, MOST_BLOCKS, contiguous, macros, widest, written

THREADS = 256  # as the kernels are declared
NAMES = ("relu", "relu_backward", "sigmoid", "sigmoid_backward")


def over_elements(name: str, *arrays: Array) -> None:
    """Run a kernel on arrays of one shape and dtype, the last one for the result."""
    *reads, out = arrays
    reads = [contiguous(x) for x in reads]
    written(out, lambda target: _run(name, *reads, target))


def _run(name: str, *arrays: Array) -> None:
    dtype, size = arrays[0].dtype, arrays[0].size
    is_aligned = all(array.data.ptr % ACCESS == 0 for array in arrays)
    blocks = min(MOST_BLOCKS, -(-size // (THREADS * widest(dtype))))
    kernel(name, instance(dtype, is_aligned))((blocks,), (THREADS,), (size, *arrays))


@functools.cache
def instance(dtype: np.dtype[Any], is_aligned: bool) -> Instance:
    """What is compiled for arrays of a dtype."""
    return Instance("elementwise.cu", macros(dtype, widest(dtype) if is_aligned else 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Everything that may be compiled for arrays of a dtype, and the names of the kernels in it."""
    for is_aligned in (True, False):
        yield instance(dtype, is_aligned), NAMES
