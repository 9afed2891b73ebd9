"""The table of kernels: one record per kernel, made where the kernel is defined."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

KERNELS: dict[str, "Kernel"] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Kernel:
    """A kernel of the public API.

    Names connect kernels: the backward kernel of ``softmax`` is ``softmax_backward``. It takes the gradient
    ``d<result>`` first, then values of the forward pass under their own names, and returns ``d<argument>``.

    Attributes
    ----------
    function : callable
        The public function.
    name : str
        The name of the function.
    form : type
        The protocol of `plugrad.backends.contract` that the function of a backend follows.
    formula : str
        The formula, in one line.
    results : tuple of str
        The names of the returned arrays, in order.
    arguments : tuple of str
        The names of the array arguments, in order: the positional parameters.
    options : tuple of str
        The names of the keyword-only parameters, without ``out``.
    """

    __slots__ = ("arguments", "form", "formula", "function", "name", "options", "results")

    def __init__(self, function: Callable[..., Any], form: type, formula: str, results: tuple[str, ...]) -> None:
        code = function.__code__
        self.function = function
        self.name = function.__name__
        self.form = form
        self.formula = formula
        self.results = results
        positional, named = code.co_argcount, code.co_kwonlyargcount
        self.arguments = code.co_varnames[:positional]
        self.options = tuple(name for name in code.co_varnames[positional : positional + named] if name != "out")
        if not function.__doc__ and sys.flags.optimize < 2:  # python -OO removes docstrings
            raise ValueError(f"kernel {self.name}: expected its function to have a docstring")

    @property
    def backward(self) -> str | None:
        """The name of the backward kernel; None if there is none."""
        name = f"{self.name}_backward"
        return name if name in KERNELS else None

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"


def kernel(form: type, formula: str, results: tuple[str, ...]) -> Callable[[_Function], _Function]:
    """Enter the decorated function into `KERNELS`; see `Kernel` for the parameters."""

    def enter(function: _Function) -> _Function:
        record = Kernel(function, form, formula, results)
        KERNELS[record.name] = record
        return function

    return enter
