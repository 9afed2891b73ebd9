"""How the rows of an array are worked on: which kernel, by how many threads, with accesses how wide.

- Rows that fit into the registers of a warp are read once, by one thread to 32 each.
- Rows that fit into the registers of a block are read once, too.
- Longer ones are read twice by a block: for the sums, and for the results.
- If there are few of those, each is shared by several blocks.
- Rows that lie along another axis than the last are read twice, neighbours by neighbouring threads.

The numbers are chosen for an H100 or H200, with 256 KiB of registers to a multiprocessor and 132 of these, and the
registers that the compiler reports; none is measured yet. They do not go by the device, so that results have the same
bits on all.
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

ACCESS = 16  # bytes, the widest access there is
WARP = 32
LANES_THREADS, BLOCK_THREADS = 256, 512  # as the kernels are declared
COLUMN_THREADS = 16  # for each of the 32 columns of a block

# Blocks go over the rows in turn, and losses are summed up for each of them.
MOST_BLOCKS = 2048

# Up to so many elements one block does it all, and finishes the sum of the losses itself: another launch takes longer.
ONE_BLOCK = 4096

# Rows that are read twice are shared by several blocks, of so many elements at the least, if they are fewer than the
# places that a device has for blocks.
PLACES, LEAST_PART = 256, 8192


class Operation(NamedTuple):
    """What is computed of a row: the name of its source and kernels, and how many arrays it reads and sums it takes."""

    name: str
    inputs: int
    sums: int


class Layout(NamedTuple):
    """Rows of classes in a C-contiguous array, with `inner` elements from one class to the next."""

    rows: int
    classes: int
    inner: int


class Plan(NamedTuple):
    """How an operation is carried out: the names of its kernels, one after another, and how they are launched."""

    instance: Instance
    kernels: tuple[str, ...]
    grid: tuple[int]
    block: tuple[int, ...]
    arguments: tuple[int, ...]  # the first arguments of the kernels
    workspace: int  # what the first kernel leaves for the second, in doubles


@functools.lru_cache(maxsize=1024)
def layout(shape: tuple[int, ...], axis: int) -> Layout:
    """The rows along `axis` of an array of that shape."""
    classes = shape[axis]
    return Layout(math.prod(shape) // classes, classes, math.prod(shape[axis + 1 :]))


def widest(dtype: np.dtype[Any]) -> int:
    """How many elements there are in the widest access."""
    return ACCESS // dtype.itemsize


def items(operation: Operation, dtype: np.dtype[Any], width: int, tier: str) -> tuple[int, ...]:
    """How many elements a thread has in registers, by what the tier has kernels for, the smallest first."""
    room = 32 // operation.inputs // (2 if dtype.itemsize == 8 else 1)
    if width == 1:
        room = min(room, 16)
    if tier == "LANES":
        return (8, room)
    if tier == "BLOCKS":
        more = room * 5 // 4
        return (room, more) if width > 1 and dtype.itemsize < 8 and more % width == 0 else (room,)
    if tier == "COLUMNS":
        return (4 if dtype.itemsize == 8 else 8,)
    return (max(width, room // (2 if width > 1 else 4)),)  # two accesses of each array in flight


@functools.lru_cache(maxsize=4096)
def plan(operation: Operation, dtype: np.dtype[Any], how: Layout, is_aligned: bool) -> Plan:
    """How to carry out `operation`; `is_aligned` tells that all its arrays start at multiples of 16 bytes."""
    rows, classes, inner = how
    width = widest(dtype) if inner == 1 and classes % widest(dtype) == 0 else 1
    is_aligned |= width == 1

    def one_kernel(tier: str, each: int, blocks: int, block: tuple[int, ...], *more: int) -> Plan:
        few = 1 if rows * classes <= ONE_BLOCK else min(blocks, MOST_BLOCKS)
        names = (f"{operation.name}_{tier.lower()}",)
        code = instance(operation, dtype, width, is_aligned, each, tier)
        return Plan(code, names, (few,), block, (rows, classes, *more), 0)

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
    return Plan(code, names, (rows * parts,), (BLOCK_THREADS,), (classes, parts), workspace)


def _power_of_2(classes: int, each: int) -> int:
    """The least power of 2 of threads that take all classes, `each` of them."""
    return 1 << (-(-classes // each) - 1).bit_length()


def instance(
    operation: Operation, dtype: np.dtype[Any], width: int, is_aligned: bool, each: int, tier: str
) -> Instance:
    """What is compiled for a plan."""
    more = (("ITEMS", each), ("TIER", tier))
    return Instance(f"{operation.name}.cu", (*macros(dtype, width, is_aligned), *more))


def macros(dtype: np.dtype[Any], width: int, is_aligned: bool) -> tuple[tuple[str, str | int], ...]:
    """What every source has to be told."""
    return (("REAL", REAL[dtype.name]), ("WIDTH", width), ("ALIGNED", int(is_aligned)))


def instances(operation: Operation, dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Everything that may be compiled for `operation` on arrays of a dtype, and the names of the kernels in it."""
    for tier in ("LANES", "BLOCKS", "LONG_ROWS", "PARTS", "COLUMNS"):
        wide = widest(dtype)
        for width, is_aligned in ((1, True), (wide, True), (wide, False)) if tier != "COLUMNS" else ((1, True),):
            for each in items(operation, dtype, width, tier):
                names = ("gather", "join") if tier == "PARTS" else (tier.lower(),)
                code = instance(operation, dtype, width, is_aligned, each, tier)
                yield code, tuple(f"{operation.name}_{name}" for name in names)


def planned(operation: Operation, how: Layout, *arrays: Array) -> Plan:
    """How to carry out an operation on arrays that are C-contiguous and of one dtype."""
    alignment = 0
    for array in arrays:
        alignment |= array.data.ptr
    return plan(operation, arrays[0].dtype, how, alignment % ACCESS == 0)


def run(chosen: Plan, *arguments: Any) -> None:
    """Launch the kernels of a plan."""
    first: tuple[Any, ...] = chosen.arguments
    if chosen.workspace:
        first = (*first, cupy.empty(chosen.workspace, np.float64))
    for name in chosen.kernels:
        kernel(name, chosen.instance)(chosen.grid, chosen.block, (*first, *arguments))


def contiguous(x: Array) -> Array:
    """`x`, or a C-contiguous copy of it."""
    return x if x.flags.c_contiguous else cupy.ascontiguousarray(x)


def written(out: Array, write: Callable[[Array], None]) -> None:
    """Have `write` fill `out`, by way of a C-contiguous array if it is none."""
    if out.flags.c_contiguous:
        write(out)
        return
    target = cupy.empty(out.shape, out.dtype)
    write(target)
    out[...] = target
