"""The mode of the floating-point unit: the direction of rounding, and whether subnormal numbers count as 0.

Each thread has a mode of its own. A library may have changed it in the thread that calls a kernel. The threads that
compute for the call take it over, or the result would depend on which thread computed which part.
"""

import ctypes
import sys
from typing import Any

# Bytes in which `fenv_t` of C's <fenv.h> fits everywhere: it has 32 on Linux on x86-64, and 8 on AArch64.
Mode = ctypes.c_char * 64


def _function(name: str) -> Any:
    """A function of C's mathematical library, called without releasing Python's lock; None where there is none.

    On macOS, and on Linux with musl, it is a part of C's library, which Python has loaded.
    """
    for library in ("ucrtbase",) if sys.platform == "win32" else ("libm.so.6", None):
        try:
            return ctypes.PyDLL(library)[name]
        except (OSError, AttributeError, TypeError):
            continue
    return None


_get, _set = _function("fegetenv"), _function("fesetenv")


def mode() -> Any:
    """The mode of this thread, for `set_mode`."""
    found = Mode()
    if _get is not None:
        _get(found)
    return found


def set_mode(wanted: Any) -> None:
    """Compute in this mode, in this thread, from now on."""
    if _get is not None and _set is not None:
        _set(wanted)


def addresses() -> tuple[int, int]:
    """Where the functions are that store the mode at an address and take it from there; 0 if there are none."""
    if _get is None or _set is None:
        return 0, 0
    found = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (_get, _set))
    return next(found), next(found)
