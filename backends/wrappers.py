"""Wrappers around the functions of backends that are not part of plugrad, whose errors are to name the backend."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def named(described: str, function: Function) -> Function:
    """`function`, with a note on each error it raises that says which backend raised it."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            error.add_note(f"raised by {described}")
            raise

    return call


def checked_kernel(described: str, kernel: str, function: Function) -> Function:
    """The function of a kernel, with a check that it writes its results to the arrays that were given for them."""
    compute = named(described, function)

    @functools.wraps(function)
    def call(*arguments: Any) -> None:
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        shapes = [array.shape for array in arrays]
        returned = compute(*arguments)
        if shapes != [array.shape for array in arrays]:
            raise TypeError(f"{described}: its {kernel}: expected the arrays that were given to keep their shapes")
        if isinstance(returned, np.ndarray) and arrays and not any(np.may_share_memory(returned, a) for a in arrays):
            raise TypeError(
                f"{described}: its {kernel}: expected the results in the arrays given for them, got a new array; "
                f"write to out, for instance with out[...] = ..."
            )

    return call


def checked_take(described: str, function: Function) -> Function:
    """The hook `take`, with a check that it returns an array."""
    return _returning_array(described, "take", function)


def checked_asarray(described: str, function: Function) -> Function:
    """The hook `asarray`, with a check that it returns an array."""
    return _returning_array(described, "asarray", function)


def _returning_array(described: str, hook: str, function: Function) -> Function:
    convert = named(described, function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        array = convert(*arguments)
        if getattr(array, "shape", None) is None or getattr(array, "dtype", None) is None:
            raise TypeError(f"{described}: its {hook}: expected an array, got {type(array).__qualname__}")
        return array

    return call


def checked_empty(described: str, function: Function) -> Function:
    """The hook `empty`, with a check that its arrays have the shape and the dtype that were asked for."""
    empty = named(described, function)

    @functools.wraps(function)
    def call(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        array = empty(shape, dtype)
        got = getattr(array, "shape", None), getattr(array, "dtype", None)
        if got != (shape, dtype):
            raise TypeError(
                f"{described}: its empty: expected shape {shape} and dtype {dtype}, got {got[0]} and {got[1]}"
            )
        return array

    return call
