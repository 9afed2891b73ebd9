"""The CuPy backend: its place, and an honest word on why it cannot run yet."""

from importlib.util import find_spec

ARRAYS = "cupy"


def probe() -> str:
    """Why it cannot run here; CuPy is not imported to find out."""
    if find_spec("cupy") is None:
        return (
            "cupy is not installed (pip install 'plugrad[cuda13]' or 'plugrad[cuda12]'), "
            "and this version of plugrad cannot use it yet"
        )
    return "cupy is installed, but this version of plugrad has no kernels for it yet"
