"""The message by which the ranks compare their arguments, so that an error on one rank is an error on all."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from plugrad.distributed._communicator import Communicator, checks

NUMBERS = 2  # the most numbers that a rank tells the others


def agreed(
    comm: Communicator,
    call: str,
    facts: Mapping[str, object],
    failure: Exception | None = None,
    numbers: tuple[int, ...] = (),
    *,
    needs_numbers: bool = False,
) -> list[list[int]]:
    """Compare `facts` with those of the other ranks; return the `numbers` of all ranks, by number and rank.

    One message of ``3 + 2 * size`` integers: the digest of the facts and its negative, whose maxima are opposite only
    if all are equal; whether a rank failed; and the numbers.

    Parameters
    ----------
    comm : Communicator
        The ranks. If they do not compare their arguments, there is no message unless `needs_numbers`.
    call : str
        The name of the call, for messages.
    facts : mapping
        What must be the same on all ranks, by the names that messages call it.
    failure : Exception, optional
        Why this rank cannot make the call. All ranks raise an error then.
    numbers : tuple of int
        Up to two numbers, not negative, that the other ranks need.
    needs_numbers : bool
        Whether the call cannot do without the numbers of the other ranks.

    Raises
    ------
    ValueError
        If facts differ or a rank failed; it names the rank. Where all ranks failed alike each raises its own error.
    """
    if not checks(comm):
        if failure is not None:
            raise failure
        if not needs_numbers or comm.size == 1:
            return [[number] for number in numbers]
    text = "\n".join([f"call: {call}", *(f"{name}: {fact}" for name, fact in facts.items())])
    code = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
    message = np.zeros(3 + NUMBERS * comm.size, np.int64)
    message[:3] = (code, -code, failure is not None) if checks(comm) else 0
    told = message[3:].reshape(NUMBERS, comm.size)
    told[: len(numbers), comm.rank] = numbers
    comm.allreduce(message, "max")
    if checks(comm) and (message[0] != -message[1] or message[2]):
        raise _disagreement(comm, call, text, failure)
    found: list[list[int]] = told[: len(numbers)].tolist()
    return found


def _disagreement(comm: Communicator, call: str, text: str, failure: Exception | None) -> Exception:
    """The error for ranks that differ, the same on all of them."""
    failures = _all(comm, "" if failure is None else f"{type(failure).__name__}: {failure}")
    texts = _all(comm, text)
    if failure is not None and len(set(failures)) == 1:
        return failure
    for rank, told in enumerate(failures):
        if told:
            return ValueError(f"{call}: rank {rank}: {told.partition(': ')[2].removeprefix(f'{call}: ')}")
    first = dict(line.split(": ", 1) for line in texts[0].split("\n"))
    for rank, other in enumerate(texts[1:], start=1):
        for line in other.split("\n"):
            name, fact = line.split(": ", 1)
            if fact != first.get(name):
                there = f"has {first[name]}" if name in first else "has none"
                return ValueError(
                    f"{call}: {name}: expected the same on all ranks, but rank 0 {there} and rank {rank} has {fact}"
                )
        if len(other.split("\n")) < len(first):
            name = next(name for name in first if f"\n{name}: " not in f"\n{other}")
            return ValueError(f"{call}: {name}: expected on all ranks, but rank {rank} has none")
    return ValueError(f"{call}: expected the same arguments on all ranks")


def _all(comm: Communicator, text: str) -> list[str]:
    """The texts of all ranks."""
    raw = np.frombuffer(text.encode(), np.uint8)
    longest = np.array([len(raw)])
    comm.allreduce(longest, "max")
    table = np.zeros((comm.size, int(longest[0])), np.int32)
    table[comm.rank, : len(raw)] = raw
    comm.allreduce(table, "max")
    return [bytes(row[row > 0].astype(np.uint8)).decode() for row in table]


def described(array: Any) -> str:
    """The shape and dtype of an array, for comparison."""
    return "None" if array is None else f"shape {tuple(array.shape)}, {array.dtype}"


def digest(array: Any) -> str:
    """The values of an array in host memory, for comparison: the least, the largest, and a digest."""
    values = np.ascontiguousarray(array)
    if not values.size:
        return "no values"
    code = hashlib.blake2b(values.view(np.uint8).data, digest_size=8).hexdigest()
    return f"values from {values.min()} to {values.max()} (digest {code})"
