"""Comparing a kernel's results with an oracle's, in the units of the record's tolerance."""

from typing import Any

import ml_dtypes
import numpy as np

from plugrad.kernels import Kernel

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def epsilon(dtype: np.dtype[Any]) -> float:
    """The distance from 1 to the next larger number."""
    return float(ml_dtypes.finfo(dtype).eps)


def as_tuple(results: Any) -> tuple[Any, ...]:
    """What a kernel returned, as a tuple."""
    return results if isinstance(results, tuple) else (results,)


def loss_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the loss of arrays of `dtype`."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def check(kernel: Kernel, got: Any, expected: tuple[Any, ...], dtype: np.dtype[Any], context: object = "") -> None:
    """Assert type, dtype and shape first, then the values."""
    got = as_tuple(got)
    assert len(got) == len(expected) == len(kernel.results), context
    for name, value, exact in zip(kernel.results, got, expected, strict=True):
        wanted = loss_dtype(dtype) if name == "loss" else dtype
        exact = np.asarray(exact)
        assert isinstance(value, np.ndarray if exact.ndim else np.ndarray | np.generic), (name, context)
        assert value.dtype == wanted, (name, context)
        assert value.shape == exact.shape, (name, context)
        if not exact.size:
            continue
        value = np.asarray(value).astype(np.float64)
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(value[~finite], exact[~finite], err_msg=f"{name} {context}")
        largest = np.abs(exact[finite]).max(initial=0.0)
        smallest = float(ml_dtypes.finfo(wanted).smallest_subnormal)
        # Half an ulp for the rounding of the result, and the record's tolerance in the dtype that is computed in.
        allowed = largest * (0.5 * epsilon(wanted) + kernel.tolerance * epsilon(loss_dtype(dtype))) + smallest
        worst = np.abs(value - exact)[finite].max(initial=0.0)
        assert worst <= allowed, f"{kernel.name}: {name} is off by {worst}, allowed {allowed} {context}"
