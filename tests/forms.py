"""Print a module in which mypy finds whether the functions of the built-in backends have the forms of their kernels.

``python -m plugrad.tests.forms > forms.py && mypy --strict forms.py``. A backend module finds its functions by name at
run time, where mypy cannot follow; the printed module names the place where each is defined.
"""

import importlib
from types import FunctionType

from plugrad.backends import registry
from plugrad.kernels import KERNELS


def assignments(backend: str) -> list[str]:
    """The lines that assign each function of a backend to a name of the type of its form."""
    module = importlib.import_module(registry.BUILTIN[backend])
    lines = []
    for name, kernel in KERNELS.items():
        function = getattr(module, name)
        defined = function.__module__
        is_visible = isinstance(function, FunctionType) and function.__qualname__ == name
        if is_visible:  # else a typed function made it, and mypy checks that one
            lines += [f"import {defined}", f"{backend}_{name}: contract.{kernel.form.__name__} = {defined}.{name}"]
    return lines


def main() -> None:
    """Print the module."""
    print("from plugrad.backends import contract")
    for backend in registry.BUILTIN:
        print(*assignments(backend), sep="\n")


if __name__ == "__main__":
    main()
