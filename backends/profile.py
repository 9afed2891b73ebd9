"""Which backend is the fastest here, as far as that was measured: ``auto`` goes by it where there is such a profile.

``python -m plugrad.bench tune`` measures and writes it, to where ``PLUGRAD_PROFILE`` says, or else to
``profile.json`` in the user's configuration folder; ``PLUGRAD_PROFILE=off`` has none read. It is data, JSON, and can do
no more than choose among the backends that ``auto`` tries. One that was measured on another processor, or with another
number of threads, is not used.
"""

import errno
import functools
import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import threads

VARIABLE = "PLUGRAD_PROFILE"
OFF = "off"
FORMAT = 1  # of the file

DTYPES = ("float16", "float32", "float64")  # NumPy's own

# From how many elements on which backend is the fastest: the first from 0 on, each to where the next begins.
Steps = list[tuple[int, str]]


class Profile(NamedTuple):
    """What the file says: per kernel and dtype who computes arrays of how many elements."""

    path: Path
    steps: dict[str, dict[np.dtype[Any], Steps]]


def location() -> Path | None:
    """Where the profile lies, or would; None if there shall be none, or nobody knows where."""
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        return None if text == OFF else Path(text)
    folder = os.environ.get("XDG_CONFIG_HOME", "").strip()
    try:
        return (Path(folder) if os.path.isabs(folder) else Path.home() / ".config") / "plugrad" / "profile.json"
    except RuntimeError:  # there is no home
        return None


def processor() -> str:
    """The processor's name, or on ARM, where it has none, the numbers that stand for it."""
    try:
        with open("/proc/cpuinfo") as told:
            fields = [tuple(map(str.strip, line.split(":", 1))) for line in told if ":" in line]
    except (OSError, ValueError):
        fields = []
    for names in (("model name",), ("CPU implementer", "CPU part", "CPU variant")):
        found = [next((value for name, value in fields if name == wanted), "") for wanted in names]
        if all(found):
            return " ".join(found)
    return platform.machine()


@functools.cache
def read(names: tuple[str, ...]) -> tuple[Profile | None, str]:
    """The profile, which may choose among these backends, and what there is to say of it; read once.

    A file that cannot be used is told of by a warning, and changes nothing.
    """
    path, is_named = location(), bool(os.environ.get(VARIABLE, "").strip())
    if path is None:
        return None, ""
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise OSError(errno.EINVAL, "it is no file", str(path))
        text = path.read_bytes()
    except OSError as error:
        if is_named:
            _warn(path, error)
        return None, ""
    here = {"processor": processor(), "threads": threads.count()}
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {content['format']!r}")
        there = {key: content["machine"][key] for key in here}
        steps = {kernel: _steps(told, names) for kernel, told in content["kernels"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        _warn(path, error)
        return None, f"the profile {path} cannot be used"
    if here != there:
        told = f"{there['processor']} with {there['threads']} threads"
        return None, f"the profile {path} is not used: it was measured on {told}"
    return Profile(path, steps), f"with the profile {path}"


def _warn(path: Path, error: Exception) -> None:
    """Tell why a file is not used."""
    warnings.warn(
        f"the profile {path} is not used: {type(error).__name__}: {error}; write it anew with "
        f"python -m plugrad.bench tune, or set {VARIABLE}={OFF}",
        RuntimeWarning,
        stacklevel=3,
    )


def _steps(told: dict[str, Any], names: tuple[str, ...]) -> dict[np.dtype[Any], Steps]:
    """The steps of a kernel, checked."""
    found = {}
    for dtype, steps in told.items():
        if dtype not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}, got {dtype!r}")
        starts = [start for start, _ in steps]
        if not all(type(start) is int for start in starts) or starts != sorted(set(starts)) or starts[:1] != [0]:
            raise ValueError(f"expected numbers of elements from 0 upwards, got {starts}")
        if strangers := {name for _, name in steps} - {*names}:
            raise ValueError(f"expected backends out of {', '.join(names)}, got {', '.join(map(repr, strangers))}")
        found[np.dtype(dtype)] = [(start, name) for start, name in steps]
    return found


def told(path: Path, machine: dict[str, Any]) -> dict[str, dict[str, Steps]]:
    """What a file says already, if it was measured on this machine: the steps per kernel and name of the dtype."""
    try:
        content = json.loads(path.read_bytes())
        there = {key: content["machine"][key] for key in ("processor", "threads")}
        if content["format"] != FORMAT or any(machine[key] != value for key, value in there.items()):
            return {}
        kernels: dict[str, dict[str, Steps]] = content["kernels"]
        return {kernel: dict(dtypes) for kernel, dtypes in kernels.items()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError):
        return {}
