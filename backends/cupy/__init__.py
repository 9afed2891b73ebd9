"""The CuPy backend: CUDA kernels that read a row once, and products by cuBLAS, on the current device and stream.

`kernels` defines the functions over rows, `elementwise` those that compute each element by itself, `products` those of
the affine layer, `last_layer` those of a layer with its loss, and `updates` the steps of optimizers. `rows` chooses the
CUDA kernel by the length of the rows, `labels` prepares the arguments of losses, `blas` calls cuBLAS, `compiling`
compiles and caches machine code, `arrays` defines the hooks for arrays, and `graphs` makes CUDA graphs of captures. The
CUDA sources are in `cuda/`; read rows.cuh first. The probe imports CuPy; nothing does before it.
"""

import importlib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

import numpy as np

ARRAYS = "cupy"
NATIVE = None  # the device of every array is checked

# The modules that define the hooks, and those that define the kernels, imported when one is asked for.
_HOOKS = {**dict.fromkeys(("asarray", "empty", "overlap", "take", "to_numpy"), "arrays"), "fuse": "graphs"}
_MODULES = ("elementwise", "accuracies", "binary_losses", "kernels", "products", "last_layer", "updates")

INSTALL = "python -m pip install 'plugrad[cuda13]' (or [cuda12], for a driver of CUDA 12)"


def __getattr__(name: str) -> Any:
    if name in _HOOKS:
        return getattr(importlib.import_module(f"plugrad.backends.cupy.{_HOOKS[name]}"), name)
    if not name.startswith("_"):
        # First without the lock of imports: Ctrl-C between taking it and giving it back would leave all others waiting.
        for module in _MODULES:
            function = getattr(sys.modules.get(f"{__name__}.{module}"), name, None)
            if function is not None:
                return function
        if find_spec(f"{__name__}.{name}") is None:  # else a module of ours is being imported
            for module in _MODULES:
                function = getattr(importlib.import_module(f"plugrad.backends.cupy.{module}"), name, None)
                if function is not None:
                    return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile every CUDA kernel that the functions `names` may launch for arrays of `dtypes`."""
    from plugrad.backends.cupy import kernels

    kernels.warmup(names, dtypes)


def probe() -> str | None:
    """Return the reason why the backend cannot run here, or None."""
    if find_spec("cupy") is None:
        return f"cupy is not installed; install it with: {INSTALL}"
    packages = installed_packages()
    if len(packages) > 1:
        return (
            f"several packages bring cupy, and each overwrites the other: {', '.join(packages)}; uninstall all but one"
        )
    try:
        import cupy
    except Exception as error:  # a library that cannot be loaded is an ImportError, or an OSError
        return f"{packages[0] if packages else 'cupy'} is installed, but fails to import: {error}"
    return _lacking_driver(cupy) or _lacking_library(cupy)


def installed_packages() -> list[str]:
    """The installed distributions of CuPy, with their versions, such as ``cupy-cuda13x 14.2.0``."""
    found = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name == "cupy" or name.startswith(("cupy-cuda", "cupy-rocm")):
            found[name] = f"{name} {distribution.version}"
    return sorted(found.values())


def _lacking_driver(cupy: Any) -> str | None:
    """Return the error of the driver or the device, or None."""
    runtime = cupy.cuda.runtime
    installed = f"cupy {cupy.__version__} is installed, but"
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if not driver:
            return f"{installed} no NVIDIA driver was found; install one, on a machine with an NVIDIA GPU"
        if driver // 1000 < needed // 1000:
            return (
                f"{installed} the NVIDIA driver is too old: it supports CUDA {_version(driver)}, and this cupy needs "
                f"CUDA {needed // 1000}.0 or later; update the driver, or install the cupy of an older CUDA"
            )
        return f"{installed} no GPU was found: {error}"
    return None if count else f"{installed} no GPU was found"


def _lacking_library(cupy: Any) -> str | None:
    """Return which CUDA library is missing, or None. The sources need no CUDA headers."""
    for name, what in (("nvrtc", "NVRTC, CUDA's run-time compiler,"), ("cublas", "cuBLAS, CUDA's matrix products,")):
        try:
            library = getattr(cupy.cuda, name)
            if name == "nvrtc":
                library.getVersion()
        except Exception as error:  # depending on the version of CuPy: ImportError, RuntimeError, NVRTCError
            reason = str(error).partition("\n")[0]
            return (
                f"cupy {cupy.__version__} is installed, but {what} was not found ({reason}); install it with: {INSTALL}"
            )
    return None


def _version(number: int) -> str:
    """Format a CUDA version number: 12040 as ``12.4``."""
    return f"{number // 1000}.{number % 1000 // 10}"


def describe() -> Mapping[str, str]:
    """Return the version and the devices."""
    import cupy

    runtime = cupy.cuda.runtime
    names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    return {"version": cupy.__version__, "devices": ", ".join(names)}
