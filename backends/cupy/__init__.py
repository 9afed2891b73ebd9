"""The CuPy backend: CUDA kernels that read a row once, and products by cuBLAS, on the current device and stream.

`kernels` has its functions, `products` those of the affine layer, and `last_layer` those of a layer with its loss.
`rows` chooses how the rows of an array are worked on, by their length; `labels` brings the labels of losses to the form
that the CUDA code takes, and `compiling` compiles; `arrays` has the hooks that take arrays in. The CUDA sources are in
`cuda/`, where rows.cuh is the one to read first. CuPy is imported by the probe, and not before.
"""

import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import Any

import numpy as np

ARRAYS = "cupy"
NATIVE = None  # every array is asked which device it is on

_HOOKS = ("asarray", "empty", "overlap", "take", "to_numpy")

# The modules that define the kernels, imported when one is asked for.
_MODULES = ("elementwise", "kernels", "products", "last_layer")

INSTALL = "python -m pip install 'plugrad[cuda13]' (or [cuda12], for a driver of CUDA 12)"


def __getattr__(name: str) -> Any:
    if name in _HOOKS:
        return getattr(importlib.import_module("plugrad.backends.cupy.arrays"), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is None:  # else a module of ours is being imported
        for module in _MODULES:
            function = getattr(importlib.import_module(f"plugrad.backends.cupy.{module}"), name, None)
            if function is not None:
                return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def warmup(names: Iterable[str], dtypes: Iterable[np.dtype[Any]]) -> None:
    """Compile every kernel that functions may need for arrays of some dtypes."""
    from plugrad.backends.cupy import kernels

    kernels.warmup(names, dtypes)


def probe() -> str | None:
    """Why it cannot run here."""
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
    """What is wrong with driver and device."""
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
    """Which of CUDA's libraries is not there; CuPy needs no headers for what is compiled here."""
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
    """CUDA's numbers of versions, such as 12040, as they are written: 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def describe() -> Mapping[str, str]:
    """Version, threads and devices."""
    import cupy

    runtime = cupy.cuda.runtime
    names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    return {"version": cupy.__version__, "devices": ", ".join(names)}
