"""Conversions between the caller's arrays and NumPy arrays of float64, in which differences are computed."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from plugrad import backends
from plugrad.backends.options import FLOAT64, is_supported
from plugrad.backends.selection import backend_for

Float64Array: TypeAlias = npt.NDArray[np.float64]


def machine_epsilon(y: npt.NDArray[Any]) -> float:
    """Return the machine epsilon of a dtype; that of float64 for integers."""
    if y.dtype.name == "bfloat16":  # NumPy does not know it
        return 2.0**-7
    return float(np.finfo(y.dtype if y.dtype.kind == "f" else FLOAT64).eps)


def evaluate(f: Callable[[Any], Any], x: Float64Array) -> npt.NDArray[Any]:
    """Call a function, and return its result as a NumPy array of real numbers."""
    y = np.asarray(backends.to_numpy(f(as_argument(x))))
    if y.dtype.kind not in "iub" and not is_supported(y.dtype):
        raise TypeError(f"gradcheck: expected a function with real numbers for results, got dtype {y.dtype}")
    return y


def as_argument(x: Float64Array) -> Float64Array | float:
    """Return a number as a Python float, and an array as a copy that the function may keep or overwrite."""
    return x.copy() if x.ndim else float(x)


def as_float64(name: str, x: Any) -> Float64Array:
    """Convert an argument to a NumPy array of float64."""
    array = np.asarray(backends.to_numpy(x) if hasattr(x, "dtype") else x)
    if array.dtype.kind not in "iub" and not is_supported(array.dtype):
        raise TypeError(f"gradcheck: {name}: expected real numbers, got dtype {array.dtype}")
    return array.astype(FLOAT64)


def to_device_of(x: npt.NDArray[Any], like: Any) -> Any:
    """Return a NumPy array as an array of the same backend and device as another one."""
    return backend_for(like).asarray(x) if hasattr(like, "dtype") else x


def as_tuple(results: Any) -> tuple[Any, ...]:
    """Return the results of a kernel as a tuple, also if there is only one."""
    return results if isinstance(results, tuple) else (results,)
