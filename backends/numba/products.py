"""The affine layer: products by BLAS, biases and sums of columns by compiled loops."""

from typing import Any

from plugrad.backends.cpu.affine import backward, forward
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import LIGHT, contiguous
from plugrad.backends.numba.column_sums import SUMMED_ROWS, column_sums
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.elementwise import SMALL
from plugrad.backends.numba.team import share_work

# From so many columns on, a compiled loop sums them faster than a product of BLAS with ones, unless the rows make up
# only one partial sum.
LEAST_COLUMNS = 64


def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    if b is None or out.itemsize == 2 or not out.flags.carray or out is b:
        forward(x, w, b, out)
        return
    forward(x, w, None, out)
    if out.size <= SMALL and out.ndim == 2 and b.flags.carray:
        _add_biases(0, len(out), b, out)
        return
    y = out if out.ndim == 2 else out.reshape(-1, out.shape[-1])
    share_work(_add_biases, len(y), LIGHT * b.size, contiguous(b), y)


@compiled()
def _add_biases(start: int, stop: int, b: Any, y: Any) -> None:
    """``y += b``, row by row."""
    for i in range(start, stop):
        row = y[i]
        for j in range(row.size):
            row[j] += b[j]


def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for a gradient that is not wanted."""
    sums_in_loop = db is not None and db.size >= LEAST_COLUMNS and dy.size > SUMMED_ROWS * db.size
    if db is not None and sums_in_loop and not (db is dy or db is x or db is w):
        column_sums(dy, db)
        db = None
    if dx is not None or dw is not None or db is not None:
        backward(dy, x, w, dx, dw, db)
