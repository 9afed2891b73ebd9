"""Softmax, its logarithm and their gradients: each by a compiled loop over rows, or over tiles of short rows."""

from collections.abc import Callable

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba import rows, tiles
from plugrad.backends.numba.arrays import LIGHT, contiguous, copy_result, is_direct, result_array
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.tiling import in_tiles, tiling, too_long_for_tiles


def softmax(x: Array, axis: int, out: Array) -> None:
    """``out = exp(x) / sum(exp(x))``."""
    _over_rows(rows.softmax, tiles.softmax, axis, 1, x, out)


def softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = y (dy - sum(dy y))``."""
    _over_rows(rows.softmax_backward, tiles.softmax_backward, axis, LIGHT, dy, y, out)


def log_softmax(x: Array, axis: int, out: Array) -> None:
    """``out = x - log(sum(exp(x)))``."""
    _over_rows(rows.log_softmax, tiles.log_softmax, axis, 1, x, out)


def log_softmax_backward(dy: Array, y: Array, axis: int, out: Array) -> None:
    """``out = dy - exp(y) sum(dy)``."""
    _over_rows(rows.log_softmax_backward, tiles.log_softmax_backward, axis, 1, dy, y, out)


def _over_rows(
    row_loop: Callable[..., None], tile_loop: Callable[..., None], axis: int, work: float, *arrays: Array
) -> None:
    """Run a loop of `rows` or of `tiles` on arrays of one shape, the last one for the result."""
    if too_long_for_tiles(arrays[0].shape, axis):
        arrays, axis = tuple(np.moveaxis(array, axis, -1) for array in arrays), arrays[0].ndim - 1
    *reads, out = arrays
    y, classes = result_array(out), out.shape[axis]
    if in_tiles(out.shape, axis):
        stack, lanes, units = tiling(out.shape, axis)
        stacks = [contiguous(array).reshape(stack) for array in reads]
        share_work(tile_loop, units, work * classes * lanes, *stacks, lanes, y.reshape(stack))
    else:
        matrices = [contiguous(array).reshape(-1, classes) for array in reads]
        direct = is_direct(out, *reads)
        share_work(row_loop, out.size // classes, work * classes, *matrices, direct, y.reshape(-1, classes))
    copy_result(y, out)
