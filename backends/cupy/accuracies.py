"""The share of rows whose label is among the largest logits."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from plugrad.backends import selection
from plugrad.backends.cpu.class_indices import check
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.labels import THREADS, ignored_index, kind_of
from plugrad.backends.cupy.rows import MOST_BLOCKS, contiguous, macros
from plugrad.backends.options import LossOptions

KERNELS = ("count_right_rows", "accuracy_of_blocks")
WARP = 32
FEW_CLASSES = 32  # up to this many, a thread computes a row by itself


def top_k_accuracy(x: Array, t: Array, k: int, options: LossOptions, accuracy: Array) -> None:
    """``accuracy``: the share of the rows whose label is among the `k` largest logits."""
    classes, inner = x.shape[options.axis], math.prod(x.shape[options.axis + 1 :])
    if selection.options().get("check"):
        check(cupy.asnumpy(t), classes, options)
    ignore = ignored_index(options.ignore_index, t.dtype)
    x, t, kind = contiguous(x), contiguous(t), kind_of(t.dtype)
    # A thread for each row where neighbouring threads then read neighbouring elements, or there are few.
    threads = 1 if classes <= FEW_CLASSES or inner > 1 else WARP
    rows_at_once = THREADS // threads
    blocks = min(MOST_BLOCKS, -(-t.size // rows_at_once))
    parts: Any = cupy.empty((blocks, 2), np.float64)
    given = (t.size, classes, inner, k, x, t, kind, ignore or 0, int(ignore is not None), parts)
    kernel("count_right_rows", instance(x.dtype))((blocks,), (threads, rows_at_once), given)
    kernel("accuracy_of_blocks", instance(x.dtype))((1,), (THREADS,), (parts, blocks, accuracy))


@functools.cache
def instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for arrays of a dtype."""
    return Instance("accuracy.cu", macros(dtype, 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """The instance for arrays of a dtype, and the names of its kernels."""
    yield instance(dtype), KERNELS
