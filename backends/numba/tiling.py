"""Which arrays are computed in tiles, and how they are cut into tiles."""

import functools
import math

from plugrad.backends.numba import tiles

# Up to this many contiguous classes, rows are computed in tiles: one row would leave most of the vector registers idle.
FEW_CLASSES = 24

# Classes that a tile may have, 16 rows wide: 2 MiB of float32 for each tile that a kernel works on.
MOST_IN_TILE = 2**15


def in_tiles(shape: tuple[int, ...], axis: int) -> bool:
    """Whether rows along `axis` are computed in tiles."""
    return shape[axis] <= FEW_CLASSES or math.prod(shape[axis + 1 :]) != 1


def too_long_for_tiles(shape: tuple[int, ...], axis: int) -> bool:
    """Whether the classes are not contiguous and so many that a tile would take too much memory."""
    return shape[axis] > MOST_IN_TILE and math.prod(shape[axis + 1 :]) != 1


@functools.lru_cache(1024)
def tiling(shape: tuple[int, ...], axis: int) -> tuple[tuple[int, int, int], int, int]:
    """How an array is cut into tiles: its shape as a stack of matrices, the rows in a tile, and the number of tiles.

    A matrix of the stack has the classes along its first axis. A tile has room for 16 to 256 rows, so that it stays in
    the first-level cache with the other arrays of a kernel, and few are left empty.
    """
    classes, inner, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    together = inner * outer if inner < tiles.CONTIGUOUS else inner
    lanes = max(16, min(256, 2**12 // classes // 16 * 16, -(-together // 16) * 16))
    units = -(-outer // (lanes // inner)) if inner < tiles.CONTIGUOUS else outer * -(-inner // lanes)
    return (outer, classes, inner), lanes, units
