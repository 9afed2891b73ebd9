"""The profile: which backend is the fastest for which arrays on this machine, as measured; ``auto`` follows it.

``python -m plugrad.bench tune`` measures and writes the profile, to the file that ``PLUGRAD_PROFILE`` names, or else
to ``profile.json`` in the user's configuration folder. With ``PLUGRAD_PROFILE=off`` none is read. The file is data,
JSON, and can only choose among the backends that ``auto`` tries. A profile that was measured on another processor, or
with another number of threads, is ignored.

The configuration folder follows the XDG Base Directory Specification. platformdirs would add the folders of macOS and
Windows, but a bare install requires NumPy alone, and a profile must not move when another package is installed.
"""

import errno
import functools
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plugrad.backends import threads

VARIABLE = "PLUGRAD_PROFILE"
OFF = "off"
FORMAT = 1  # of the file

DTYPES = ("float16", "float32", "float64")  # NumPy's own

# [(smallest number of elements, name of the fastest backend)]: the first from 0 on, each to where the next begins.
Steps = list[tuple[int, str]]

DAMAGES = (AttributeError, KeyError, TypeError, ValueError, RecursionError)  # what reading a damaged file raises


class Profile(NamedTuple):
    """The contents of the file: kernel -> dtype -> the fastest backends by the number of elements."""

    path: Path
    steps: dict[str, dict[np.dtype[Any], Steps]]


def location() -> Path | None:
    """The path of the profile, whether it exists or not; None if it is switched off, or the user has no home."""
    text = os.environ.get(VARIABLE, "").strip()
    if text:
        return None if text == OFF else Path(text)
    folder = os.environ.get("XDG_CONFIG_HOME", "").strip()
    try:
        return (Path(folder) if os.path.isabs(folder) else Path.home() / ".config") / "plugrad" / "profile.json"
    except RuntimeError:  # there is no home
        return None


def processor() -> str:
    """The processor's name, or on ARM, where it has none, the numbers that identify it."""
    try:
        with open("/proc/cpuinfo") as lines:
            fields = [tuple(map(str.strip, line.split(":", 1))) for line in lines if ":" in line]
    except (OSError, ValueError):
        fields = []
    for names in (("model name",), ("CPU implementer", "CPU part", "CPU variant")):
        found = [next((value for name, value in fields if name == wanted), "") for wanted in names]
        if all(found):
            return " ".join(found)
    import platform  # slow to import, and seldom needed

    return platform.machine()


@functools.cache
def read(names: tuple[str, ...]) -> tuple[Profile | None, str]:
    """The profile, which may choose among the backends `names`, and its state as a phrase; the file is read once.

    A file that cannot be used causes a warning, and changes nothing.
    """
    import json  # not needed where there is no profile

    path = location()
    if path is None or (text := _text(path)) is None:
        return None, ""
    here = {"processor": processor(), "threads": threads.count()}
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {content['format']!r}")
        machine = {key: content["machine"][key] for key in here}
        steps = {kernel: _steps(dtypes, names) for kernel, dtypes in content["kernels"].items()}
    except DAMAGES as error:
        _warn(path, error)
        return None, f"the profile {path} cannot be used"
    if machine != here:
        measured = f"{machine['processor']} with {machine['threads']} threads"
        return None, f"the profile {path} is not used: it was measured on {measured}"
    return Profile(path, steps), f"with the profile {path}"


def _text(path: Path) -> bytes | None:
    """The text of the file, or None; a file that ``PLUGRAD_PROFILE`` names and that cannot be read causes a warning."""
    try:
        if path.exists() and not path.is_file():  # a device may have no end
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return path.read_bytes()
    except OSError as error:
        if os.environ.get(VARIABLE, "").strip():
            _warn(path, error)
        return None


def _warn(path: Path, error: Exception) -> None:
    """Warn that a file is not used, and why."""
    warnings.warn(
        f"the profile {path} is not used: {type(error).__name__}: {error}; write it anew with "
        f"python -m plugrad.bench tune, or set {VARIABLE}={OFF}",
        RuntimeWarning,
        stacklevel=3,
    )


def _steps(dtypes: dict[str, Any], names: tuple[str, ...]) -> dict[np.dtype[Any], Steps]:
    """The steps of a kernel for each dtype, checked."""
    found = {}
    for dtype, steps in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"expected one of {', '.join(DTYPES)}, got {dtype!r}")
        starts = [start for start, _ in steps]
        if not all(type(start) is int for start in starts) or starts != sorted(set(starts)) or starts[:1] != [0]:
            raise ValueError(f"expected numbers of elements from 0 upwards, got {starts}")
        if unknown := {name for _, name in steps} - {*names}:
            raise ValueError(f"expected backends out of {', '.join(names)}, got {', '.join(map(repr, unknown))}")
        found[np.dtype(dtype)] = [(start, name) for start, name in steps]
    return found


def recorded(path: Path, machine: dict[str, Any]) -> dict[str, dict[str, Steps]]:
    """The steps that a file contains for each kernel and name of a dtype; none if another machine was measured."""
    import json

    try:
        content = json.loads(path.read_bytes())
        measured = {key: content["machine"][key] for key in ("processor", "threads")}
        if content["format"] != FORMAT or any(machine[key] != value for key, value in measured.items()):
            return {}
        kernels: dict[str, dict[str, Steps]] = content["kernels"]
        return {kernel: dict(dtypes) for kernel, dtypes in kernels.items()}
    except (*DAMAGES, OSError):
        return {}
