"""How a BLAS reads a matrix, on any device."""

from typing import Any


def is_row_major(x: Any) -> bool:
    """Whether the elements of a row lie side by side, and one row behind the other; of arrays of any library."""
    (rows, columns), (down, right), size = x.shape, x.strides, x.dtype.itemsize
    return bool((columns <= 1 or right == size) and (rows <= 1 or (down % size == 0 and down >= columns * size)))


def layout(x: Any) -> tuple[bool, int]:
    """Whether a BLAS reads a matrix as the transpose of one, and its leading dimension: the step from row to row."""
    is_transposed = not is_row_major(x)
    rows = x.T if is_transposed else x
    return is_transposed, max(1, rows.shape[1], rows.strides[0] // x.dtype.itemsize if len(rows) > 1 else 0)
