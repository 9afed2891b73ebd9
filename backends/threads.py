"""The number of threads of the CPU backends: ``PLUGRAD_NUM_THREADS``, else one for each processor of this process.

Of a container that may use fewer processors than it sees, it is the number that it may use.

NumPy's BLAS is bounded by its own functions. threadpoolctl knows more libraries, but a bare install requires NumPy
alone, and the bound must not depend on another package.
"""

import ctypes
import functools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

VARIABLE = "PLUGRAD_NUM_THREADS"

# The functions by which a BLAS sets and returns its number of threads; those of the OpenBLAS in NumPy's wheels first.
BLAS_THREADS = (
    ("scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"),
    ("scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"),
    ("openblas_set_num_threads64_", "openblas_get_num_threads64_"),
    ("openblas_set_num_threads", "openblas_get_num_threads"),
    ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
)


def requested() -> int | None:
    """The number that ``PLUGRAD_NUM_THREADS`` gives; None if it is not set."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9 or int(text) == 0:
        raise ValueError(f"{VARIABLE}={text[:40]}: expected a positive integer")
    return int(text)


@functools.cache
def count() -> int:
    """The number of threads to use, fixed at the first call."""
    if wanted := requested():
        return wanted
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = quota_of_container()
    return processors if quota is None else max(1, min(processors, math.ceil(quota)))


def quota_of_container(root: Path = Path("/")) -> float | None:
    """The processors that the control groups of this process allow it at a time, as a container sets them; None: all.

    Of version 2, ``cpu.max``, and of version 1, ``cpu.cfs_quota_us``, in the group and in those that it lies in; see
    the kernel's documentation, "Control Group v2" and "CFS Bandwidth Control". A container may see its group as the
    root, while ``/proc`` has the path on the host: groups that are not there are passed over.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not on Linux
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, read = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _quota_of_version_2
        elif "cpu" in controllers.split(","):
            mounts, read = [f"sys/fs/cgroup/{controllers}", "sys/fs/cgroup/cpu"], _quota_of_version_1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            found += [read(root / mount / place) for place in (group, *group.parents)]
    return min([quota for quota in found if quota is not None], default=None)


def _quota_of_version_2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_of_version_1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        return None if quota < 0 else quota / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None


@functools.cache
def blas_library() -> ctypes.CDLL:
    """NumPy's extension module, through which the symbols of the libraries that it is linked with are found."""
    return ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]


@functools.cache
def _blas() -> tuple[Callable[[int], None], Callable[[], int]] | None:
    """The functions that set and get the number of threads of NumPy's BLAS; None if the BLAS is not known."""
    library = blas_library()
    for setter, getter in BLAS_THREADS:
        if hasattr(library, setter) and hasattr(library, getter):
            return getattr(library, setter), getattr(library, getter)
    return None


def blas_threads() -> int | None:
    """The number of threads of NumPy's matrix products; None if the BLAS is not known."""
    blas = _blas()
    return None if blas is None else blas[1]()


def bound_blas() -> None:
    """Bound the threads of NumPy's matrix products, in the whole process, by ``PLUGRAD_NUM_THREADS`` if it is set."""
    limit = requested()
    if limit is None:
        return
    blas = _blas()
    if blas is None:
        warnings.warn(
            f"{VARIABLE}={limit} does not bound NumPy's matrix products: its BLAS is not known to plugrad; set "
            f"that library's own variable, such as VECLIB_MAXIMUM_THREADS, before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    elif blas[1]() > limit:
        blas[0](limit)
