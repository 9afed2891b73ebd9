"""Scratch memory for rows, and the formats that results are stored in.

Loops over part of an array take a slice of it and count from 0: where an index could be negative, as far as the
compiler can tell, numbers are not read side by side but gathered one by one, which takes several times as long.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from plugrad.backends.numba.compiling import inlined
from plugrad.backends.numba.vector import narrow


def scratch(x: Any, size: Any) -> Any:
    """A new array of this size or shape, in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@overload(scratch, strict=False)
def _scratch(x: Any, size: Any) -> Any:
    dtype = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, size: np.empty(size, dtype)


def real(x: Any, value: float) -> Any:
    """A number in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@overload(real, strict=False)
def _real(x: Any, value: float) -> Any:
    kind = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, value: kind(value)


@intrinsic
def is_direct(typing_context: Any, read: Any, result: Any) -> Any:
    """Whether a result may be computed in its own memory, although `read` is read (see `destination`).

    An argument and a result begin at one address only if they are one array.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if result.dtype.bitwidth == 16:
            return ir.Constant(ir.IntType(1), 0)
        arrays = zip(signature.args, arguments, strict=True)
        places = [context.make_array(kind)(context, builder, array).data for kind, array in arrays]
        first, second = (builder.ptrtoint(place, ir.IntType(64)) for place in places)
        return builder.icmp_unsigned("!=", first, second)

    return types.boolean(read, result), generate


def destination(row: Any, values: Any, direct: bool) -> Any:
    """The memory to compute a row of a result in: the row itself if `direct`, else `values`, to be stored afterwards.

    A row may be computed in directly if no argument shares its memory, since the compiler makes a slow version of each
    loop for memory that is read and written, and if it has 32 or 64 bits.
    """
    raise NotImplementedError


@overload(destination, strict=False)
def _destination(row: Any, values: Any, direct: bool) -> Any:
    if row.dtype == values.dtype:
        return lambda row, values, direct: row if direct else values[: row.size]
    return lambda row, values, direct: values[: row.size]


@inlined()
def store(values: Any, factor: Any, row: Any) -> None:
    """Write values times a factor to a row of a result."""
    for j in range(row.size):
        row[j] = narrow(values[j] * factor, row[j])


@inlined()
def fill(row: Any, value: Any) -> None:
    """Write one value to all of a row of a result."""
    for j in range(row.size):
        row[j] = narrow(value, row[j])


@inlined()
def copy(values: Any, row: Any) -> None:
    """``row[:] = values``, without the check of shapes, whose message takes numba's compiler two seconds."""
    for j in range(row.size):
        row[j] = values[j]
