"""The choice of a backend as text: an argument of an operator, which also says where its backward pass computes.

The backward pass may run in a thread of the other library, and a compiled function long after it was traced; the
context variable with the choice goes to neither.
"""

import functools
import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

from plugrad.backends import selection
from plugrad.backends.choice import Choice

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_force() -> str:
    """The choice in force in this thread, such as ``numba,numpy`` or ``cupy {"check": true}``."""
    choice = selection.chosen()
    names = ",".join(choice.names)
    return f"{names} {json.dumps(choice.options)}" if choice.options else names


@functools.lru_cache(64)
def _choice(text: str) -> Choice:
    names, _, options = text.partition(" ")
    return Choice(names, json.loads(options or "{}"), f"the choice at the forward pass, {text}")


def computes_by_choice(what: str, function: _Function) -> _Function:
    """`function`, computed by the backend that its last argument names; a block that is captured refuses `what`."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        selection.refuse_in_capture(f"{what}: is not recorded; call the functions of plugrad.kernels")
        outer = selection.scope.get()
        selection.scope.set(_choice(arguments[-1]))
        try:
            return function(*arguments)
        finally:
            selection.scope.set(outer)

    return cast(_Function, call)
