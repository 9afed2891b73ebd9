"""Libraries whose arrays kernels take and return: PyTorch and JAX.

Neither library is imported here: a caller that has arrays of one has imported it. A call whose first array belongs to
one of them is found a `LibraryBackend`, and `plugrad.backends.calls.in_library` makes it.
"""

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plugrad.backends import host, tensors
from plugrad.backends.backend import Backend

ALIGNMENT = 64  # bytes: JAX shares memory that begins at a multiple of it, and copies other memory


class Library(Protocol):
    """A library whose arrays kernels take and return."""

    name: str

    def on_gpu(self, array: Any) -> bool:
        """Whether the memory of an array of the library is that of an NVIDIA GPU."""

    def handed_back(self, result: Any) -> Any:
        """A result, NumPy's or CuPy's, as an array of the library, in the same memory where that is possible."""

    def stream(self, array: Any) -> contextlib.AbstractContextManager[Any]:
        """The context in which CuPy computes on `array`, which lies on a GPU."""


class _PyTorch:
    name = "PyTorch"

    def on_gpu(self, array: Any) -> bool:
        return bool(array.is_cuda)

    def handed_back(self, result: Any) -> Any:
        torch: Any = sys.modules["torch"]
        is_bfloat16 = result.dtype.kind == "V"  # as ml_dtypes defines it
        if is_bfloat16:
            result = result.view(np.int16)
        if not isinstance(result, np.ndarray):
            tensor = torch.from_dlpack(result)
        else:
            tensor = torch.from_numpy(result if result.flags.writeable else result.copy())
        return tensor.view(torch.bfloat16) if is_bfloat16 else tensor

    def stream(self, array: Any) -> contextlib.AbstractContextManager[Any]:
        torch, cupy = sys.modules["torch"], sys.modules["cupy"]
        if array.device.index != cupy.cuda.runtime.getDevice():  # CuPy refuses its stream, and the call the tensor
            return contextlib.nullcontext()
        current = torch.cuda.current_stream(array.device)
        external: contextlib.AbstractContextManager[Any] = cupy.cuda.ExternalStream(
            current.cuda_stream, array.device.index
        )
        return external


class _Jax:
    name = "JAX"

    def on_gpu(self, array: Any) -> bool:
        return not array.is_deleted() and bool(next(iter(array.devices())).platform == "gpu")

    def handed_back(self, result: Any) -> Any:
        jax: Any = sys.modules["jax"]
        if isinstance(result, np.ndarray) and (result.dtype.kind == "V" or not result.flags.writeable):
            return jax.numpy.array(result)  # DLPack has neither ml_dtypes' bfloat16 nor read-only arrays
        return jax.dlpack.from_dlpack(result)

    def stream(self, array: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()  # DLPack orders the work of CuPy after that of JAX, and JAX's after it


PYTORCH, JAX = _PyTorch(), _Jax()


def library_of(kind: type) -> Library | None:
    """The library of arrays of type `kind`; None for NumPy's, CuPy's and those of other libraries."""
    if tensors.is_tensor_type(kind):
        return PYTORCH
    array: Any = getattr(sys.modules.get("jax"), "Array", None)
    return JAX if array is not None and issubclass(kind, array) else None


class Foreign(NamedTuple):
    """The library of the arrays of a call, and the backend that computes it.

    Attributes
    ----------
    library : Library
        The library in whose arrays results come back.
    inner : Backend
        The backend that computes: it reads arrays of that library, and makes results that the library can share.
    """

    library: Library
    inner: Backend


class LibraryBackend(Backend):
    """The backend of calls whose first array belongs to another library."""

    __slots__ = ()

    def __init__(self, plain: Backend, library: Library | None) -> None:
        for name in Backend.__slots__:
            setattr(self, name, getattr(plain, name))
        if library is not None:
            self.foreign = Foreign(library, LibraryBackend(plain, None))
        elif plain.arrays == host.ARRAYS:
            self.empty = _aligned(plain.empty)


def _aligned(empty: Callable[..., Any]) -> Callable[..., npt.NDArray[Any]]:
    """The hook `empty` of a backend over NumPy arrays, for results whose memory every library can share."""

    def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        memory = empty((size + ALIGNMENT,), np.dtype(np.uint8))
        start = -memory.__array_interface__["data"][0] % ALIGNMENT
        found: npt.NDArray[Any] = memory[start : start + size].view(dtype).reshape(shape)
        return found

    return aligned


def refuse_immutable(what: str, x: Any, remedy: str) -> None:
    """Raise a `TypeError` for an array, called `what`, of a library whose arrays cannot be written to."""
    if library_of(type(x)) is JAX:
        raise TypeError(f"{what}: expected an array that can be written, got a JAX array, which is immutable; {remedy}")
