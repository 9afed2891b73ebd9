"""The few forms of arrays that compiled code is made for: C-contiguous, aligned and writable."""

import numpy as np

from plugrad.backends.cpu.blocks import Array

LIGHT = 0.3  # the work on an element of a kernel without exponentials, to that of softmax


class _Lent:
    """The memory of a read-only array."""

    def __init__(self, x: Array) -> None:
        self.owner = x
        address, _ = x.__array_interface__["data"]
        self.__array_interface__ = {**x.__array_interface__, "data": (address, False)}


def contiguous(x: Array) -> Array:
    """`x`, C-contiguous and aligned; float16 and bfloat16 as integers of the same bits, as compiled code reads them.

    A read-only array is presented as writable, though no kernel writes to it: numba would compile again for each
    argument that is read-only.
    """
    if x.itemsize == 2 and x.dtype.kind not in "iu":
        x = x.view(np.int16 if x.dtype == np.float16 else np.uint16)
    if x.flags.carray:
        return x
    return np.asarray(_Lent(x)) if x.flags.c_contiguous and x.flags.aligned else x.copy(order="C")


def result_array(out: Array) -> Array:
    """The array to compute a result in: `out` if it is C-contiguous and aligned, else a new one (see `copy_result`)."""
    return contiguous(out if out.flags.carray else np.empty(out.shape, out.dtype))


def copy_result(y: Array, out: Array) -> None:
    """Copy a result from its `result_array`, of any shape, to `out`, unless it is there already."""
    if not out.flags.carray:
        out[...] = y.view(out.dtype).reshape(out.shape)


def are_plain(arrays: tuple[Array, ...]) -> bool:
    """Whether compiled code takes arrays of one dtype as they are: `contiguous` would return them."""
    for array in arrays:
        if not array.flags.carray:
            return False
    return arrays[0].itemsize > 2
