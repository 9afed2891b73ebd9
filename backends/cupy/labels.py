"""The labels, options and results of a loss as arguments of the CUDA kernels."""

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from plugrad.backends import selection
from plugrad.backends.cpu.class_indices import check
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.rows import MOST_BLOCKS, Layout, contiguous, macros
from plugrad.backends.options import COMPUTE, LossOptions

# The order is that of `Kind` in targets.cuh.
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
KINDS = (*INTEGERS, "float16", "bfloat16", "float32", "float64")

THREADS = 256  # the launch bounds of the kernels
COUNTED = 4096  # the least number of labels for a block to count
NULL = 0
SUMS = ("count_labels", "divisor_of_labels", "loss_of_blocks")


class LossArguments:
    """The arguments of the CUDA kernels of a loss that follow from its labels and options.

    Attributes
    ----------
    one_class : bool
        Whether each row has one target class: class indices without smoothing.
    all_count : bool
        Whether every row counts: no row is ignored, and the divisor of the mean is not 0.
    targets : tuple
        The arguments for ``TARGET_PARAMETERS`` in targets.cuh.
    """

    def __init__(self, t: Array, x: Array, options: LossOptions, row_layout: Layout, *results: Array) -> None:
        is_index = t.ndim < x.ndim
        if is_index and selection.options().get("check"):
            check(cupy.asnumpy(t), row_layout.classes, options)
        self.one_class = is_index and not options.label_smoothing
        self._compute, self._options, self._classes = COMPUTE[x.dtype], options, row_layout.classes
        self._t, kind = contiguous(t), kind_of(t.dtype)
        ignore = ignored_index(options.ignore_index, t.dtype) if is_index else None
        ignored = (ignore or 0, int(ignore is not None))
        self._weight = _apart(options.weight, results)
        self._sample_weight = _apart(options.sample_weight, results)
        self._divisor: tuple[float, Any] = (1.0, NULL)
        if options.divisor is not None:
            self._divisor = options.divisor
        elif options.reduction == "mean":
            counted = is_index and (ignore is not None or options.weight is not None)
            counted |= options.sample_weight is not None
            rows = row_layout.rows
            self._divisor = (0.0, self._count(rows, kind, is_index, ignored)) if counted else (float(rows), NULL)
        self.all_count = ignore is None and options.sample_weight is None and self._divisor[1] is NULL
        shares = 1.0 - options.label_smoothing, options.label_smoothing / row_layout.classes
        labels = self._t, kind, int(is_index), self._weight, *ignored, *shares, *self._divisor
        self.targets = (*labels, self._sample_weight, options.z_loss)
        self._sums: Any = NULL

    def options_for(self, chunk: slice) -> LossOptions:
        """The options for a chunk of rows: with the divisor of all rows, and with the weights divided by their sum."""
        weight, of_rows = (None if given is NULL else given for given in (self._weight, self._sample_weight))
        of_chunk = None if of_rows is None else of_rows.reshape(-1)[chunk]
        return self._options._replace(axis=1, weight=weight, sample_weight=of_chunk, divisor=self._divisor)

    def for_chunk(self, chunk: slice) -> tuple[Any, ...]:
        """The arguments for ``TARGET_PARAMETERS`` of some rows, but for the first of them, their labels."""
        _, *others, sample_weight, z_loss = self.targets
        return (*others, sample_weight if sample_weight is NULL else sample_weight.reshape(-1)[chunk], z_loss)

    def _count(self, rows: int, kind: int, is_index: bool, ignored: tuple[int, int]) -> Array:
        """Compute the divisor of the mean on the device, and divide the weights by the sum over all labels."""
        blocks = min(MOST_BLOCKS, -(-rows // COUNTED))
        parts, found = cupy.empty(2 * blocks, np.float64), cupy.empty(2, np.float64)
        code, weight = instance(self._compute), self._weight
        shares: Any = NULL if weight is NULL else cupy.empty(weight.shape, weight.dtype)
        given = (rows, self._classes, self._t, kind, int(is_index), weight, *ignored, self._sample_weight, parts)
        kernel("count_labels", code)((blocks,), (THREADS,), given)
        totals = (parts, blocks, found, self._classes, weight, self._options.z_loss, shares)
        kernel("divisor_of_labels", code)((1,), (THREADS,), totals)
        self._weight = shares
        return found

    def read_with(self, *arrays: Array) -> tuple[Array, ...]:
        """The arrays, and the labels if a kernel reads them in the same vectors."""
        return (*arrays, self._t) if self._t.dtype == arrays[0].dtype else arrays

    def destinations(self, loss: Array, blocks: int) -> tuple[Any, ...]:
        """The arguments for ``LOSS_PARAMETERS`` in targets.cuh: where the blocks write the losses or their sums."""
        if self._options.reduction == "none":
            return loss, NULL, NULL
        self._sums = cupy.empty(blocks, np.float64) if blocks > 1 else NULL
        return NULL, self._sums, loss

    def finish(self, loss: Array, blocks: int) -> None:
        """Compute the loss from the sums of the blocks."""
        if self._options.reduction != "none" and blocks > 1:
            given = (self._sums, blocks, *self._divisor, loss)
            kernel("loss_of_blocks", instance(self._compute))((1,), (THREADS,), given)

    def upstream(self, dloss: Any) -> tuple[Any, ...]:
        """The upstream gradient: its value, or the array, its kind, and the step from row to row."""
        if isinstance(dloss, float):
            return dloss, NULL, 0, 0
        return 0.0, contiguous(dloss), kind_of(dloss.dtype), int(dloss.ndim > 0)


def _apart(weight: Any, results: tuple[Array, ...]) -> Any:
    """Weights; a copy if a result is written to their memory."""
    if weight is None:
        return NULL
    return weight.copy() if any(result is weight for result in results) else contiguous(weight)


@functools.cache  # NumPy takes microseconds to find the name of a dtype
def kind_of(dtype: np.dtype[Any]) -> int:
    """The number of a dtype among `KINDS`."""
    return KINDS.index("uint8" if dtype.name == "bool" else dtype.name)


def ignored_index(index: int | None, dtype: np.dtype[Any]) -> int | None:
    """`ignore_index` with the bits of labels of `dtype` as int64; None if it is outside the range of the dtype."""
    if index is None or not np.iinfo(dtype).min <= index <= np.iinfo(dtype).max:
        return None
    return index if index < 2**63 else index - 2**64


@functools.cache
def instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for sums over arrays of a dtype."""
    return Instance("sums.cu", macros(dtype, 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Every instance for sums of losses over arrays of a dtype, and the names of its kernels."""
    yield instance(COMPUTE[dtype]), SUMS
