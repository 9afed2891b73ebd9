"""Arrays in host memory: how a backend that computes on NumPy arrays takes them in and gives them back.

Every function here is one of the optional hooks of a backend (see `registry.Backend`) and the default for it,
so that a backend over NumPy arrays needs nothing but its kernels.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

CPU_DLPACK_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost (pinned): the DLPack device types that the host can read
OVERLAP_SEARCH: Any = 10_000  # candidate solutions that numpy.shares_memory may try before an overlap is assumed


def take(what: str, x: Any) -> npt.NDArray[Any]:
    """The argument `x`, called `what` in messages, as a plain NumPy array, without moving data between devices."""
    kind = type(x)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}: expected an array without a mask, got a masked array; call its .filled(value) first")
    if on_device(x):
        raise TypeError(
            f"{what}: expected an array in host memory, got a {kind.__module__}.{kind.__qualname__} on a device; "
            f"call plugrad.backends.to_numpy on it first, or select the backend that computes there"
        )
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what}: expected an array or numbers in nested sequences, got {kind.__qualname__}: {error}"
        ) from error


def asarray(x: Any) -> npt.NDArray[Any]:
    """`x` as a NumPy array: no copy where `x` is one already or lends its host memory."""
    return np.asarray(x)


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """`x`, an array of a host backend, as a NumPy array, without a copy."""
    return np.asarray(x)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A new C-contiguous array whose values are yet undefined."""
    return np.empty(shape, dtype)


def warmup(kernels: list[str], dtypes: list[np.dtype[Any]]) -> None:
    """Nothing: NumPy is compiled already."""


def on_device(x: Any) -> bool:
    """Whether `x` says by the DLPack protocol that its memory is not the host's."""
    device = getattr(x, "__dlpack_device__", None)
    return device is not None and device()[0] not in CPU_DLPACK_DEVICES


def overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> str:
    """How the memory of two arrays relates: "none", "same" (the very same elements) or "partial"."""
    if a is b:
        return "same"
    if (a.base is None and b.base is None) or not np.may_share_memory(a, b):  # the first is cheap: each has its own
        return "none"
    if (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"] == b.__array_interface__["data"]
    ):
        return "same"
    try:
        return "partial" if np.shares_memory(a, b, max_work=OVERLAP_SEARCH) else "none"
    except np.exceptions.TooHardError:
        return "partial"
