"""The Numba backend: loops compiled for this machine, over rows that stay in the first-level cache.

Kernels are the public functions of `elementwise`, `rowwise`, `losses`, `products` and `last_layer`; `updates` has the
updates of optimizers. They bring arrays to the forms that compiled code is made for (`arrays`, `labels`), and share the
work on compiled loops among threads (`team`). The loops of elementwise kernels are next to them. The others run over
rows (`rows`) or, for few classes and classes that are not contiguous, over tiles (`tiling`, `tiles`); those of losses
are in `fused_losses`, `probability_losses` and `loss_gradients`, on top of `targets`. All use the functions in `vector`
and `memory`. `compiling` compiles, `warming` does so ahead, and `recycling` makes the arrays for results. Only the last
of these modules is imported before the probe, which imports numba.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from plugrad.backends import threads
from plugrad.backends.numba.recycling import empty as empty

# MiB of address space and of data that numba and LLVM may take: 863 and 664 were measured, for all kernels at once.
SPACE = {"RLIMIT_AS": ("address space", 0, 1024), "RLIMIT_DATA": ("data", 5, 768)}


def __getattr__(name: str) -> Any:
    """A kernel, or an update of optimizers, by name; imports numba.

    Once numba is imported, nothing here takes the lock of imports: Ctrl-C between taking it and giving it back would
    leave all other threads waiting for it.
    """
    functions = getattr(sys.modules.get(f"{__name__}.kernels"), "FUNCTIONS", None)
    if functions is None and not name.startswith("__"):
        is_module = f"{__name__}.{name}" in sys.modules or find_spec(f"{__name__}.{name}")  # just being imported
        if not is_module:
            from plugrad.backends.numba import kernels

            functions = kernels.FUNCTIONS
    if functions is None or name not in functions:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from plugrad.backends.numba import compiling

    compiling.warn_of_problem()
    return functions[name]


_importing: set[int] = set()  # the threads that import numba
_failed: list[str] = []


def _import_error() -> str | None:
    """The reason why numba cannot be imported, or None; a failed import is not repeated, since it is left half done."""
    me = threading.get_ident()
    if me in _importing:  # by a handler of signals, or by what numba imports
        return "it is just being imported"
    if _failed:
        return _failed[0]
    _importing.add(me)
    try:
        with _uninterrupted():
            from plugrad.backends.numba import compiling, kernels  # noqa: F401

            compiling.load_compiler()
    except (MemoryError, RecursionError):  # unrelated to numba
        raise
    except Exception as error:  # a library that cannot be loaded is an OSError
        reason = f"{type(error).__name__}: {error}"
        if not getattr(getattr(sys.modules.get("numba"), "__spec__", None), "_initializing", False):
            _failed.append(reason)  # else another import of numba is under way
        return reason
    finally:
        _importing.discard(me)
    return None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block."""
    before, came, process = signal.getsignal(signal.SIGINT), list[Any](), os.getpid()

    def wait(*arguments: Any) -> None:
        if os.getpid() == process:
            came.append(arguments)
        elif callable(before):  # another thread has forked
            before(*arguments)

    try:
        if callable(before):  # else it is ignored, or ends the process, or is not Python's
            signal.signal(signal.SIGINT, wait)
    except ValueError:  # Python handles signals in its main thread only
        before = None
    try:
        yield
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)
            if came:
                before(*came[0])


def thread_count() -> int:
    """The number of threads: as for every CPU backend, but no more than ``NUMBA_NUM_THREADS`` if that is set."""
    bound = _bound()
    return threads.count() if bound is None else min(threads.count(), bound)


def _bound() -> int | None:
    """The number in ``NUMBA_NUM_THREADS``, or None."""
    text = os.environ.get("NUMBA_NUM_THREADS", "").strip()
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 10 else None


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile functions for dtypes ahead of their first call."""
    from plugrad.backends.numba import compiling, warming

    compiling.warn_of_problem()
    warming.warmup(names, dtypes)


def prepare(kernel: str, *arguments: Any) -> Callable[[], object] | None:
    """A small call in the form in which a replay makes it, or None."""
    from plugrad.backends.numba import losses, products

    prepared: dict[str, Callable[..., Callable[[], object] | None]] = {**losses.PREPARED, **products.PREPARED}
    return prepared[kernel](*arguments) if kernel in prepared else None


def probe() -> str | None:
    """The reason why it cannot run here, or None; bounds the threads of matrix products by ``PLUGRAD_NUM_THREADS``."""
    if find_spec("numba") is None:
        return "numba is not installed; install it with: python -m pip install 'plugrad[numba]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "").strip() not in ("", "0"):
        return "NUMBA_DISABLE_JIT is set, and without its compiler numba computes nothing here; unset it"
    if (bound := _bound()) is not None and bound < 1:
        return f"NUMBA_NUM_THREADS={bound}: numba expects a positive integer"
    if reason := _too_little_space():
        return reason
    if error := _import_error():
        return f"numba is installed, but fails to import: {error}"
    threads.bound_blas()
    return None


def _too_little_space() -> str | None:
    """The limit of this process that the compiler may exceed, or None: without memory LLVM ends the process."""
    try:
        import resource

        sizes = Path("/proc/self/statm").read_text().split()
    except (ImportError, OSError):  # not on Linux, where the limits mean something
        return None
    for limit, (what, field, needed) in SPACE.items():
        most, _ = resource.getrlimit(getattr(resource, limit))
        left = (most - int(sizes[field]) * resource.getpagesize()) >> 20
        if most != resource.RLIM_INFINITY and left < needed:
            return (
                f"numba's compiler may take {needed} MiB of {what}, and the limit of this process leaves "
                f"{max(0, left)}; raise it (ulimit -{'v' if field == 0 else 'd'})"
            )
    return None


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    blas = threads.blas_threads()
    products = f", matrix products {blas}" if blas else ""
    return {"version": version("numba"), "threads": f"{thread_count()}{products}", "devices": "CPU"}
