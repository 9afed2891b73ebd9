"""The default hooks of a backend (see `plugrad.backends.contract.Hooks`): those of NumPy arrays in host memory.

With them a backend that computes on NumPy arrays needs nothing but its kernels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plugrad.backends import tensors

if TYPE_CHECKING:
    from plugrad.backends.contract import Overlap, PreparedCall

ARRAYS = "numpy"
NATIVE: type | None = np.ndarray
OPTIONS: Mapping[str, Any] = {"check": False}
STAND_INS: Mapping[str, str] = {}

CPU_DLPACK_DEVICES = (1, 3)  # the DLPack device types that the host can read: kDLCPU, and kDLCUDAHost (pinned memory)
OVERLAP_SEARCH: Any = 10_000  # candidate solutions that numpy.shares_memory tries before an overlap is assumed


def probe() -> str | None:
    """None: the backend can run here."""
    return None


def describe() -> Mapping[str, str]:
    """Nothing."""
    return {}


def take(what: str, x: Any) -> npt.NDArray[Any]:
    """The argument `x`, called `what` in messages, as a plain NumPy array; no data moves between memories."""
    kind = type(x)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{what}: expected an array without a mask, got a masked array; call its .filled(value) first")
    if kind is not np.ndarray and tensors.is_tensor(x):
        return tensors.seen_by_numpy(what, x)
    if kind is not np.ndarray and (problem := tensors.problem_of_jax(x)):
        raise TypeError(f"{what}: expected an array, got {problem}")
    if on_device(x):
        raise TypeError(
            f"{what}: expected an array in host memory, got a {kind.__module__}.{kind.__qualname__} on a device; "
            f"call plugrad.backends.to_numpy on it first, or select the backend that computes there"
        )
    if kind is not np.ndarray and (remedy := _remedy(x)):
        raise TypeError(f"{what}: expected an array or numbers in nested sequences, got {name_of(kind)}; {remedy}")
    if kind is not np.ndarray and _is_nullable(x):
        return _without_missing(what, x)
    try:
        return np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{what}: expected an array or numbers in nested sequences, got {kind.__qualname__}: {error}"
        ) from error


def name_of(kind: type) -> str:
    """The name of a type in messages, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _remedy(x: Any) -> str:
    """The call that makes an array of an object that NumPy would wrap as a whole, or compute without being asked to."""
    package = type(x).__module__.partition(".")[0]
    if package in ("scipy", "sparse") and hasattr(x, "nnz"):
        return "call its .toarray() first" if hasattr(x, "toarray") else "call its .todense() first"
    if package == "dask":
        return "call its .compute() first, or a kernel for each block: x.map_blocks(K.softmax)"
    if isinstance(x, Mapping):
        return "give one number per class, in the order of the classes"
    return ""


def _is_nullable(x: Any) -> bool:
    """Whether `x` is a column or a table of pandas whose dtypes have a value for what is missing."""
    return type(x).__module__.partition(".")[0] == "pandas" and any(hasattr(d, "numpy_dtype") for d in _dtypes(x))


def _dtypes(x: Any) -> list[Any]:
    dtypes: Any = getattr(x, "dtypes", getattr(x, "dtype", None))
    return list(dtypes) if hasattr(dtypes, "__iter__") else [dtypes]


def _without_missing(what: str, x: Any) -> npt.NDArray[Any]:
    """A nullable column or table of pandas in NumPy's dtypes."""
    if bool(np.asarray(x.isna()).any()):
        missing = "with missing values; call its .fillna(value) or .dropna()"
        raise TypeError(f"{what}: expected numbers, got {name_of(type(x))} {missing}")
    found: npt.NDArray[Any] = x.to_numpy(dtype=np.result_type(*[getattr(d, "numpy_dtype", d) for d in _dtypes(x)]))
    return found


def asarray(x: Any) -> npt.NDArray[Any]:
    """`x` as a NumPy array, without a copy if `x` is an array in host memory."""
    return np.asarray(x)


def to_numpy(x: Any) -> npt.NDArray[Any]:
    """`x`, an array of a host backend, as a NumPy array, without a copy."""
    return np.asarray(x)


empty = np.empty  # a new C-contiguous array with undefined contents


def warmup(kernels: list[str], dtypes: list[np.dtype[Any]]) -> None:
    """Nothing: there is nothing to compile."""


def prepare(kernel: str, *arguments: Any) -> None:
    """None: a replay calls the function itself."""


def fuse(calls: "Sequence[PreparedCall]") -> "Sequence[PreparedCall]":
    """The calls as they are."""
    return calls


def on_device(x: Any) -> bool:
    """Whether the memory of `x` is not the host's, according to the DLPack protocol."""
    device = getattr(x, "__dlpack_device__", None)
    return device is not None and device()[0] not in CPU_DLPACK_DEVICES


def overlap(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> "Overlap":
    """Compare the memory of two arrays: "none", "same" (equal elements at equal places) or "partial"."""
    if a is b:
        return "same"
    if (a.base is None and b.base is None) or not np.may_share_memory(
        a, b
    ):  # the first test is cheap: each array owns its memory
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
