"""Who computes: the backends, and the choice among them.

Select one with the environment variable ``PLUGRAD_BACKEND`` (``auto``, a name, or names in order of preference), with
`set_default` or, for a block of code or a function, with `use`. See ``python -m plugrad.backends`` for what runs here.
"""

from plugrad.backends.registry import Backend, BackendUnavailableError, available, get, register
from plugrad.backends.selection import Explanation, asarray, current, explain, set_default, to_numpy, use, warmup

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "Explanation",
    "asarray",
    "available",
    "current",
    "explain",
    "get",
    "register",
    "set_default",
    "to_numpy",
    "use",
    "warmup",
]
