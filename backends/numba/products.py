"""The affine layer: products by BLAS, biases and sums of columns by compiled loops."""

from collections.abc import Callable
from typing import Any

from plugrad.backends.cpu.affine import backward, forward, prepared_backward, prepared_forward
from plugrad.backends.cpu.blocks import Array, quietly
from plugrad.backends.numba.arrays import LIGHT, contiguous
from plugrad.backends.numba.column_sums import SUMMED_ROWS, column_sums
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.elementwise import SMALL
from plugrad.backends.numba.team import share_work

# From so many columns on, a compiled loop sums them faster than a product of BLAS with ones, unless the rows make up
# only one partial sum.
LEAST_COLUMNS = 64


@quietly
def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    if b is None or out.itemsize == 2 or not out.flags.carray or out is b:
        forward(x, w, b, out)
        return
    forward(x, w, None, out)
    if _are_small_biases(b, out):
        _add_biases(0, len(out), b, out)
        return
    y = out if out.ndim == 2 else out.reshape(-1, out.shape[-1])
    share_work(_add_biases, len(y), LIGHT * b.size, contiguous(b), y)


def _are_small_biases(b: Array, out: Array) -> bool:
    """Whether the compiled loop takes the biases and all rows as they are."""
    return out.size <= SMALL and out.ndim == 2 and b.flags.carray


def _prepared(x: Array, w: Array, b: Array | None, out: Array) -> Callable[[], object] | None:
    """`affine` without what it looks up, for the replays of a capture."""
    if b is None or out.itemsize == 2:
        return prepared_forward(x, w, b, out)
    product = prepared_forward(x, w, None, out)
    if product is None or out is b or not _are_small_biases(b, out):
        return None

    def compute() -> None:
        product()
        _add_biases(0, len(out), b, out)

    return compute


@compiled(in_pieces=True)
def _add_biases(start: int, stop: int, b: Any, y: Any) -> None:
    """``y += b``, row by row."""
    for i in range(start, stop):
        row = y[i]
        for j in range(row.size):
            row[j] += b[j]


@quietly
def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for a gradient that is not wanted."""
    if db is not None and _sums_in_loop(dy, x, w, db):
        column_sums(dy, db)
        db = None
    if dx is not None or dw is not None or db is not None:
        backward(dy, x, w, dx, dw, db)


def _sums_in_loop(dy: Array, x: Array, w: Array, db: Array) -> bool:
    """Whether a compiled loop sums the columns."""
    pays = db.size >= LEAST_COLUMNS and dy.size > SUMMED_ROWS * db.size
    return pays and not (db is dy or db is x or db is w)


def _prepared_backward(
    dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None
) -> Callable[[], object] | None:
    return None if db is not None and _sums_in_loop(dy, x, w, db) else prepared_backward(dy, x, w, dx, dw, db)


# kernel -> a function of its arguments, which returns the call that a replay of a capture makes, or None
PREPARED: dict[str, Callable[..., Callable[[], object] | None]] = {
    "affine": _prepared,
    "affine_backward": _prepared_backward,
}
