"""Compiles the CUDA sources of this room for the device at hand, keeps the machine code, and loads it.

CuPy's `RawModule` would compile them as well, but always with ``-ftz=true``, which flushes subnormal numbers to 0
(cupy/cupy#9576). So NVRTC is called here, and `RawModule` loads what it made from CuPy's own cache folder
(``CUPY_CACHE_DIR``, else ``~/.cupy/kernel_cache``).
"""

import atexit
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cupy

from plugrad.backends.trust import untrusted, untrusted_part

SOURCES = Path(__file__).parent / "cuda"
OPTIONS = ("-std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")


# NVRTC loads a library of its own at its first call, and two threads that both make it may find it missing.
_compiling = threading.Lock()


class Instance(NamedTuple):
    """A source for some types and sizes, which the macros tell it."""

    file: str
    macros: tuple[tuple[str, str | int], ...]


def kernel(name: str, instance: Instance) -> Callable[..., None]:
    """The kernel called `name` of an instance, for the current device; it is called with grid, block and arguments."""
    return _kernel(name, instance, cupy.cuda.runtime.getDevice())


@functools.cache
def _kernel(name: str, instance: Instance, device: int) -> Callable[..., None]:
    function: Callable[..., None] = _module(instance, architecture(device)).get_function(name)
    return function


@functools.cache
def _module(instance: Instance, architecture: str) -> Any:
    key = _key(instance, architecture)
    path = _kept(key)
    if path is None:
        path = _keep(key, compile(instance, architecture)[0])
    return cupy.RawModule(path=str(path))


@functools.cache
def architecture(device: int) -> str:
    """What to compile for: the device's own architecture, or the newest before it that NVRTC knows."""
    capability = int(cupy.cuda.Device(device).compute_capability)
    known = [number for number in cupy.cuda.nvrtc.getSupportedArchs() if number <= capability]
    if not known:
        raise RuntimeError(
            f"device {device} has compute capability {capability}, and this CUDA compiles for "
            f"{min(cupy.cuda.nvrtc.getSupportedArchs())} or later; install the cupy of an older CUDA"
        )
    return f"sm_{capability}" if capability in known else f"compute_{max(known)}"


def compile(instance: Instance, architecture: str) -> tuple[bytes, str]:
    """The machine code of an instance, and what the compiler says of it, registers among other things.

    For an architecture called ``compute_...`` it is code that the driver compiles further.
    """
    with _compiling:
        return _compile(instance, architecture)


def _compile(instance: Instance, architecture: str) -> tuple[bytes, str]:
    nvrtc = cupy.cuda.nvrtc
    source, headers = sources(instance.file)
    program = nvrtc.createProgram(source, instance.file, tuple(headers.values()), tuple(headers))
    try:
        macros = [f"-D{name}={value}" for name, value in instance.macros]
        nvrtc.compileProgram(program, (f"-arch={architecture}", *OPTIONS, "--ptxas-options=-v", *macros))
        code = nvrtc.getCUBIN(program) if architecture.startswith("sm") else nvrtc.getPTX(program)
        return (code if isinstance(code, bytes) else code.encode()), nvrtc.getProgramLog(program)
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{instance.file} does not compile: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


@functools.cache
def sources(file: str) -> tuple[str, dict[bytes, bytes]]:
    """The text of a source, and all headers by name."""
    headers = sorted(SOURCES.glob("*.cuh"))
    return (SOURCES / file).read_text(), {header.name.encode(): header.read_bytes() for header in headers}


# ---------------------------------------------------------------------------------------------------------------------
# Where machine code is kept
# ---------------------------------------------------------------------------------------------------------------------


def _key(instance: Instance, architecture: str) -> str:
    """What the machine code depends on, hashed."""
    source, headers = sources(instance.file)
    version = cupy.cuda.nvrtc.getVersion()
    told = repr((source, headers, instance.macros, architecture, OPTIONS, version))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


@functools.cache
def _folder() -> Path:
    """CuPy's cache folder, or one for this process if that cannot be written to, or could be by others."""
    try:
        folder = Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        if untrusted_part(str(folder)) is None and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    temporary = tempfile.TemporaryDirectory(prefix="plugrad-")
    atexit.register(temporary.cleanup)
    return Path(temporary.name)


def _kept(key: str) -> Path | None:
    """The file with machine code that is kept under `key`; its name tells the hash of what is in it."""
    for path in _folder().glob(f"plugrad_{key}_*.bin"):
        if untrusted(path) is None and path.name == _name(key, path.read_bytes()):
            return path
    return None


def _keep(key: str, code: bytes) -> Path:
    """Write machine code so that other processes see all of it or nothing."""
    path = _folder() / _name(key, code)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)
    return path


def _name(key: str, code: bytes) -> str:
    return f"plugrad_{key}_{hashlib.sha256(code).hexdigest()[:16]}.bin"
