"""Compile the CUDA sources of this backend for the current device, cache the machine code, and load it.

CuPy's `RawModule` always compiles with ``-ftz=true``, which flushes subnormal numbers to 0 (cupy/cupy#9576). This
module calls NVRTC itself, and `RawModule` loads the result from CuPy's own cache folder
(``CUPY_CACHE_DIR``, else ``~/.cupy/kernel_cache``).
"""

import atexit
import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import cupy

from plugrad.backends.sources import named
from plugrad.backends.trust import untrusted, untrusted_part

SOURCES = files(__package__) / "cuda"
OPTIONS = ("-std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true")


# The first call of NVRTC loads a library; two first calls at once may fail to find it.
_compiling = threading.Lock()


class Instance(NamedTuple):
    """A source file and the macros that fix its types and sizes."""

    file: str
    macros: tuple[tuple[str, str | int], ...]


def kernel(name: str, instance: Instance) -> Callable[..., None]:
    """The CUDA kernel `name` of an instance, on the current device; it takes the grid, the block and the arguments."""
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
    """The target architecture: that of the device, or the newest before it that NVRTC knows."""
    capability = int(cupy.cuda.Device(device).compute_capability)
    known = [number for number in cupy.cuda.nvrtc.getSupportedArchs() if number <= capability]
    if not known:
        raise RuntimeError(
            f"device {device} has compute capability {capability}, and this CUDA compiles for "
            f"{min(cupy.cuda.nvrtc.getSupportedArchs())} or later; install the cupy of an older CUDA"
        )
    return f"sm_{capability}" if capability in known else f"compute_{max(known)}"


def compile(instance: Instance, architecture: str) -> tuple[bytes, str]:
    """The machine code of an instance, and the log of the compiler, which lists registers.

    For an architecture named ``compute_...`` the code is PTX, which the driver compiles further.
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
    headers = named(SOURCES, ".cuh")
    return (SOURCES / file).read_text(), {header.name.encode(): header.read_bytes() for header in headers}


# ---------------------------------------------------------------------------------------------------------------------
# The cache of machine code
# ---------------------------------------------------------------------------------------------------------------------


def _key(instance: Instance, architecture: str) -> str:
    """The hash of everything that the machine code depends on."""
    source, headers = sources(instance.file)
    version = cupy.cuda.nvrtc.getVersion()
    inputs = repr((source, headers, instance.macros, architecture, OPTIONS, version))
    return hashlib.sha256(inputs.encode()).hexdigest()[:32]


@functools.cache
def _folder() -> Path:
    """CuPy's cache folder; a temporary folder if it is not writable, or other users could write to it."""
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
    """The cached file for `key` whose content has the hash in its name, or None."""
    for path in _folder().glob(f"plugrad_{key}_*.bin"):
        if untrusted(path) is None and path.name == _name(key, path.read_bytes()):
            return path
    return None


def _keep(key: str, code: bytes) -> Path:
    """Write machine code to the cache; other processes see the whole file or none."""
    path = _folder() / _name(key, code)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(code)
    os.replace(file.name, path)
    return path


def _name(key: str, code: bytes) -> str:
    return f"plugrad_{key}_{hashlib.sha256(code).hexdigest()[:16]}.bin"
