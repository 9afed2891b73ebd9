"""Scratch memory for rows, and the formats that results are stored in.

Loops over part of an array take a slice of it and count from 0: where an index could be negative, as far as the
compiler can tell, numbers are not read side by side but gathered one by one, which takes several times as long.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from plugrad.backends.numba.compiling import chosen_by_type, inlined
from plugrad.backends.numba.vector import narrow


def scratch(x: Any, size: Any) -> Any:
    """A new array of this size or shape, in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@chosen_by_type(scratch)
def _scratch(x: Any, size: Any) -> Any:
    dtype = np.float64 if x.dtype == types.float64 else np.float32
    return lambda x, size: np.empty(size, dtype)


def real(x: Any, value: float) -> Any:
    """A number in the format that numbers of `x` are computed in."""
    raise NotImplementedError


@chosen_by_type(real)
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


@chosen_by_type(destination)
def _destination(row: Any, values: Any, direct: bool) -> Any:
    if row.dtype == values.dtype:
        return lambda row, values, direct: row if direct else part_of(values, 0, row.size)
    return lambda row, values, direct: part_of(values, 0, row.size)


@intrinsic
def flattened(typing_context: Any, array: Any) -> Any:
    """``array.reshape(-1)`` of a contiguous array, which holds no reference; numba's own takes longer to compile."""
    kind = array.copy(ndim=1)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(array)(context, builder, arguments[0])
        return _view(context, builder, kind, whole.data, whole.nitems)

    return kind(array), generate


@intrinsic
def rows_of(typing_context: Any, matrix: Any, start: Any, stop: Any) -> Any:
    """``matrix[start:stop]``, for indices within it; numba's own slice takes longer to compile."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(matrix)(context, builder, arguments[0])
        _, start, stop = arguments
        columns, view = builder.extract_value(whole.shape, 1), context.make_array(matrix)(context, builder)
        populate_array(
            view,
            data=builder.gep(whole.data, [builder.mul(start, columns)]),
            shape=[builder.sub(stop, start), columns],
            strides=whole.strides,
            itemsize=whole.itemsize,
            meminfo=whole.meminfo,
            parent=whole.parent,
        )
        return impl_ret_borrowed(context, builder, matrix, view._getvalue())

    return matrix(matrix, types.intp, types.intp), generate


def _view(context: Any, builder: Any, kind: Any, start: Any, size: Any) -> Any:
    """An array of one dimension that holds no reference to its memory."""
    view = context.make_array(kind)(context, builder)
    itemsize = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
    populate_array(view, data=start, shape=[size], strides=[itemsize], itemsize=itemsize, meminfo=None)
    return view._getvalue()


@intrinsic
def part_of(typing_context: Any, array: Any, start: Any, stop: Any) -> Any:
    """``array[start:stop]`` of an array of one dimension, for indices within it.

    Numba's own slices count references to the array wherever a loop or a branch keeps the compiler from finding out
    that they need not, which takes as long as a short row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole, start, stop = arguments
        memory = context.make_array(array)(context, builder, whole).data
        return _view(context, builder, array, builder.gep(memory, [start]), builder.sub(stop, start))

    return array(array, types.intp, types.intp), generate


@intrinsic
def row_of(typing_context: Any, matrix: Any, number: Any) -> Any:
    """``matrix[number]``, in the same way."""
    kind = matrix.copy(ndim=1)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(matrix)(context, builder, arguments[0])
        size = builder.extract_value(whole.shape, 1)
        return _view(context, builder, kind, builder.gep(whole.data, [builder.mul(arguments[1], size)]), size)

    return kind(matrix, types.intp), generate


# To fetch ahead makes softmax of 4096x1024 a fifth faster on a Xeon, and made it 3 to 20 % slower on Zen 4. LLVM's name
# of the processor is in the key of the cache.
_, PROCESSOR, _ = cpu_target.target_context.codegen().magic_tuple()
FETCHES = not PROCESSOR.startswith("znver")

LINE = 64  # bytes of a cache line of most processors
NEAREST, DATA = 3, 1  # arguments of `llvm.prefetch`: into the first-level cache, not for instructions


def _prefetch(to_write: int) -> Any:
    """A function that fetches elements from memory while others are computed; they may lie past the array's end."""

    @intrinsic
    def prefetch(typing_context: Any, array: Any, start: Any, stop: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if not FETCHES:
                return context.get_dummy_value()
            memory = context.make_array(array)(context, builder, arguments[0]).data
            byte, integer = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, integer, integer, integer])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            step = ir.Constant(arguments[1].type, LINE * 8 // array.dtype.bitwidth)
            with cgutils.for_range_slice(builder, *arguments[1:], step) as (index, _):
                place = builder.bitcast(builder.gep(memory, [index]), byte)
                builder.call(function, [place, integer(to_write), integer(NEAREST), integer(DATA)])
            return context.get_dummy_value()

        return types.none(array, types.intp, types.intp), generate

    return prefetch


fetch, fetch_to_write = _prefetch(0), _prefetch(1)


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
