"""The gradient of the biases."""

from typing import Any

import numpy as np

from plugrad.backends.cpu.blocks import Array
from plugrad.backends.numba.arrays import LIGHT, contiguous, copy_result, result_array
from plugrad.backends.numba.compiling import compiled
from plugrad.backends.numba.memory import scratch
from plugrad.backends.numba.team import share_work
from plugrad.backends.numba.vector import narrow, widen

COLUMNS = 512  # columns that are summed at once: so many sums stay in the first-level cache

# Rows in a partial sum: sums of thousands of numbers, one after another, would lose digits.
SUMMED_ROWS = 64


def column_sums(dy: Array, db: Array) -> None:
    """``db = sum of the rows of dy``."""
    rows, sums = contiguous(dy).reshape(-1, db.size), result_array(db)
    share_work(_sum_columns, -(-db.size // COLUMNS), LIGHT * len(rows) * COLUMNS, rows, sums)
    copy_result(sums, db)


@compiled(in_pieces=True)
def _sum_columns(start: int, stop: int, dy: Any, db: Any) -> None:
    """``db = sum of the rows of dy``, for pieces of `COLUMNS` columns."""
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
