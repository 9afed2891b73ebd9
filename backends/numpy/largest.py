"""The largest numbers of each row."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numpy.pool import Scratch, run_blocks

# A row is cut into groups of numbers, of which there are at least GROUPS, and GROUPS_EACH for each of the numbers that
# are wanted. If so many groups would have less than LEAST numbers each, the row is sorted instead.
GROUPS, GROUPS_EACH = 512, 8
LEAST = 4

# Numbers of a row that are compared at a time, and candidates of a block of rows that are sorted together.
PIECE, CANDIDATES = 2**17, 2**15


def largest(z: Array, classes: Array) -> None:
    """Write the places of the largest numbers of each row to `classes`: NaN first, of equal ones the first one."""
    run_blocks(_of_block, (z, classes), z.shape[:1], z.shape[1])


def _of_block(scratch: Scratch, z: Array, classes: Array) -> None:
    """The same, of one block of rows."""
    k, (rows, size) = classes.shape[1], z.shape
    groups = max(GROUPS, GROUPS_EACH * k)
    length = size // groups
    if length < LEAST:
        classes[...] = _ordered(z, k)
        return
    # Each of the k largest of the groups' largest numbers is at least the last of them, the bound; so then are the k
    # largest of the row. Number j belongs to group j % groups, so that NumPy compares whole vectors.
    tops = z[:, : length * groups].reshape(rows, length, groups).max(axis=1)
    tops.partition(groups - k, axis=1)  # NaN is the largest here
    bounds = tops[:, groups - k]
    if size <= PIECE:
        is_candidate = ~(z < bounds[:, np.newaxis])
        if np.count_nonzero(is_candidate) <= CANDIDATES:
            classes[...] = _chosen(z, is_candidate, k)
            return
    for row, places, bound in zip(z, classes, bounds, strict=True):
        places[...] = _at_least(row, bound, k)


def _ordered(z: Array, k: int) -> Array:
    """The places of the `k` largest numbers of each row, by sorting."""
    order = np.argsort(-z, axis=1, kind="stable")  # with NaN behind all numbers
    undefined = np.count_nonzero(np.isnan(z), axis=1)[:, np.newaxis]
    return np.take_along_axis(order, (np.arange(k) - undefined) % z.shape[1], axis=1)


def _chosen(z: Array, is_candidate: Array, k: int) -> Array:
    """The places of the `k` largest numbers of each row, all of which are candidates."""
    rows, places = np.divmod(np.flatnonzero(is_candidate), z.shape[1])
    numbers = z[rows, places]
    order = np.lexsort((-numbers, ~np.isnan(numbers), rows))  # by rows first; a stable sort
    firsts = np.searchsorted(rows, np.arange(len(z)))
    chosen: Array = places[order[firsts[:, np.newaxis] + np.arange(k)]]
    return chosen


def _at_least(row: Array, bound: Any, k: int) -> Array:
    """The places of the `k` largest numbers of a row, none of which is below the bound."""
    found = np.empty(0, np.intp)
    for start in range(0, len(row), PIECE):
        piece = row[start : start + PIECE]
        is_candidate = np.isnan(piece) if np.isnan(bound) else ~(piece < bound)
        found = np.concatenate((found, start + np.flatnonzero(is_candidate)))
        found = found[_ordered(row[np.newaxis, found], min(k, len(found)))[0]]
    return found
