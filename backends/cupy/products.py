"""Matrix products by cuBLAS, and the sums of columns.

cuBLAS's ``gemmEx`` adds to the values of the result. The biases are written there first, so that the sum is rounded to
16 bits once, at the memory traffic of a separate pass for the biases.
"""

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from plugrad.backends.cupy import blas
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.rows import MOST_BLOCKS, PLACES, WARP, contiguous, macros, write_contiguous
from plugrad.backends.matrix_layout import is_row_major, layout
from plugrad.backends.options import COMPUTE, FLOAT32, FLOAT64

# The values of cudaDataType_t (library_types.h) and cublasComputeType_t (cublas_api.h).
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
COMPUTE_TYPE = {FLOAT32: 68, FLOAT64: 70}
ANY_ALGORITHM = -1

# cuBLAS sums in float32, and over a million rows a sum of like numbers could drift by thousands of ulp. A product over
# more rows than these is the sum of several products.
SUMMED_ROWS = 2**13

MOST_ROWS = 2**30  # the sizes of cuBLAS are 32-bit

COLUMN_SUM_THREADS = 16  # threads for each of the 32 columns of a block
LEAST_ROWS = 256  # the least number of rows of a block, if several blocks share the rows
THREADS = 256  # the launch bounds of the kernels
SUMS = ("column_sums", "join_column_sums", "narrow_all")

# cuBLAS reads the factors alpha and beta in its compute type.
ZERO = {dtype: np.zeros((), dtype) for dtype in COMPUTE_TYPE}
ONE = {dtype: np.ones((), dtype) for dtype in COMPUTE_TYPE}


def affine(x: Array, w: Array, b: Array | None, out: Array) -> None:
    """``out = x w + b``."""
    w = matrix(w.copy() if out is w else w)
    rows = matrix(_rows(x.copy() if out is x else x))

    def write(target: Array) -> None:
        if b is not None:
            target[...] = b
        product(rows, w, target.reshape(-1, target.shape[-1]), adds=b is not None)

    write_contiguous(out, write)


def affine_backward(dy: Array, x: Array, w: Array, dx: Array | None, dw: Array | None, db: Array | None) -> None:
    """``dx = dy w^T``, ``dw = x^T dy``, ``db = sum of the rows of dy``; a result that is None is not computed."""
    slopes = matrix(_rows(dy))
    results = []
    if dw is not None:
        results.append((dw, _weights(slopes, matrix(_rows(x)), _aside(dw, dy, x, w))))
    if db is not None:
        results.append((db, column_sums(contiguous(slopes), _aside(db, dy, x, w))))
    if dx is not None:
        target = _aside(dx, dy, x, w)
        product(slopes, matrix(w).T, _rows(target), adds=False)
        results.append((dx, target))
    for wanted, found in results:
        if found is not wanted:
            wanted[...] = found


def _rows(x: Array) -> Array:
    """`x` with two dimensions."""
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _aside(target: Array, *arguments: Array) -> Array:
    """`target`, or a new array if it is an argument that is still to be read, or is not C-contiguous."""
    if target.flags.c_contiguous and not any(target is argument for argument in arguments):
        return target
    return cupy.empty(target.shape, target.dtype)


def matrix(x: Array) -> Array:
    """`x`, or a copy, with contiguous rows or columns, as cuBLAS needs."""
    return x if is_row_major(x) or is_row_major(x.T) else cupy.ascontiguousarray(x)


def _weights(dy: Array, x: Array, dw: Array) -> Array:
    """``dw = x^T dy``."""
    rows = len(x)
    if rows <= SUMMED_ROWS:
        product(x.T, dy, dw, adds=False)
        return dw
    compute = COMPUTE[dw.dtype]
    total = dw if dw.dtype == compute else cupy.empty(dw.shape, compute)
    for start in range(0, rows, SUMMED_ROWS):
        part = slice(start, start + SUMMED_ROWS)
        product(matrix(x[part]).T, matrix(dy[part]), total, adds=start > 0)
    if total is not dw:
        blocks = min(MOST_BLOCKS, -(-dw.size // THREADS))
        kernel("narrow_all", instance(dw.dtype))((blocks,), (THREADS,), (dw.size, total, dw))
    return dw


def product(a: Array, b: Array, out: Array, adds: bool) -> None:
    """``out = a b`` or ``out += a b``, of results of `matrix` or their transposes; `out` is row-major."""
    for start in range(0, len(a), MOST_ROWS):
        part = slice(start, start + MOST_ROWS)
        _gemm(matrix(a[part]), b, out[part], adds)


def _gemm(a: Array, b: Array, out: Array, adds: bool) -> None:
    """Call cuBLAS once. It is column-major, so it computes ``out^T = b^T a^T`` of the same memory."""
    (m, n), k = out.shape, len(b)
    compute = COMPUTE[out.dtype]
    (is_a_transposed, a_step), (is_b_transposed, b_step) = layout(a), layout(b)
    blas.gemm_ex(
        *(int(is_b_transposed), int(is_a_transposed)),
        *(n, m, k),
        ONE[compute].ctypes.data,
        *(b.data.ptr, _type(b.dtype), b_step),
        *(a.data.ptr, _type(a.dtype), a_step),
        (ONE if adds else ZERO)[compute].ctypes.data,
        *(out.data.ptr, _type(out.dtype), layout(out)[1]),
        COMPUTE_TYPE[compute],
        ANY_ALGORITHM,
    )


@functools.cache  # NumPy takes microseconds to find the name of a dtype
def _type(dtype: np.dtype[Any]) -> int:
    return TYPES[dtype.name]


def column_sums(x: Array, sums: Array) -> Array:
    """Write the sums of the columns, computed in float64, to `sums`, and return it."""
    rows, columns = x.shape
    code, tiles = instance(x.dtype), -(-columns // WARP)
    parts = max(1, min(rows // LEAST_ROWS, PLACES * 4 // tiles))
    found: Any = cupy.empty((parts, columns), FLOAT64) if parts > 1 else 0
    given = (rows, columns, parts, x, found, sums)
    kernel("column_sums", code)((tiles * parts,), (WARP, COLUMN_SUM_THREADS), given)
    if parts > 1:
        blocks = min(MOST_BLOCKS, -(-columns // THREADS))
        kernel("join_column_sums", code)((blocks,), (THREADS,), (columns, parts, found, sums))
    return sums


@functools.cache
def instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for column sums of arrays of a dtype."""
    return Instance("sums.cu", macros(dtype, 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Every instance for arrays of a dtype, and the names of its kernels."""
    yield instance(dtype), SUMS
