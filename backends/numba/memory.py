"""Rows in memory: the room to work in, arguments in the format to compute in, results in the format they are kept in.

Loops over part of an array take a slice of it and count from 0: where an index could be negative, as far as the compiler
can tell, numbers are not read side by side but gathered one by one, which takes several times as long.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from plugrad.backends.numba.compiling import inlined
from plugrad.backends.numba.vector import narrow, widen

LINE = 64  # bytes of a cache line, which is what `stream` writes at a time


def scratch(x: Any, size: int) -> Any:
    """Memory to work in, in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@overload(scratch, strict=False)
def _scratch(x: Any, size: int) -> Any:
    dtype = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, size: np.empty(size, dtype)


def opened(row: Any, room: Any) -> Any:
    """A row of an argument in the format to compute in: itself, or widened in `room`."""
    raise NotImplementedError


@overload(opened, strict=False)
def _opened(row: Any, room: Any) -> Any:
    if row.dtype in (types.float32, types.float64):
        return lambda row, room: row

    def widened(row: Any, room: Any) -> Any:
        values = room[: row.size]
        for j in range(row.size):
            values[j] = widen(row[j])
        return values

    return widened


def target(row: Any, values: Any, direct: bool) -> Any:
    """Where to compute a row of a result: in it, if the way there is `direct`, else in `values`, to be stored from there.

    Only a row that no argument shares may be computed in directly: the compiler makes a slow version of each loop for
    memory that is read and written. And only in 32 and 64 bits.
    """
    raise NotImplementedError


@overload(target, strict=False)
def _target(row: Any, values: Any, direct: bool) -> Any:
    if row.dtype == values.dtype:
        return lambda row, values, direct: row if direct else values[: row.size]
    return lambda row, values, direct: values[: row.size]


@inlined()
def store(values: Any, factor: Any, row: Any, streams: bool) -> None:
    """Write values times a factor to a row of a result, past the caches if it `streams`."""
    if streams:
        _stream(values, factor, row)
    else:
        _narrowed(values, factor, row)


@inlined()
def _narrowed(values: Any, factor: Any, row: Any) -> None:
    for j in range(row.size):
        row[j] = narrow(values[j] * factor, row[j])


@inlined()
def fill(row: Any, value: Any) -> None:
    """Write one value to all of a row of a result."""
    for j in range(row.size):
        row[j] = narrow(value, row[j])


# ---------------------------------------------------------------------------------------------------------------------
# Past the caches
# ---------------------------------------------------------------------------------------------------------------------


PART = 1024  # elements that are narrowed at a time, before they are written past the caches


@inlined()
def _stream(values: Any, factor: Any, row: Any) -> None:
    """Write values times a factor past the caches; `fence` must follow before another thread may read them.

    A store into memory that is in no cache first reads it from there, a third of the traffic of softmax; whole lines
    that are written past the caches are not read. It pays where results are so large that they would not stay in a
    cache anyway.
    """
    head = min(-row.ctypes.data % LINE // row.itemsize, row.size)  # up to where a line begins
    _narrowed(values[:head], factor, row[:head])
    room = np.empty(PART, row.dtype)
    for start in range(head, row.size, PART):
        target = row[start : start + PART]
        part = room[: target.size]
        _narrowed(values[start : start + PART], factor, part)
        lines = target.nbytes // LINE
        for i in range(lines):
            _stream_line(part, target, i * LINE)
        tail = lines * LINE // row.itemsize
        target[tail:] = part[tail:]


@intrinsic
def _stream_line(typing_context: Any, line: Any, row: Any, offset: Any) -> Any:
    """Copy the line at an offset in bytes from the start of both; a line of memory must begin there in `row`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.VectorType(ir.IntType(8), LINE)

        def at(position: int) -> Any:
            array = context.make_array(signature.args[position])(context, builder, arguments[position])
            start = builder.bitcast(array.data, cgutils.voidptr_t)
            return builder.bitcast(builder.gep(start, [arguments[2]]), kind.as_pointer())

        stored = builder.store(builder.load(at(0), align=1), at(1), align=LINE)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(line, row, types.intp), generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Have all that was written visible to other threads before anything that follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate
