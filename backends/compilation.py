"""Compiling kernels ahead of their first call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from plugrad.backends import registry
from plugrad.backends.options import is_supported
from plugrad.backends.selection import current


def warmup(
    kernels: Iterable[str | Callable[..., Any]] | None = None, dtypes: Iterable[npt.DTypeLike] = (np.float32,)
) -> None:
    """Compile kernels of the current backend now, rather than at their first call.

    A backend that compiles, such as ``numba``, takes a few seconds for a kernel and dtype, or a few milliseconds if an
    earlier process kept the code. On other backends nothing happens. Kernels are compiled for class indices of int64,
    NumPy's own integers; for another type they are compiled at the first call with it.

    Parameters
    ----------
    kernels : iterable of str or function, optional
        Kernels or their names; all by default.
    dtypes : iterable of dtype
        The dtypes of the arrays: float16, bfloat16 (of `ml_dtypes`), float32 or float64.

    Raises
    ------
    TypeError, ValueError
        If `kernels` or `dtypes` contains anything else, or is not a list.

    Examples
    --------
    >>> from plugrad import backends, kernels as K
    >>> with backends.use("numpy"):
    ...     backends.warmup([K.relu, K.relu_backward], dtypes=["float32", "float64"])
    """
    if isinstance(kernels, str) or callable(kernels) or isinstance(dtypes, str | np.dtype | type):
        raise TypeError("warmup: expected a list of kernels and a list of dtypes, got a single one")
    backend = current()
    wanted = registry.kernel_names() if kernels is None else kernels
    names = [registry.kernel_name("warmup: kernels", kernel) for kernel in wanted]
    found = []
    for given in dtypes:
        try:
            dtype = np.dtype(given)
        except TypeError as error:
            raise TypeError(f"warmup: dtypes: {error}") from error
        if not is_supported(dtype):
            raise TypeError(f"warmup: dtypes: expected float16, bfloat16, float32 or float64, got {dtype}")
        found.append(dtype)
    backend.warmup(names, found)
