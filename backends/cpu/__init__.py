"""The code that the backends on NumPy arrays share: matrix products, class indices, the last layer in chunks.

`affine` has the affine layer, by the BLAS that `blas` calls, `linear_cross_entropy` that layer with its loss in chunks
of rows, and `class_indices` checks and counts class indices. `blocks` cuts arrays into pieces that stay in cache, and
`kernel_functions` finds the kernels that a module defines.
"""

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any


def kernel_functions(*modules: ModuleType) -> dict[str, Callable[..., Any]]:
    """The public functions that modules define: name -> function. What they import does not count."""
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if isinstance(function, FunctionType) and function.__module__ == module.__name__ and not name.startswith("_")
    }
