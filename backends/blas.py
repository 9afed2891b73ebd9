"""Matrix products that are added to what is there, by the BLAS that NumPy uses.

NumPy multiplies matrices into an array, but cannot add a product to one without another array of that size. Its BLAS
can, and is called directly where it is one that is known.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from plugrad.backends import threads
from plugrad.backends.options import FLOAT32, FLOAT64

Array = npt.NDArray[Any]

# How a BLAS calls its C interface; the first is that of NumPy's wheels. Those with 64 take sizes of 64 bits.
NAMES = ("scipy_cblas_{}gemm64_", "cblas_{}gemm64_", "scipy_cblas_{}gemm", "cblas_{}gemm")

ROW_MAJOR, FORMS = 101, (111, 112)  # CBLAS_LAYOUT and CBLAS_TRANSPOSE of the reference BLAS

LARGEST = 2**31 - 1  # of the sizes, where they may be of 32 bits

PIECE = 2**19  # elements of a product that is added by NumPy: they stay in cache


@functools.cache
def _gemm(dtype: np.dtype[Any]) -> Callable[..., None] | None:
    """``C = alpha op(A) op(B) + beta C`` for a dtype; None where NumPy's BLAS is not known."""
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


def is_row_major(x: Any) -> bool:
    """Whether the elements of a row lie side by side, and one row behind the other; of arrays of any library."""
    (rows, columns), (down, right), size = x.shape, x.strides, x.dtype.itemsize
    return bool((columns <= 1 or right == size) and (rows <= 1 or (down % size == 0 and down >= columns * size)))


def layout(x: Any) -> tuple[bool, int]:
    """How a BLAS reads a matrix: whether as the transpose of one, and the elements from one row of that to the next."""
    is_transposed = not is_row_major(x)
    rows = x.T if is_transposed else x
    return is_transposed, max(1, rows.shape[1], rows.strides[0] // x.dtype.itemsize if len(rows) > 1 else 0)


def product(a: Array, b: Array, out: Array, adds: bool = False) -> None:
    """``out = a b``, or ``out += a b``, of arrays of two dimensions; fast where `is_matrix` is true of them.

    What is added to may be of a wider dtype than `a` and `b`.
    """
    if not adds:
        np.matmul(a, b, out=out)
        return
    can = all(is_matrix(x, out.dtype) for x in (a, b, out)) and max(*a.shape, *b.shape) <= LARGEST
    function = _gemm(out.dtype) if can else None
    if function is None:
        _add_in_pieces(a, b, out)
        return
    if layout(out)[0]:  # its transpose is the product of theirs
        a, b, out = b.T, a.T, out.T
    (is_transposed, step), (is_other_transposed, other_step), (_, result_step) = map(layout, (a, b, out))
    function(
        *(ROW_MAJOR, FORMS[is_transposed], FORMS[is_other_transposed], *out.shape, a.shape[1]),
        *(1.0, a.ctypes.data, step, b.ctypes.data, other_step),
        *(1.0, out.ctypes.data, result_step),
    )


def _add_in_pieces(a: Array, b: Array, out: Array) -> None:
    """The same by NumPy, with room for one piece of the columns."""
    width = max(1, PIECE // max(1, len(a)))
    for start in range(0, b.shape[1], width):
        piece = out[:, start : start + width]
        np.add(piece, np.matmul(a, b[:, start : start + width]), out=piece)
