"""Numbers that threads share, and functions called by their addresses, in compiled code.

The numbers have 64 bits and stand at an address, counted by an index. What a thread wrote before it changed one is seen
by a thread that has read the change.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INTEGER, STATUS, BYTES = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()


def _place(builder: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, INTEGER.as_pointer()), [index])


@intrinsic
def read(typing_context: Any, address: Any, index: Any) -> Any:
    """The number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(builder, *arguments), "acquire", 8)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def write(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Change the number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _place(builder, *arguments[:2]), "release", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate


@intrinsic
def add(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Add to the number, and return what it was; no change by another thread is lost."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _place(builder, *arguments[:2]), arguments[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def replace(typing_context: Any, address: Any, index: Any, old: Any, new: Any) -> Any:
    """Make the number `new` if it is `old`, and return whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(builder, *arguments[:2])
        return builder.extract_value(builder.cmpxchg(place, *arguments[2:], "seq_cst", "seq_cst"), 1)

    return types.boolean(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def call_with_place(typing_context: Any, function: Any, address: Any, index: Any) -> Any:
    """Call a function of C at an address, on the address of a number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(STATUS, [INTEGER.as_pointer()]).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), [_place(builder, *arguments[1:])])

    return types.int32(types.int64, types.int64, types.int64), generate


@intrinsic
def call_on_piece(typing_context: Any, function: Any, given: Any, start: Any, stop: Any) -> Any:
    """Call the function at an address that `sharing.add_sharing` makes, on a range of units."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(STATUS, [BYTES, INTEGER, INTEGER]).as_pointer()
        function, given, start, stop = arguments
        return builder.call(builder.inttoptr(function, kind), [builder.inttoptr(given, BYTES), start, stop])

    return types.int32(types.int64, types.int64, types.int64, types.int64), generate
