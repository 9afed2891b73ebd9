"""The CuPy backend: its place, and an honest word on why it cannot run yet."""

from importlib.util import find_spec

ARRAYS = "cupy"


def probe() -> str:
    """Why it cannot run here; CuPy is not imported to find out."""
    installed = "is installed, but" if find_spec("cupy") else "is not installed, and"
    return f"cupy {installed} this version of plugrad has no kernels for it yet"
