"""The machine of a run: processor, threads, load and versions."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from plugrad.backends import get, threads
from plugrad.backends.profile import processor

# Environment variables that change how fast NumPy, PyTorch or compiled code is. OPENBLAS_CORETYPE=Haswell halves the
# speed of products on processors with AVX-512.
VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def describe(backends: Iterable[str], peers: Iterable[str]) -> dict[str, Any]:
    """Return the processor, the GPUs, the number of threads and the versions of the packages."""
    name, versions = processor(), {}
    for backend in backends:
        if devices := get(backend).describe().get("devices", "CPU").removeprefix("CPU"):
            name = f"{devices}, {name}"
            versions[backend] = get(backend).describe()["version"]
    for package in ("plugrad", "numpy", "numba", *(peer for peer in peers if peer != "textbook")):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": name,
        "threads": threads.count(),
        "load": _load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _load() -> float:
    """Return the number of processors that were busy in the last minute, before the run: a source of noise."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def in_a_line(machine: dict[str, Any]) -> str:
    """Return the description of a machine as text."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    threads = f"{machine['threads']} threads"
    if load := machine.get("load"):
        threads += f" (others took {load:g} of the processors)"
    variables = "".join(f", {name}={value}" for name, value in machine.get("variables", {}).items())
    return f"{machine['processor']}, {threads}, Python {machine['python']}, {versions}{variables}"
