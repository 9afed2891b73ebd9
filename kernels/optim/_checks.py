"""Checks of the arguments of optimizers, schedules and the penalty."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from plugrad.backends.backend import Backend
from plugrad.backends.libraries import library_of, refuse_immutable
from plugrad.backends.options import COMPUTE, is_supported
from plugrad.backends.selection import backend_for
from plugrad.kernels._arguments import Array, overlaps_itself


def arrays_of(name: str, argument: str, given: Any, *, are_written: bool = False) -> tuple[Array, ...]:
    """Return arrays given as any iterable as a tuple; raise a TypeError for what looks like one and means another.

    Arrays of other libraries become views of their memory.
    """
    kind = type(given).__qualname__
    if hasattr(given, "dtype"):
        raise TypeError(f"{name}: {argument}: expected a sequence of arrays, got one array; pass (array,)")
    if isinstance(given, Mapping):
        raise TypeError(f"{name}: {argument}: expected a sequence of arrays, got {kind}; pass its values()")
    if hasattr(given, argument):  # a layer or a network
        raise TypeError(f"{name}: {argument}: expected a sequence of arrays, got {kind}; pass its {argument}")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{name}: {argument}: expected a sequence of arrays, got {kind}")
    return views_of(f"{name}: {argument}", tuple(given), are_written=are_written)


def views_of(place: str, arrays: tuple[Any, ...], *, are_written: bool = False) -> tuple[Any, ...]:
    """Return the arrays; those of other libraries as arrays of the backend in the same memory."""
    if set(map(type, arrays)) <= {np.ndarray}:
        return arrays
    return tuple([_view(f"{place}: {position}", array, are_written) for position, array in enumerate(arrays)])


def _view(what: str, array: Any, is_written: bool) -> Any:
    if library_of(type(array)) is None:
        return array
    if is_written:
        refuse_immutable(what, array, "pass a NumPy array, such as np.array(x)")
    return backend_for(array).take(what, array)


def check_updatable(place: str, arrays: tuple[Array, ...]) -> None:
    """Refuse an array that cannot be updated in place, or that shares memory with another one."""
    owners = [array for array in arrays if getattr(array, "base", array) is None]
    have_memory_of_their_own = len(set(map(id, owners))) == len(arrays)
    if have_memory_of_their_own and all(map(_is_plain, arrays)):
        return
    for position, array in enumerate(arrays):
        backend = backend_for(array)
        if not backend.owns(type(array)) or not is_supported(array.dtype):
            kind = getattr(array, "dtype", type(array).__qualname__)
            raise TypeError(f"{place}: {position}: expected a floating array to be updated, got {kind}")
        check_writeable(f"{place}: {position}", array)
        if overlaps_itself(array):
            raise ValueError(
                f"{place}: {position}: expected an array without repeated elements, got strides {array.strides}"
            )
    if have_memory_of_their_own:
        return
    for position, array in enumerate(arrays):
        backend = backend_for(array)
        for other in arrays[:position]:
            if type(other) is type(array) and backend.overlap(array, other) != "none":
                raise ValueError(f"{place}: {position}: shares memory with another one; pass each once")


def _is_plain(array: Array) -> bool:
    """Return whether an array of NumPy can be updated, and is computed on by the backend in force."""
    return (
        type(array) is np.ndarray
        and array.flags.writeable
        and array.flags.forc
        and array.dtype in COMPUTE
        and backend_for(array).native is np.ndarray
    )


def checked_grads(name: str, params: tuple[Array, ...], grads: Iterable[Array]) -> tuple[Array, ...]:
    """Return the gradients, if there is one for each parameter, of its shape and dtype."""
    grads = tuple(grads)
    if len(grads) != len(params):
        raise ValueError(f"{name}: grads: expected {len(params)}, one for each parameter, got {len(grads)}")
    for position, (parameter, gradient) in enumerate(zip(params, grads, strict=True)):
        backend = backend_for(parameter)
        if not backend.owns(type(gradient)) or gradient.dtype != parameter.dtype:
            kind = getattr(gradient, "dtype", type(gradient).__qualname__)
            hint = f"; use x.astype('{parameter.dtype}') of the data, if they cause it" if kind == "float64" else ""
            raise TypeError(f"{name}: grads: {position}: expected an array of {parameter.dtype}, got {kind}{hint}")
        if gradient.shape != parameter.shape:
            raise ValueError(f"{name}: grads: {position}: expected shape {parameter.shape}, got {gradient.shape}")
        if backend.overlap(parameter, gradient) == "partial":
            raise ValueError(f"{name}: grads: {position}: shares part of its memory with the parameter; pass a copy")
    return grads


def backend_if_ready(params: tuple[Array, ...], grads: tuple[Array, ...]) -> Backend | None:
    """Return the backend, if arrays of NumPy pass the checks of a step, as most do: all own their memory."""
    if len(params) != len(grads) or not params:
        return None
    backend = backend_for(params[0])
    if backend.native is not np.ndarray:
        return None
    for parameter, gradient in zip(params, grads, strict=True):
        if not (
            type(gradient) is type(parameter) is np.ndarray
            and (gradient.dtype is parameter.dtype or gradient.dtype == parameter.dtype)  # pickles have others
            and gradient.base is parameter.base is None
            and gradient.shape == parameter.shape
            and parameter.flags.writeable
        ):
            return None
    return backend


def check_writeable(name: str, array: Array) -> None:
    """Raise a ValueError if an array is read-only."""
    if not getattr(array.flags, "writeable", True):
        raise ValueError(f"{name}: expected an array that can be written, got a read-only one")


def at_least_0(name: str, argument: str, value: Any) -> float:
    """Return a finite number of at least 0 as a float."""
    if type(value) is float and 0 <= value < math.inf:
        return value
    if isinstance(value, bool) or not isinstance(value, float | int | np.floating | np.integer):
        raise TypeError(f"{name}: {argument}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # a huge integer
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: {argument}: expected a finite number of at least 0, got {value}")
    return number


def step_count(name: str, argument: str, value: Any, least: int) -> int:
    """Return a number of steps as an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: {argument}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: {argument}: expected an integer of at least {least}, got {value}")
    return int(value)


def share_below_1(name: str, argument: str, value: Any) -> float:
    """Return a number in [0, 1) as a float."""
    if not (number := at_least_0(name, argument, value)) < 1:
        raise ValueError(f"{name}: {argument}: expected a number in [0, 1), got {value}")
    return number


def two_shares(name: str, argument: str, value: Any) -> tuple[float, float]:
    """Return two numbers in [0, 1) as floats."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name}: {argument}: expected two numbers, got {value!r}")
    return share_below_1(name, argument, value[0]), share_below_1(name, argument, value[1])


def switch(name: str, argument: str, value: Any) -> bool:
    """Return 0 or 1 as a boolean."""
    if value not in (0, 1):
        raise ValueError(f"{name}: {argument}: expected 0 or 1, got {value}")
    return bool(value)
