"""The largest numbers of each row."""

from typing import Any

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.compiling import compiled, inlined
from plugrad.backends.numba.team import share_work

WORK = 0.02  # on one element, to that of softmax
BLOCK = 64  # numbers that are compared at a time


def largest(z: Array, classes: Array) -> None:
    """Write the places of the largest numbers of each row to `classes`: NaN first, of equal ones the first one."""
    share_work(_largest, len(z), WORK * z.shape[1], z, classes)


@compiled(in_pieces=True)
def _largest(start: int, stop: int, z: Any, classes: Any) -> None:
    """By a heap of places in the results' own memory, the first of which is the last in order."""
    size, k = z.shape[1], classes.shape[1]
    for i in range(start, stop):
        row, heap = z[i], classes[i]
        for j in range(k):
            heap[j] = j
        for j in range(k // 2 - 1, -1, -1):
            _sift(row, heap, j, k)
        last = row[heap[0]]
        for first in range(k, size, BLOCK):
            larger = 0
            for number in row[first : first + BLOCK]:  # in vectors, which an index that may be negative would prevent
                larger += not number <= last
            if not larger:
                continue
            for j in range(first, min(first + BLOCK, size)):
                if _precedes(row, j, heap[0]):
                    heap[0] = j
                    _sift(row, heap, 0, k)
            last = row[heap[0]]
        for j in range(k - 1, 0, -1):
            heap[0], heap[j] = heap[j], heap[0]
            _sift(row, heap, 0, j)


@inlined()
def _sift(row: Any, heap: Any, at: int, size: int) -> None:
    """Move an entry of a heap down, until no entry below it comes after it in order."""
    moved = heap[at]
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and _precedes(row, heap[below], heap[below + 1]):
            below += 1
        if not _precedes(row, moved, heap[below]):
            break
        heap[at] = heap[below]
        at = below
    heap[at] = moved


@inlined()
def _precedes(row: Any, i: int, j: int) -> bool:
    """Whether place `i` comes before place `j` in order."""
    a, b = row[i], row[j]
    if a != a or b != b:
        return a != a and (b == b or i < j)
    return a > b or (a == b and i < j)
