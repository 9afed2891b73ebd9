"""The Numba backend: its place, and an honest word on why it cannot run yet."""

from importlib.util import find_spec


def probe() -> str:
    """Why it cannot run here."""
    if find_spec("numba") is None:
        return "numba is not installed (pip install 'plugrad[numba]'), and this version of plugrad cannot use it yet"
    from importlib.metadata import version

    return f"numba {version('numba')} is installed, but this version of plugrad has no kernels for it yet"
