"""Errors of kernels, prefixed with the layer that called the kernel, and results in the library of the argument."""

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from plugrad.backends.calls import foreign_of, in_library

LayerT = TypeVar("LayerT")
P = ParamSpec("P")
R = TypeVar("R")


def errors_name_layer(method: Callable[Concatenate[LayerT, P], R]) -> Callable[Concatenate[LayerT, P], R]:
    """Decorate a method of a layer: its errors begin with the name of the layer's class.

    Its results come back in the library of its first argument.
    """
    name = method.__code__.co_varnames[1]  # of the first argument after `self`

    @functools.wraps(method)
    def call(self: LayerT, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            first = args[0] if args else kwargs.get(name)
            if (foreign := foreign_of(first)) is None:
                return method(self, *args, **kwargs)
            return in_library(foreign, first, method, self, *args, **kwargs)
        except (TypeError, ValueError) as error:
            name_place(error, type(self).__name__, type(self).__name__)
            raise

    return call


def name_place(error: Exception, place: str, layer: str) -> None:
    """Prefix the message of an error with a place, which replaces the bare name of the layer's class.

    Errors of classes derived from `TypeError` and `ValueError` stay as they are, as their arguments may not be a
    message.
    """
    if type(error) in (TypeError, ValueError):
        error.args = (f"{place}: {str(error).removeprefix(f'{layer}: ')}",)
