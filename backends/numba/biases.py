"""The biases of the affine layer and their gradients: what it needs beside matrix products."""

from typing import Any

import numpy as np

from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.memory import scratch
from plugrad.backends.numba.vector import narrow, widen

COLUMNS = 512  # columns that are summed at once: so many sums stay in the first-level cache

# Rows that are summed by themselves: sums of thousands of numbers, one after another, would lose digits.
SUMMED_ROWS = 64


@compiled()
def add_bias(start: int, stop: int, b: Any, y: Any) -> None:
    """``y += b``, row by row."""
    for i in range(start, stop):
        row = y[i]
        for j in range(row.size):
            row[j] += b[j]


@compiled()
def column_sums(start: int, stop: int, dy: Any, db: Any) -> None:
    """``db = sum of the rows of dy``, for so many pieces of `COLUMNS` columns."""
    part, total = scratch(dy, COLUMNS), np.empty(COLUMNS)
    for piece in range(start, stop):
        sums = db[piece * COLUMNS : (piece + 1) * COLUMNS]
        part[:] = part.dtype.type(0)
        total[:] = 0.0
        for i in range(len(dy)):
            row = dy[i][piece * COLUMNS : (piece + 1) * COLUMNS]
            for j in range(row.size):
                part[j] += widen(row[j])
            if i % SUMMED_ROWS == SUMMED_ROWS - 1 or i == len(dy) - 1:
                for j in range(row.size):
                    total[j] += part[j]
                    part[j] = part.dtype.type(0)
        for j in range(sums.size):
            sums[j] = narrow(part.dtype.type(total[j]), sums[j])
