"""The launch plan for the rows of an array: the kernel, the number of threads, and the width of memory accesses.

The length and layout of the rows choose the tier:

- LANES: rows fit into the registers of a warp. 1 to 32 threads read each row once.
- BLOCKS: rows fit into the registers of a block. A block reads each row once.
- LONG_ROWS: longer rows. A block reads each row twice: for the sums, and for the results.
- PARTS: few long rows. Several blocks share each row.
- COLUMNS: the class axis is not the last. Neighbouring threads read neighbouring rows, each row twice.

The constants suit an H100 or H200, which have 132 multiprocessors with 256 KiB of registers each, and the register
counts that the compiler reports; none is measured yet. They do not depend on the device, so that results have the same
bits on every device.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel

REAL = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}

ACCESS = 16  # bytes, the widest memory access
WARP = 32
LANES_THREADS, BLOCK_THREADS = 256, 512  # the launch bounds of the kernels
COLUMN_THREADS = 16  # threads for each of the 32 columns of a block

# The most blocks of a launch: each loops over rows, and sums the losses of its rows.
MOST_BLOCKS = 2048

# Up to this many elements one block computes all rows and the sum of the losses: a second launch would take longer.
ONE_BLOCK = 4096

# Several blocks share a long row if there are fewer rows than PLACES, the blocks that run on a device at a time. Each
# block takes at least LEAST_PART elements.
PLACES, LEAST_PART = 256, 8192


class Operation(NamedTuple):
    """An operation on rows: the name of its source and kernels, its number of input arrays, and its number of sums."""

    name: str
    inputs: int
    sums: int


class Layout(NamedTuple):
    """Rows of classes in a C-contiguous array, with `inner` elements from one class to the next."""

    rows: int
    classes: int
    inner: int


class LaunchPlan(NamedTuple):
    """The kernels of an operation in order of launch, with their grid, block and first arguments."""

    instance: Instance
    kernels: tuple[str, ...]
    grid: tuple[int]
    block: tuple[int, ...]
    arguments: tuple[int, ...]  # the first arguments of the kernels
    workspace: int  # doubles that the first kernel writes for the second


@functools.lru_cache(maxsize=1024)
def layout(shape: tuple[int, ...], axis: int) -> Layout:
    """The rows along `axis` of an array of that shape."""
    classes = shape[axis]
    return Layout(math.prod(shape) // classes, classes, math.prod(shape[axis + 1 :]))


def widest(dtype: np.dtype[Any]) -> int:
    """The number of elements in the widest access."""
    return ACCESS // dtype.itemsize


def items(operation: Operation, dtype: np.dtype[Any], width: int, tier: str) -> tuple[int, ...]:
    """The numbers of elements per thread that the tier has kernels for, ascending."""
    registers = 32 // operation.inputs // (2 if dtype.itemsize == 8 else 1)
    if width == 1:
        registers = min(registers, 16)
    if tier == "LANES":
        return (8, registers)
    if tier == "BLOCKS":
        more = registers * 5 // 4
        return (registers, more) if width > 1 and dtype.itemsize < 8 and more % width == 0 else (registers,)
    if tier == "COLUMNS":
        return (4 if dtype.itemsize == 8 else 8,)
    if tier == "PARTS" and dtype.itemsize == 8:  # or the kernel that joins the parts of a loss spills registers
        registers //= 2
    return (max(width, registers // (2 if width > 1 else 4)),)  # two accesses of each array in flight


@functools.lru_cache(maxsize=4096)
def launch_plan(operation: Operation, dtype: np.dtype[Any], row_layout: Layout, is_aligned: bool) -> LaunchPlan:
    """The launch plan of `operation`; `is_aligned`: all its arrays start at multiples of 16 bytes."""
    rows, classes, inner = row_layout
    width = widest(dtype) if inner == 1 and classes % widest(dtype) == 0 else 1
    is_aligned |= width == 1

    def one_kernel(tier: str, each: int, blocks: int, block: tuple[int, ...], *more: int) -> LaunchPlan:
        few = 1 if rows * classes <= ONE_BLOCK else min(blocks, MOST_BLOCKS)
        names = (f"{operation.name}_{tier.lower()}",)
        code = instance(operation, dtype, width, is_aligned, each, tier)
        return LaunchPlan(code, names, (few,), block, (rows, classes, *more), 0)

    if inner > 1:
        (each,) = items(operation, dtype, width, "COLUMNS")
        threads = min(COLUMN_THREADS, _power_of_2(classes, each))
        return one_kernel("COLUMNS", each, -(-rows // WARP), (WARP, threads), inner)
    for each in items(operation, dtype, width, "LANES"):
        if classes <= WARP * each:
            lanes = _power_of_2(classes, each)
            return one_kernel("LANES", each, -(-rows // (LANES_THREADS // lanes)), (LANES_THREADS,), lanes)
    for each in items(operation, dtype, width, "BLOCKS"):
        if classes <= BLOCK_THREADS * each:
            return one_kernel("BLOCKS", each, rows, (-(-classes // (WARP * each)) * WARP,))
    parts = min(PLACES // rows, classes // LEAST_PART)
    if parts < 2:
        (each,) = items(operation, dtype, width, "LONG_ROWS")
        return one_kernel("LONG_ROWS", each, rows, (BLOCK_THREADS,))
    (each,) = items(operation, dtype, width, "PARTS")
    names = (f"{operation.name}_gather", f"{operation.name}_join")
    workspace = rows * parts * (max(1, operation.sums) + 1)
    code = instance(operation, dtype, width, is_aligned, each, "PARTS")
    return LaunchPlan(code, names, (rows * parts,), (BLOCK_THREADS,), (classes, parts), workspace)


def _power_of_2(classes: int, each: int) -> int:
    """The least power of 2 of threads that take all classes, `each` classes per thread."""
    return 1 << (-(-classes // each) - 1).bit_length()


def instance(
    operation: Operation, dtype: np.dtype[Any], width: int, is_aligned: bool, each: int, tier: str
) -> Instance:
    """The instance for a launch plan."""
    more = (("ITEMS", each), ("TIER", tier))
    return Instance(f"{operation.name}.cu", (*macros(dtype, width, is_aligned), *more))


def macros(dtype: np.dtype[Any], width: int, is_aligned: bool) -> tuple[tuple[str, str | int], ...]:
    """The macros that every source needs."""
    return (("REAL", REAL[dtype.name]), ("WIDTH", width), ("ALIGNED", int(is_aligned)))


def instances(operation: Operation, dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Every instance of `operation` for arrays of a dtype, and the names of its kernels."""
    for tier in ("LANES", "BLOCKS", "LONG_ROWS", "PARTS", "COLUMNS"):
        wide = widest(dtype)
        for width, is_aligned in ((1, True), (wide, True), (wide, False)) if tier != "COLUMNS" else ((1, True),):
            for each in items(operation, dtype, width, tier):
                names = ("gather", "join") if tier == "PARTS" else (tier.lower(),)
                code = instance(operation, dtype, width, is_aligned, each, tier)
                yield code, tuple(f"{operation.name}_{name}" for name in names)


def launch_plan_for(operation: Operation, row_layout: Layout, *arrays: Array) -> LaunchPlan:
    """The launch plan of an operation on C-contiguous arrays of one dtype."""
    alignment = 0
    for array in arrays:
        alignment |= array.data.ptr
    return launch_plan(operation, arrays[0].dtype, row_layout, alignment % ACCESS == 0)


def launch(plan: LaunchPlan, *arguments: Any) -> None:
    """Launch the kernels of a launch plan."""
    first: tuple[Any, ...] = plan.arguments
    if plan.workspace:
        first = (*first, cupy.empty(plan.workspace, np.float64))
    for name in plan.kernels:
        kernel(name, plan.instance)(plan.grid, plan.block, (*first, *arguments))


def contiguous(x: Array) -> Array:
    """`x`, or a C-contiguous copy of it."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


def write_contiguous(out: Array, write: Callable[[Array], None]) -> None:
    """Call `write` with `out`, or with a C-contiguous array that is then copied to `out`."""
    if out.flags.c_contiguous:
        write(out)
        return
    target = cupy.empty(out.shape, out.dtype)
    write(target)
    out[...] = target
