"""Which arrays are computed in tiles, and how they are cut into tiles."""

import functools
import math
from typing import NamedTuple

from plugrad.backends.numba import tiles

# Up to this many contiguous classes, rows are computed in tiles: one row would leave most of the vector registers idle.
FEW_CLASSES = 24

# Classes that a tile may have, 16 rows wide: 2 MiB of float32 for each tile that a kernel works on.
MOST_IN_TILE = 2**15


# The most elements and the most rows in a block of rows whose losses are added by themselves: sums of thousands of
# losses, one after another, would lose digits.
BLOCK = 2**14
MOST_ROWS = 64


class Cut(NamedTuple):
    """How an array is cut into rows or tiles.

    Attributes
    ----------
    shape : tuple of int
        The shape in which compiled code takes the array: its rows, or for tiles a row for each matrix of the stack
        (see `tiles`).
    tiles : tuple of int
        The length of the rows of a matrix, and the number of lanes of a tile; empty for rows.
    units : int
        The number of rows, or of tiles.
    size : int
        The number of elements in each.
    """

    shape: tuple[int, int]
    tiles: tuple[int, ...]
    units: int
    size: int

    def in_blocks(self, work: int) -> tuple[tuple[int, int], int, int]:
        """The cut for a loss, of blocks of rows if not of tiles, where a row is the work on `work` elements.

        Returns the length of the rows of a matrix and the number of rows in a block or tile, the number of blocks, and
        the work on each.
        """
        if self.tiles:
            inner, lanes = self.tiles
            return (inner, lanes), self.units, self.size
        block = max(1, min(MOST_ROWS, BLOCK // work))
        return (1, block), -(-self.units // block), block * work


@functools.lru_cache(1024)
def cut(shape: tuple[int, ...], axis: int) -> Cut | None:
    """How an array is cut into rows along an axis or, if they are short or not contiguous, into tiles.

    Returns None if the classes are not contiguous and so many that a tile would take too much memory. A tile has room
    for 16 to 256 rows, so that it stays in the first-level cache with the other arrays of a kernel, and few are left
    empty.
    """
    classes, inner, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    if inner == 1 and classes > FEW_CLASSES:
        return Cut((outer, classes), (), outer, classes)
    if inner > 1 and classes > MOST_IN_TILE:
        return None
    together = inner * outer if inner < tiles.CONTIGUOUS else inner
    lanes = max(16, min(256, 2**12 // classes // 16 * 16, -(-together // 16) * 16))
    units = -(-outer // (lanes // inner)) if inner < tiles.CONTIGUOUS else outer * -(-inner // lanes)
    return Cut((outer, classes * inner), (inner, lanes), units, classes * lanes)
