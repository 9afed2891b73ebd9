"""Softmax, its logarithm and their gradients: each by a compiled loop over rows, or over tiles of short rows."""

from collections.abc import Callable

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba import rows, tiles
from plugrad.backends.numba.arrays import LIGHT, are_plain, contiguous, copy_result, result_array
from plugrad.backends.numba.team import WORTH_SHARING, share_work
from plugrad.backends.numba.tiling import cut


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
    shape = arrays[0].shape
    if (found := cut(shape, axis)) is None:
        _over_rows(row_loop, tile_loop, len(shape) - 1, work, *[np.moveaxis(array, axis, -1) for array in arrays])
        return
    matrix, lanes, units, size = found
    loop = tile_loop if lanes else row_loop
    if shape == matrix and are_plain(arrays):
        if units * size < WORTH_SHARING:
            loop(0, units, *lanes, *arrays)
        else:
            share_work(loop, units, work * size, *lanes, *arrays)
        return
    y = result_array(arrays[-1])
    reads = [contiguous(array).reshape(matrix) for array in arrays[:-1]]
    share_work(loop, units, work * size, *lanes, *reads, y.reshape(matrix))
    copy_result(y, arrays[-1])
