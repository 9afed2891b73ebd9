"""The affine layer: BLAS, through NumPy, in the dtype to compute in."""

from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends import blas
from plugrad.backends.numpy.blocks import BLOCK, Array, Index, Scratch, cut, quietly
from plugrad.backends.numpy.rows import ones
from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64

# Rows that BLAS multiplies in one go where it cannot take all of them: 16-bit arrays, odd strides, in place. Fewer
# would leave it idle, more would take more memory for their copies.
PRODUCT_ROWS = 128

# Rows that BLAS sums in one go for the gradient of the weights. It adds up float32, and over a million rows its sum of
# like numbers drifts by thousands of ulp; the partial sums are added in float64.
MATRIX_ROWS = 2**13

# Products with so few elements BLAS sums up one number after another, and drifts by hundreds of ulp over 8,192 rows of
# like numbers; over groups of so many rows it drifts by ten. Larger ones it sums up in parts by itself.
THIN, GROUP = 2**12, 256

# The same for the gradient of the biases.
SUMMED_ROWS = 64


def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    product(x, w, b, out)


def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; None for what is not wanted."""
    gradients(dy, x, w, dx, dw, db)


@quietly
def product(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """What `affine` computes, for any backend on NumPy arrays."""
    compute = COMPUTE[out.dtype]
    if out is w:
        w = w.copy()
    if out is b:
        b = b.copy()
    if out is not x and _is_matrix(x, compute) and _is_matrix(out, compute):
        product = np.matmul(_rows(x, compute), w, out=_rows(out, compute))
        if b is not None:
            np.add(product, b, out=product)
        return
    w = w.astype(compute, copy=False)

    def block(index: Index, scratch: Scratch) -> None:
        rows, target = _rows(x[index], compute), out[index]
        product = np.matmul(rows, w, out=scratch.array("product", (len(rows), w.shape[1]), compute))
        if b is not None:
            np.add(product, b, out=product)
        np.copyto(target, product.reshape(target.shape), casting="same_kind")

    _in_order(block, x, max(PRODUCT_ROWS, BLOCK // max(w.shape)))


@quietly
def gradients(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """What `affine_backward` computes, for any backend on NumPy arrays."""
    if _is_small_batch(dy, x) and all(out is not dy and out is not x and out is not w for out in (dx, dw, db)):
        if dx is not None:
            np.matmul(dy, w.T, out=dx)
        if dw is not None:
            np.matmul(x.T, dy, out=dw)
        if db is not None:
            np.matmul(ones(dy.dtype)[: len(dy)], dy, out=db)
        return
    # The gradients of the parameters come first, and aside if they are to lie where an argument does.
    parameters = []
    if dw is not None:
        parameters.append((dw, _weights(dy, x, _aside(dw, dy, x, w))))
    if db is not None:
        parameters.append((db, column_sums(dy, _aside(db, dy, x, w))))
    if dx is not None:
        product(dy, w.T.copy() if dx is w else w.T, None, dx)
    for target, value in parameters:
        if value is not target:
            np.copyto(target, value, casting="same_kind")


def _is_small_batch(dy: Array, x: Array) -> bool:
    """Whether BLAS takes all rows in one go for each gradient, and the way below would cost as much as the products."""
    return bool(
        x.ndim == 2
        and len(x) <= SUMMED_ROWS
        and dy.dtype in (FLOAT32, FLOAT64)
        and x.flags.c_contiguous
        and dy.flags.c_contiguous
    )


def _aside(target: Array, dy: Array, x: Array, w: Array) -> Array:
    """`target`, or, if it is no array to compute in or an argument that is still read, a new one in its place."""
    compute = COMPUTE[target.dtype]
    if _is_matrix(target, compute) and target is not dy and target is not x and target is not w:
        return target
    return np.empty(target.shape, compute)


def _weights(dy: Array, x: Array, dw: Array) -> Array:
    """``dw = x^T dy``."""
    compute = dw.dtype
    whole = _is_matrix(x, compute) and _is_matrix(dy, compute)
    if whole and x.size <= (MATRIX_ROWS if dw.size > THIN else GROUP) * x.shape[-1]:
        return np.matmul(_rows(x, compute).T, _rows(dy, compute), out=dw)
    total = np.zeros(dw.shape, FLOAT64)

    def block(index: Index, scratch: Scratch) -> None:
        add_weights(_rows(x[index], compute), _rows(dy[index], compute), total)

    _in_order(block, x, MATRIX_ROWS if whole else max(PRODUCT_ROWS, min(MATRIX_ROWS, BLOCK // max(dw.shape))))
    np.copyto(dw, total, casting="same_kind")
    return dw


def add_weights(x: Array, dy: Array, total: Array) -> None:
    """``total += x^T dy``, in float64 but for the sums over some rows."""
    if total.size > THIN:
        blas.product(x.T, dy, total, adds=True)
        return
    count = len(x) // GROUP
    whole = count * GROUP
    xs, dys = (rows[:whole].reshape(count, GROUP, rows.shape[-1]) for rows in (x, dy))
    np.add(total, np.add.reduce(np.matmul(xs.mT, dys), axis=0, dtype=FLOAT64), out=total)
    np.add(total, np.matmul(x[whole:].T, dy[whole:]), out=total)


def column_sums(dy: Array, db: Array) -> Array:
    """``db`` = sum of the rows of `dy`."""
    compute = db.dtype
    if dy.size <= SUMMED_ROWS * db.size and _is_matrix(dy, compute):
        rows = _rows(dy, compute)
        return np.matmul(ones(compute)[: len(rows)], rows, out=db)
    group = ones(compute)[:SUMMED_ROWS]
    total = np.zeros(db.shape, FLOAT64)

    def block(index: Index, scratch: Scratch) -> None:
        rows = _rows(dy[index], compute)
        whole = len(rows) - len(rows) % SUMMED_ROWS
        groups = rows[:whole].reshape(-1, SUMMED_ROWS, rows.shape[-1])
        np.add(total, np.add.reduce(np.matmul(group, groups), axis=0, dtype=FLOAT64), out=total)
        np.add(total, np.matmul(group[: len(rows) - whole], rows[whole:]), out=total)

    _in_order(block, dy, max(SUMMED_ROWS, BLOCK // dy.shape[-1]))
    np.copyto(db, total, casting="same_kind")
    return db


def _in_order(block: Callable[[Index, Scratch], None], x: Array, rows: int) -> None:
    """Run `block` for `rows` rows of `x` after the others: BLAS has threads of its own, and sums have an order."""
    scratch = Scratch()
    for index in cut(x.shape[:-1], max(1, BLOCK // rows)):
        block(index, scratch)


def _rows(x: Array, compute: np.dtype[Any]) -> Array:
    """`x` with two dimensions, in the dtype to compute in: a view where there is one, else a copy."""
    if x.ndim != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.dtype == compute else x.astype(compute)


def _is_matrix(x: Array, compute: np.dtype[Any]) -> bool:
    """Whether BLAS takes all rows of `x` at once, without a copy that grows with their number."""
    return bool(x.dtype == compute and x.flags.c_contiguous)
