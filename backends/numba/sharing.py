"""Compiled functions whose work threads share without Python's lock.

A function of ``(start, stop, ...)`` computes the units from `start` to `stop`. Called with a negative `start`, it
shares units with the threads that look at the box at the address ``-start`` (see `team`): it lays its arguments down in
memory, and calls the function `CONDUCT` of that box on the address of a function that computes a piece with them.
Helpers call that function too. So no helper needs Python, nor its lock, to take part. What the pieces return is joined
by "or".
"""

from typing import Any

from llvmlite import ir

from plugrad.backends.numba.atomics import BYTES, INTEGER, STATUS

CONDUCT = 0  # the index of the address of `team.conduct` in a box

# The lowest bits of a box's address are 0. In a negative `start` they tell how few units a piece may have, as the power
# of 2. Then `stop` tells the first of the units and, in so many bits, their number.
EXPONENT, COUNT = 63, 24

# The arguments in memory follow the status, the error and the result.
OTHERS = 3


def add_sharing(function: Any) -> None:
    """Let LLVM's code of a function share its work, if `start` is negative."""
    results, errors, start, stop, *others = function.args
    joined = results.type.pointee
    if not isinstance(joined, ir.IntType) and joined != BYTES:  # None has the type of the latter
        raise TypeError(f"{function.name}: expected integers, truth values or nothing as results, got {joined}")
    kind = ir.LiteralStructType([STATUS, errors.type.pointee, joined, *(argument.type for argument in others)])
    body, shared, entry = function.entry_basic_block, function.append_basic_block("shared"), _before(function)
    builder = ir.IRBuilder(entry)
    given, nothing = builder.alloca(kind), builder.alloca(BYTES)
    builder.cbranch(builder.icmp_signed("<", start, INTEGER(0)), shared, body)

    builder = ir.IRBuilder(shared)
    builder.store(STATUS(0), _field(builder, given, 0))
    builder.store(joined(None), _field(builder, given, 2))
    for number, argument in enumerate(others, OTHERS):
        builder.store(argument, _field(builder, given, number))
    box = builder.neg(start)
    numbers = builder.inttoptr(builder.and_(box, INTEGER(~EXPONENT)), INTEGER.as_pointer())
    conduct = ir.FunctionType(STATUS, [BYTES.as_pointer(), errors.type, *[INTEGER] * 4]).as_pointer()
    address = builder.load(builder.gep(numbers, [INTEGER(CONDUCT)]))
    addresses = (builder.ptrtoint(place, INTEGER) for place in (_piece(function, kind), given))
    builder.call(builder.inttoptr(address, conduct), [nothing, errors, box, stop, *addresses])
    builder.store(builder.load(_field(builder, given, 2)), results)
    status = builder.load(_field(builder, given, 0))
    with builder.if_then(builder.icmp_unsigned("!=", status, STATUS(0)), likely=False):
        builder.store(builder.load(_field(builder, given, 1)), errors)
    builder.ret(status)


def _before(function: Any) -> Any:
    """A block before the first one of a function. LLVM keeps those variables in registers that the first block has."""
    first = function.entry_basic_block
    entry = function.insert_basic_block(0, "entry_or_shared")
    entry.instructions += [each for each in first.instructions if each.opname == "alloca"]
    first.instructions[:] = [each for each in first.instructions if each.opname != "alloca"]
    return entry


def _piece(function: Any, kind: Any) -> Any:
    """A function that computes the units of a piece with arguments from memory, and leaves an error there."""
    results, errors, _, _, *others = function.args
    piece = ir.Function(function.module, ir.FunctionType(STATUS, [BYTES, INTEGER, INTEGER]), f"{function.name}.piece")
    piece.linkage = "internal"
    builder = ir.IRBuilder(piece.append_basic_block())
    memory, start, stop = piece.args
    given = builder.bitcast(memory, kind.as_pointer())
    result, error = builder.alloca(results.type.pointee), builder.alloca(errors.type.pointee)
    arguments = [builder.load(_field(builder, given, number)) for number in range(OTHERS, OTHERS + len(others))]
    status = builder.call(function, [result, error, start, stop, *arguments], attrs=("noinline",))
    with builder.if_then(builder.icmp_unsigned("!=", status, STATUS(0)), likely=False):
        builder.store(builder.load(error), _field(builder, given, 1))
        builder.store(status, _field(builder, given, 0))
    if isinstance(results.type.pointee, ir.IntType):
        builder.atomic_rmw("or", _field(builder, given, 2), builder.load(result), "monotonic")
    builder.ret(status)
    return piece


def _field(builder: Any, given: Any, number: int) -> Any:
    return builder.gep(given, [ir.IntType(32)(0), ir.IntType(32)(number)])
