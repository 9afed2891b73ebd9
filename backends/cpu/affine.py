"""The affine layer and its gradients by BLAS, in the dtype to compute in."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from plugrad.backends.cpu.blas import add_product, gemm, ones
from plugrad.backends.cpu.blocks import BLOCK, Array, Index, cut
from plugrad.backends.options import COMPUTE, FLOAT64

# Rows in one product if BLAS cannot read all of them: 16-bit arrays, odd strides, in place. Fewer would leave it idle,
# more would take more memory for their copies.
PRODUCT_ROWS = 128

# Rows in one product for the gradient of the weights. BLAS sums in float32, and over a million rows its sum of like
# numbers drifts by thousands of ulp; the sums over so many rows are added in float64.
MATRIX_ROWS = 2**13

# BLAS sums products with at most THIN elements one number after another, and drifts by hundreds of ulp over 8,192 rows
# of like numbers; over groups of GROUP rows it drifts by ten. Larger products it sums in parts by itself.
THIN, GROUP = 2**12, 256

# The same for the gradient of the biases. The sums of a few such groups are added in float32, those of more in float64.
SUMMED_ROWS, FEW_GROUPS = 64, 4

# `ndarray.dot` starts half a microsecond sooner than `numpy.matmul`, but sets its result to zero first: for 784 x 128
# numbers that takes up to nine.
ZEROED_SOON = 2**12


def forward(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``. The caller silences NumPy's warnings, here and in `backward`."""
    if _is_plain_forward(x, w, b, out):
        plain_forward(x, w, b, out)
        return
    compute = COMPUTE[out.dtype]
    if out is w:
        w = w.copy()
    if out is b:
        b = b.copy()
    if out is not x and _is_matrix(x, compute) and _is_matrix(out, compute):
        y = np.matmul(_rows(x, compute), w, out=_rows(out, compute))
        if b is not None:
            np.add(y, b, out=y)
        return
    w = w.astype(compute, copy=False)
    for index in _row_blocks(x, max(PRODUCT_ROWS, BLOCK // max(w.shape))):
        _forward_block(x[index], w, b, out[index])


def _is_plain_forward(x: Array, w: Array, b: Array | None, out: Array) -> bool:
    """Whether one product makes the result; the checks of `forward` would take as long as a small one."""
    is_matrix = x.itemsize > 2 and x.ndim == 2 and x.flags.c_contiguous and out.flags.carray
    return is_matrix and out is not x and out is not w and out is not b


def plain_forward(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b`` where `_is_plain_forward` holds."""
    x.dot(w, out)  # starts sooner than numpy.matmul
    if b is not None:
        np.add(out, b, out)


def prepared_forward(x: Array, w: Array, b: Array | None, out: Array) -> Callable[[], object] | None:
    """`forward` without what it looks up, for the replays of a capture, in which NumPy does not warn."""
    return partial(plain_forward, x, w, b, out) if _is_plain_forward(x, w, b, out) else None


def _forward_block(x: Array, w: Array, b: Array | None, out: Array) -> None:
    y = np.matmul(_rows(x, w.dtype), w)
    if b is not None:
        np.add(y, b, out=y)
    np.copyto(out, y.reshape(out.shape), casting="same_kind")


def backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for a gradient that is not wanted."""
    if _is_plain_backward(dy, x, w, dx, dw, db):
        _plain_backward(dy, x, w, dx, dw, db)
    else:
        _backward_in_blocks(dy, x, w, dx, dw, db)


def _is_plain_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> bool:
    """Whether one product makes each gradient; the checks of `backward` would take as long as small ones."""
    rows = len(x)
    return (
        x.itemsize > 2
        and x.ndim == 2
        and x.flags.c_contiguous
        and dy.flags.c_contiguous
        and (rows <= GROUP or (rows <= MATRIX_ROWS and (dw is None or dw.size > THIN)))
        and (dx is None or (dx.flags.carray and dx is not dy and dx is not x and dx is not w))
        and (dw is None or (dw.flags.carray and dw is not dy and dw is not x and dw is not w))
        and (db is None or (db.flags.carray and db is not dy and db is not x))
    )


def _plain_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    if dx is not None:
        dy.dot(w.T, dx)
    if dw is not None:
        if dw.size <= ZEROED_SOON:
            x.T.dot(dy, dw)
        else:
            np.matmul(x.T, dy, dw)
    if db is not None:
        if len(dy) <= SUMMED_ROWS:
            ones(dy.dtype)[: len(dy)].dot(dy, db)
        else:
            column_sums(dy, db)


def prepared_backward(
    dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None
) -> Callable[[], object] | None:
    """`backward` without what it looks up, as `prepared_forward`."""
    is_plain = _is_plain_backward(dy, x, w, dx, dw, db)
    return partial(_plain_backward, dy, x, w, dx, dw, db) if is_plain else None


def _backward_in_blocks(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    # The gradients of the parameters come first, in arrays of their own if their places are arguments.
    parameters = []
    if dw is not None:
        parameters.append((dw, _weights(dy, x, _aside(dw, dy, x, w))))
    if db is not None:
        parameters.append((db, column_sums(dy, _aside(db, dy, x, w))))
    if dx is not None:
        forward(dy, w.T.copy() if dx is w else w.T, None, dx)
    for target, value in parameters:
        if value is not target:
            np.copyto(target, value, casting="same_kind")


def _is_any(out: Array | None, dy: Array, x: Array, w: Array) -> bool:
    """Whether a result is one of the arguments."""
    return out is dy or out is x or out is w


def _aside(target: Array, dy: Array, x: Array, w: Array) -> Array:
    """`target`, or a new array if BLAS cannot write to it or if it is an argument, which is still read."""
    compute = COMPUTE[target.dtype]
    is_matrix = _is_matrix(target, compute) or _is_matrix(target.T, compute)
    if is_matrix and not _is_any(target, dy, x, w):
        return target
    return np.empty(target.shape, compute)


def _weights(dy: Array, x: Array, dw: Array) -> Array:
    """``dw = x^T dy``."""
    compute = dw.dtype
    whole = _is_matrix(x, compute) and _is_matrix(dy, compute)
    if whole and x.size <= (MATRIX_ROWS if dw.size > THIN else GROUP) * x.shape[-1]:
        gemm(_rows(x, compute).T, _rows(dy, compute), dw, accumulate=False)
        return dw
    total = np.zeros(dw.shape, FLOAT64)
    rows = MATRIX_ROWS if whole else max(PRODUCT_ROWS, min(MATRIX_ROWS, BLOCK // max(dw.shape)))
    for index in _row_blocks(x, rows):
        add_weights(_rows(x[index], compute), _rows(dy[index], compute), total)
    np.copyto(dw, total, casting="same_kind")
    return dw


def add_weights(x: Array, dy: Array, total: Array) -> None:
    """``total += x^T dy``, in float64 but for the sums over groups of rows."""
    if total.size > THIN:
        add_product(x.T, dy, total)
        return
    count = len(x) // GROUP
    whole = count * GROUP
    xs, dys = (rows[:whole].reshape(count, GROUP, rows.shape[-1]) for rows in (x, dy))
    np.add(total, np.add.reduce(np.matmul(xs.mT, dys), axis=0, dtype=FLOAT64), out=total)
    np.add(total, np.matmul(x[whole:].T, dy[whole:]), out=total)


def column_sums(dy: Array, db: Array) -> Array:
    """``db`` = sum of the rows of `dy`."""
    compute = db.dtype
    if dy.size <= FEW_GROUPS * SUMMED_ROWS * db.size and _is_matrix(dy, compute):
        rows, group = _rows(dy, compute), ones(compute)
        np.matmul(group[: min(len(rows), SUMMED_ROWS)], rows[:SUMMED_ROWS], out=db)  # which need not be aligned
        for start in range(SUMMED_ROWS, len(rows), SUMMED_ROWS):
            part = rows[start : start + SUMMED_ROWS]
            np.add(db, group[: len(part)].dot(part), out=db)
        return db
    total = np.zeros(db.shape, FLOAT64)
    for index in _row_blocks(dy, max(SUMMED_ROWS, BLOCK // dy.shape[-1])):
        _add_column_sums(_rows(dy[index], compute), total)
    np.copyto(db, total, casting="same_kind")
    return db


def _add_column_sums(rows: Array, total: Array) -> None:
    group = ones(rows.dtype)[:SUMMED_ROWS]
    whole = len(rows) - len(rows) % SUMMED_ROWS
    groups = rows[:whole].reshape(-1, SUMMED_ROWS, rows.shape[-1])
    np.add(total, np.add.reduce(np.matmul(group, groups), axis=0, dtype=FLOAT64), out=total)
    np.add(total, np.matmul(group[: len(rows) - whole], rows[whole:]), out=total)


def _row_blocks(x: Array, rows: int) -> list[Index]:
    """Indices of blocks of `rows` rows, worked on one after another: BLAS has its own threads, and sums an order."""
    return cut(x.shape[:-1], max(1, BLOCK // rows))


def _rows(x: Array, compute: np.dtype[Any]) -> Array:
    """`x` with two dimensions, in the dtype to compute in: a view where there is one, else a copy."""
    if x.ndim != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.dtype == compute else x.astype(compute)


def _is_matrix(x: Array, compute: np.dtype[Any]) -> bool:
    """Whether BLAS takes all rows of `x` at once, without a copy that grows with their number."""
    return bool(x.dtype == compute and x.flags.c_contiguous)
