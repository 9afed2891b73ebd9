"""How arrays of any strides become the few forms that compiled code is made for."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from plugrad.backends.numba import elementwise, lanes as lanes_, team

Array: TypeAlias = npt.NDArray[Any]

# Up to this many classes side by side, several rows are computed at once, one in each lane of the vector registers.
FEW_CLASSES = 24

# Classes that a tile may have, 16 lanes wide: 2 MiB of float32 for each tile that a kernel works on.
MOST_IN_TILE = 2**15

LIGHT = 0.15  # the work on an element of a kernel without exponentials, to that of softmax


class _Lent:
    """The memory of a read-only array."""

    def __init__(self, x: Array) -> None:
        self.owner = x
        address, _ = x.__array_interface__["data"]
        self.__array_interface__ = {**x.__array_interface__, "data": (address, False)}


def raw(x: Array) -> Array:
    """`x`, C-contiguous and aligned, 16-bit numbers as the integers that stand for them in compiled code.

    A read-only array comes as if it could be written, which no kernel does: code would be compiled once more for each
    argument that cannot be.
    """
    if x.itemsize == 2 and x.dtype.kind not in "iu":
        x = x.view(np.int16 if x.dtype == np.float16 else np.uint16)
    if x.flags.carray:
        return x
    return np.asarray(_Lent(x)) if x.flags.c_contiguous and x.flags.aligned else x.copy(order="C")


def written(out: Array, compute: Callable[[Array], None]) -> None:
    """Call `compute` with `out`, or, if it is not contiguous or aligned, with an array that is then copied to it."""
    if out.flags.carray:
        compute(raw(out))
    else:
        result = np.empty(out.shape, out.dtype)
        compute(raw(result))
        out[...] = result


def is_direct(out: Array, reads: list[Array]) -> bool:
    """Whether a kernel may compute in the memory of a result (see `memory.target`)."""
    return out.itemsize > 2 and all(read is not out for read in reads)


def over_elements(kernel: Callable[..., None], work: float, *arrays: Array) -> None:
    """Run a kernel of `elementwise` on arrays of one shape, the last one for the result."""
    *reads, out = arrays
    flat = [raw(array).reshape(-1) for array in reads]
    units, direct = -(-out.size // elementwise.ELEMENTS), is_direct(out, reads)
    written(out, lambda y: team.run(kernel, units, work * elementwise.ELEMENTS, *flat, direct, y.reshape(-1)))


def by_lanes(shape: tuple[int, ...], axis: int) -> bool:
    """Whether rows along `axis` are for the kernels of `lanes`."""
    return shape[axis] <= FEW_CLASSES or math.prod(shape[axis + 1 :]) != 1


def too_long(shape: tuple[int, ...], axis: int) -> bool:
    """Whether rows that do not lie side by side are so long that a tile of them would take too much memory."""
    return shape[axis] > MOST_IN_TILE and math.prod(shape[axis + 1 :]) != 1


def over_rows(
    row_kernel: Callable[..., None], lane_kernel: Callable[..., None], axis: int, work: float, *arrays: Array
) -> None:
    """Run a kernel of `rows` or of `lanes` on arrays of one shape, the last one for the result."""
    if too_long(arrays[0].shape, axis):
        arrays, axis = tuple(np.moveaxis(array, axis, -1) for array in arrays), arrays[0].ndim - 1
    *reads, out = arrays
    if by_lanes(out.shape, axis):
        units, size, form = tiles(out.shape, axis)
        flat = [raw(array).reshape(-1) for array in reads]
        written(out, lambda y: team.run(lane_kernel, units, work * size, *flat, *form, y.reshape(-1)))
    else:
        classes = out.shape[axis]
        matrices = [raw(array).reshape(-1, classes) for array in reads]
        written(
            out,
            lambda y: team.run(
                row_kernel,
                out.size // classes,
                work * classes,
                *matrices,
                is_direct(out, reads),
                y.reshape(-1, classes),
            ),
        )


@functools.lru_cache(1024)
def tiles(shape: tuple[int, ...], axis: int) -> tuple[int, int, tuple[int, int, int]]:
    """How many tiles, of how many elements each, and ``classes, inner, lanes``, which tell the kernels of `lanes`.

    A tile has 16 to 256 lanes, so that it stays in the first-level cache with what goes with it, and few without a row.
    """
    classes, inner, outer = shape[axis], math.prod(shape[axis + 1 :]), math.prod(shape[:axis])
    together = inner * outer if inner < lanes_.SIDE_BY_SIDE else inner
    lanes = max(16, min(256, 2**12 // classes // 16 * 16, -(-together // 16) * 16))
    units = -(-outer // (lanes // inner)) if inner < lanes_.SIDE_BY_SIDE else outer * -(-inner // lanes)
    return units, classes * lanes, (classes, inner, lanes)
