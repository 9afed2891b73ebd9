"""Moving arrays to the current backend and back."""

from typing import Any

import numpy as np

from plugrad.backends import host, registry, tensors
from plugrad.backends.backend import is_array_of
from plugrad.backends.choice import AUTO_ORDER
from plugrad.backends.selection import current


def asarray(x: Any) -> Any:
    """Move `x` to the current backend; kernels never move data themselves.

    Parameters
    ----------
    x : array_like
        A NumPy array, an array of any backend, a sequence or a number.

    Returns
    -------
    array
        An array of the current backend; `x` itself where it is one already.

    Examples
    --------
    >>> from plugrad import backends
    >>> with backends.use("numpy"):
    ...     backends.asarray([1.0, 2.0])
    array([1., 2.])
    """
    backend = current()
    if backend.owns(type(x)):
        return x
    return backend.asarray(to_numpy(x))


def to_numpy(x: Any) -> Any:
    """Move `x`, an array of any backend, to host memory as a NumPy array.

    Parameters
    ----------
    x : array_like
        A NumPy array, an array of any backend, a sequence or a number.

    Returns
    -------
    numpy.ndarray
        `x` itself where it is one already.

    Raises
    ------
    TypeError
        For an array in the memory of a device that neither the current backend nor a built-in one reads.

    Examples
    --------
    >>> from plugrad import backends, kernels as K
    >>> backends.to_numpy(K.relu([-1.0, 2.0]))
    array([0., 2.])
    """
    kind = type(x)
    if kind is np.ndarray:
        return x
    selected = current()
    if selected.owns(kind):
        return selected.to_numpy(x)
    for package, names in AUTO_ORDER.items():
        if package != "numpy" and is_array_of(kind, package):
            return registry.get(names[-1]).to_numpy(x)
    if not tensors.is_tensor(x) and host.on_device(x):
        raise TypeError(
            f"to_numpy: x: expected an array of a known backend or in host memory, got a {kind.__module__}."
            f"{kind.__qualname__} on a device; select the backend that computes on it, or copy it to the host first"
        )
    return host.take("to_numpy: x", x)
