"""Blocks: pieces of arrays that stay in cache. They depend on the shape alone, never on the number of threads."""

import functools
import math
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = Any  # what cuts a block out of an array: an index tuple, or ... for all of it

# Elements in a block: 2 MiB of float32, so that a block and the buffers for it stay in the last-level cache. Of 2**15
# to 2**20 it was the fastest for softmax, its gradient and the loss with gradient from 1024 x 1024 to 512 x 50257, on
# two cores of an EPYC: 2**16 fits the second-level cache but takes half as long again, since between two NumPy calls
# a thread needs Python's lock, and to hand it from one thread to the other costs more than a cache miss.
BLOCK = 2**19

Function = TypeVar("Function", bound=Callable[..., Any])


def with_errors(**modes: Any) -> Callable[[Function], Function]:
    """Decorate functions, which take positional arguments, to run with these modes of `numpy.seterr`.

    As ``@numpy.errstate(**modes)``, which takes 0.4 us to enter and to leave, where this takes 0.15. NumPy keeps the
    modes in a context variable: which one, and the value that stands for these modes, a context tells in which nothing
    else is set.
    """
    context = Context()
    context.run(np.seterr, **modes)
    ((variable, value),) = context.items()

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            token = variable.set(value)
            try:
                return function(*args)
            finally:
                variable.reset(token)

        return cast(Function, call)

    return decorate


quietly = with_errors(all="ignore")  # for functions in which NaN and infinities are results like any other


def position(index: Index, lead: tuple[int, ...]) -> int:
    """The position in C order of the first entry that an index of `cut` takes out of an array of shape `lead`."""
    place = 0
    for axis, length in enumerate(lead):
        entry = index[axis] if index is not ... and axis < len(index) else 0
        place = place * length + (entry.start if isinstance(entry, slice) else entry)
    return place


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
