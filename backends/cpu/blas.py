"""Matrix products that are added to an array, by the BLAS that NumPy uses.

NumPy writes a product to an array, but cannot add it to one without another array of that size. Its BLAS can: it is
called directly if it is a known one.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.backends.cpu.blocks import Array
from plugrad.backends.matrix_layout import is_row_major, layout
from plugrad.backends.options import FLOAT32, FLOAT64

# Names of the C interface; the first is that of NumPy's wheels. Those with 64 take sizes of 64 bits.
NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_", "scipy_cblas_{}gemm", "cblas_{}gemm")

ROW_MAJOR, FORMS = 101, (111, 112)  # CBLAS_LAYOUT and CBLAS_TRANSPOSE of the reference BLAS

LARGEST = 2**31 - 1  # a size that fits 32 bits

# Of a result whose columns lie one behind the other, BLAS computes so many at a time. OpenBLAS copies rows of `b` to
# memory that it keeps: of 256 rows and 50,257 columns 50 MB on two threads. On an EPYC the whole product took as
# long as parts of 16,384 columns, and parts of 8,192 took a twentieth longer.
COLUMNS = 2**14

PIECE = 2**19  # elements of a product that NumPy adds: 2 MiB of float32, which stay in cache


# The most numbers that are summed by a product with ones: for more BLAS may use threads, and its sums then depend on
# their number.
MOST_SUMMED = 1024


@functools.cache
def ones(dtype: np.dtype[Any]) -> Array:
    """`MOST_SUMMED` ones, to sum rows or columns by a matrix product."""
    array = np.ones(MOST_SUMMED, dtype)
    array.flags.writeable = False
    return array


@functools.cache
def _gemm(dtype: np.dtype[Any]) -> Callable[..., None] | None:
    """``C = alpha op(A) op(B) + beta C`` for a dtype; None if NumPy's BLAS is not a known one."""
    kind = {FLOAT32: "s", FLOAT64: "d"}[dtype]
    real: Any = {FLOAT32: ctypes.c_float, FLOAT64: ctypes.c_double}[dtype]
    library = threads.blas_library()
    for name in NAMES:
        if hasattr(library, name.format(kind)):
            function = getattr(library, name.format(kind))
            size, address = ctypes.c_int64, ctypes.c_void_p  # where sizes have 32 bits, they are the lower half
            order = [ctypes.c_int] * 3
            function.argtypes = [*order, size, size, size, real, address, size, address, size, real, address, size]
            function.restype = None
            return function  # type: ignore[no-any-return]
    return None


def is_matrix(x: Array, dtype: np.dtype[Any]) -> bool:
    """Whether BLAS can read `x`, of two dimensions, as it is: rows or columns side by side, of that dtype."""
    return x.dtype == dtype and x.flags.aligned and any(is_row_major(y) for y in (x, x.T))


def gemm(a: Array, b: Array, out: Array, accumulate: bool) -> None:
    """``out = a b``, or ``out += a b``; fast if `is_matrix` holds for all three.

    A sum may have a wider dtype than `a` and `b`.
    """
    multiply = add_product if accumulate else np.matmul
    if out.shape[1] <= COLUMNS or is_row_major(out):
        multiply(a, b, out)
        return
    for first in range(0, out.shape[1], COLUMNS):
        part = slice(first, first + COLUMNS)
        multiply(a, b[:, part], out[:, part])


def add_product(a: Array, b: Array, out: Array) -> None:
    """``out += a b``."""
    can = all(is_matrix(x, out.dtype) for x in (a, b, out)) and max(*a.shape, *b.shape) <= LARGEST
    function = _gemm(out.dtype) if can else None
    if function is None:
        _add_in_pieces(a, b, out)
        return
    if layout(out)[0]:  # its transpose is the product of theirs
        a, b, out = b.T, a.T, out.T
    (transpose_a, lda), (transpose_b, ldb), (_, ldc) = map(layout, (a, b, out))
    (m, n), k = out.shape, a.shape[1]
    forms = FORMS[transpose_a], FORMS[transpose_b]
    alpha = beta = 1.0
    function(
        ROW_MAJOR, *forms, m, n, k, alpha, a.ctypes.data, lda, b.ctypes.data, ldb, beta, out.ctypes.data, ldc
    )  # in the order of the reference BLAS


def _add_in_pieces(a: Array, b: Array, out: Array) -> None:
    """The same by NumPy, in the memory of one piece of the columns."""
    width = max(1, PIECE // max(1, len(a)))
    for start in range(0, b.shape[1], width):
        piece = out[:, start : start + width]
        np.add(piece, np.matmul(a, b[:, start : start + width]), out=piece)
