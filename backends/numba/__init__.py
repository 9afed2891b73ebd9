"""The Numba backend: its place, and an honest word on why it cannot run yet."""

from importlib.util import find_spec


def probe() -> str:
    """Why it cannot run here; numba is not imported to find out."""
    installed = "is installed, but" if find_spec("numba") else "is not installed, and"
    return f"numba {installed} this version of plugrad has no kernels for it yet"
