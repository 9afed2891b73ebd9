"""Blocks: pieces of arrays that stay in cache. They depend on the shape alone, never on the number of threads."""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = Any  # what cuts a block out of an array: an index tuple, or ... for all of it

# Elements in a block: 2 MiB of float32, so that a block and the buffers for it stay in the last-level cache. Of 2**15
# to 2**20 it was the fastest for softmax, its gradient and the loss with gradient from 1024 x 1024 to 512 x 50257, on
# two cores of an EPYC: 2**16 fits the second-level cache but takes half as long again, since between two NumPy calls
# a thread needs Python's lock, and to hand it from one thread to the other costs more than a cache miss.
BLOCK = 2**19

quietly = np.errstate(all="ignore")  # decorates functions in which NaN and infinities are results like any other


def cut(lead: tuple[int, ...], width: float) -> list[Index]:
    """Indices that cut arrays into blocks along their leading axes `lead`, each entry of which has `width` elements."""
    most = max(1, int(BLOCK / width))  # entries in a block
    if math.prod(lead) <= most:
        return [...]
    axis, entries = len(lead) - 1, 1
    while entries * lead[axis] <= most:
        entries *= lead[axis]
        axis -= 1
    step = max(1, most // entries)
    pieces = [slice(start, start + step) for start in range(0, lead[axis], step)]
    return [(*outer, piece) for outer in np.ndindex(*lead[:axis]) for piece in pieces]
