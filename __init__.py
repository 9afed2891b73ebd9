"""Forward and backward kernels for classifier training loops, computed by a backend that the user selects.

Most programs begin with ``from plugrad import backends, kernels as K``. ``import plugrad`` alone imports nothing: each
subpackage is imported at the first use of its name.
"""

from types import ModuleType

__version__ = "0.1.0"  # the build takes it from here

_SUBPACKAGES = ("backends", "bench", "bridges", "distributed", "kernels", "tests")


def __getattr__(name: str) -> ModuleType:
    if name not in _SUBPACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
