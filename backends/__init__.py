"""The backends that compute the kernels, and the choice among them.

Select a backend with the environment variable ``PLUGRAD_BACKEND`` (``auto``, a name, or names in order of preference),
with `set_default` or, for a block of code or a function, with `use`. ``python -m plugrad.backends`` lists the backends
that can run here.
"""

from plugrad.backends.backend import Backend, BackendUnavailableError
from plugrad.backends.compilation import warmup
from plugrad.backends.explanation import Explanation, explain
from plugrad.backends.registry import available, get, register
from plugrad.backends.selection import current, set_default, use
from plugrad.backends.transfer import asarray, to_numpy

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
