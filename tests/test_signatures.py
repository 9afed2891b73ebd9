"""Signatures of kernels, layers, optimizers and checks: options are keyword-only, and everything is typed."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plugrad.kernels import KERNELS, gradcheck, jacobians, layers, optim

# Parameters with a default that may be passed by position, as the README shows them.
POSITIONAL = {"b", "k", "lr", "t", "dloss", "p", "rng"}


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public functions and methods, with their names."""
    for kernel in KERNELS.values():
        yield kernel.name, kernel.function
    for module in (gradcheck, jacobians, layers, optim):
        for name in module.__all__:
            item = getattr(module, name)
            if not inspect.isclass(item):
                if inspect.isfunction(item):
                    yield name, item
                continue
            for attribute, method in inspect.getmembers(item, inspect.isroutine):
                if attribute == "__init__" or not attribute.startswith("_"):
                    yield f"{name}.{attribute}", method


FUNCTIONS = {
    name: function for name, function in public() if inspect.isfunction(function) or inspect.ismethod(function)
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_names_types_as_the_source_does(name: str) -> None:
    assert "numpy._typing" not in str(inspect.signature(FUNCTIONS[name])), "add `from __future__ import annotations`"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keyword_only_and_everything_is_typed(name: str) -> None:
    signature = inspect.signature(FUNCTIONS[name])
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        assert parameter.annotation is not parameter.empty, parameter
        if parameter.default is not parameter.empty and parameter.name not in POSITIONAL:
            assert parameter.kind is parameter.KEYWORD_ONLY, parameter
