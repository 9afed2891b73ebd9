"""A stand-in for cupy.cuda: a device, g++ in place of NVRTC, and NumPy in place of cuBLAS.

``CUDA_ON_CPU_ORDER`` is the order in which threads run: ascending, descending, random, ``alternating`` between the
three from launch to launch, or ``every``: each launch is repeated in all three, and must leave the same bits.
``CUDA_ON_CPU_FLAGS`` are more flags for g++, such as those of a sanitizer.
"""

import atexit
import ctypes
import functools
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ORDERS = ("ascending", "descending", "random")
HERE = Path(__file__).resolve().parents[2]
FLAGS = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", *os.environ.get("CUDA_ON_CPU_FLAGS", "").split()]

_devices = [0]  # the current one last


class CUDARuntimeError(RuntimeError):
    """The error for a status other than success."""


class Device:
    """A device, current within a ``with`` block."""

    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> None:
        _devices.append(self.id)

    def __exit__(self, *error: Any) -> None:
        _devices.pop()


class Event:
    """A point in time."""

    time = 0.0

    def record(self) -> None:
        """Record the current time."""
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: kernels run synchronously."""


def get_current_stream() -> Any:
    """The only stream."""
    return SimpleNamespace(ptr=0)


def get_elapsed_time(start: Event, stop: Event) -> float:
    """Milliseconds between two events."""
    return (stop.time - start.time) * 1e3


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=lambda: _devices[-1],
    getDeviceCount=lambda: 2,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    getDeviceProperties=lambda number: {"name": b"a device on the CPU"},
)


# ---------------------------------------------------------------------------------------------------------------------
# Compiling
# ---------------------------------------------------------------------------------------------------------------------


class NVRTCError(RuntimeError):
    """The error of a failed NVRTC call."""


class _Program:
    def __init__(self, source: str, headers: tuple[bytes, ...], names: tuple[bytes, ...]) -> None:
        self.source, self.headers = source, dict(zip(names, headers, strict=True))
        self.code, self.log = b"", ""


def _compile(program: _Program, options: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for header, text in program.headers.items():
            (folder / header.decode()).write_bytes(text)
        (folder / "source.cpp").write_text(f'#include "{HERE}/device.hpp"\n{program.source}')
        macros = [option for option in options if option.startswith("-D")]
        text = _run(program, "-E", *macros, "-I", name, str(folder / "source.cpp"))
        kernels = re.findall(r'extern "C" __attribute__\(\(annotate_kernel\)\) void\s+(\w+)\(', text)
        launchers = "".join(_launcher(kernel) for kernel in dict.fromkeys(kernels))
        (folder / "kernels.ii").write_text(text + launchers)
        _run(program, "-shared", "-fPIC", str(folder / "kernels.ii"), _threads(), "-o", str(folder / "kernels.so"))
        program.code = (folder / "kernels.so").read_bytes()


@functools.cache
def _threads() -> str:
    """The object file of device.cpp."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = f"{folder.name}/device.o"
    _run(_Program("", (), ()), "-c", "-fPIC", str(HERE / "device.cpp"), "-o", path)
    return path


def _launcher(kernel: str) -> str:
    parameters = "const unsigned* grid, const unsigned* block, void** arguments, const int* sizes, int count, int order"
    call = f"device::launch(&{kernel}, grid, block, arguments, sizes, count, order)"
    return f'extern "C" const char* launch_{kernel}({parameters}) {{ return {call}; }}\n'


def _run(program: _Program, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer in g++
    done = subprocess.run(["g++", *FLAGS, *arguments], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        program.log = done.stderr
        raise NVRTCError(done.stderr)
    return done.stdout


nvrtc = SimpleNamespace(
    NVRTCError=NVRTCError,
    getVersion=lambda: (*FLAGS, *((HERE / name).read_text() for name in ("device.hpp", "device.cpp"))),
    getSupportedArchs=lambda: (80, 90),
    createProgram=lambda source, name, headers, names: _Program(source, headers, names),
    compileProgram=_compile,
    getCUBIN=lambda program: program.code,
    getProgramLog=lambda program: program.log,
    destroyProgram=lambda program: None,
)


# ---------------------------------------------------------------------------------------------------------------------
# Launching
# ---------------------------------------------------------------------------------------------------------------------

_turns = itertools.cycle(range(len(ORDERS)))


def orders() -> list[int]:
    """The orders of the threads of the next launch."""
    name = os.environ.get("CUDA_ON_CPU_ORDER", "alternating")
    if name == "every":
        return list(range(len(ORDERS)))
    return [next(_turns) if name == "alternating" else ORDERS.index(name)]


class RawModule:
    """Compiled kernels."""

    def __init__(self, *, path: str) -> None:
        self._library = ctypes.PyDLL(path)  # keeps the GIL: the device runs one kernel at a time

    def get_function(self, name: str) -> "_Kernel":
        """The kernel called `name`."""
        function = getattr(self._library, f"launch_{name}")
        function.restype = ctypes.c_char_p
        return _Kernel(name, function)


class _Kernel:
    def __init__(self, name: str, function: Any) -> None:
        self.name, self._function = name, function

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        grid, block = ((*(max(1, n) for n in size), 1, 1)[:3] for size in (grid, block))
        if math.prod(block) > 1024 or block[2] > 64 or grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
            raise CUDARuntimeError(f"{self.name}: the device has no grid of {grid} blocks of {block} threads")
        values = [_value(argument) for argument in arguments]
        addresses = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        sizes = (ctypes.c_int * len(values))(*[ctypes.sizeof(value) for value in values])
        three = ctypes.c_uint * 3
        memory = [argument._host for argument in arguments if hasattr(argument, "_host")]
        turns = orders()
        before = [array.copy() for array in memory] if len(turns) > 1 else []
        after: list[bytes] = []
        for order in turns:
            for array, held in zip(memory, before, strict=False):
                array[...] = held
            problem = self._function(three(*grid), three(*block), addresses, sizes, len(values), order)
            if problem is not None:
                raise CUDARuntimeError(f"{self.name}: {problem.decode()}")
            left = [array.tobytes() for array in memory] if before else []
            if after and left != after:
                raise CUDARuntimeError(f"{self.name}: the results depend on the order in which threads run")
            after = left


def _value(argument: Any) -> Any:
    """An argument as CuPy passes it: Python's integers as int64, its floats as double, NumPy's scalars as they are."""
    import cupy

    if isinstance(argument, cupy.ndarray):
        if argument.device.id != runtime.getDevice():
            raise CUDARuntimeError("an array of another device")
        return ctypes.c_void_p(argument.data.ptr)
    if type(argument) is int:
        return ctypes.c_int64(argument)
    if type(argument) is float:
        return ctypes.c_double(argument)
    if isinstance(argument, np.generic):
        return (ctypes.c_char * argument.itemsize).from_buffer_copy(argument.tobytes())
    raise TypeError(f"no argument of a kernel: {type(argument)}")


# ---------------------------------------------------------------------------------------------------------------------
# cuBLAS
# ---------------------------------------------------------------------------------------------------------------------


def get_cublas_handle() -> int:
    """The only handle."""
    return 1


def _types() -> dict[int, Any]:
    ml_dtypes = sys.modules.get("ml_dtypes")  # without it, no array is bfloat16
    return {0: np.float32, 1: np.float64, 2: np.float16, 14: getattr(ml_dtypes, "bfloat16", None)}


def _matrix(pointer: int, kind: int, rows: int, columns: int, leading: int) -> Any:
    """A matrix in memory, whose columns are `leading` elements apart."""
    if leading < max(1, rows):
        raise ValueError(f"cuBLAS: the leading dimension {leading} is less than {rows}")
    dtype = np.dtype(_types()[kind])
    size = ((columns - 1) * leading + rows) * dtype.itemsize
    flat = np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, leading * dtype.itemsize))


def _gemm_ex(handle: int, transpose_a: int, transpose_b: int, m: int, n: int, k: int, *given: int) -> None:
    """``c = alpha op(a) op(b) + beta c``, as cuBLAS's reference describes it; with a beta of 0, c is not read."""
    alpha, a, kind_a, leading_a, b, kind_b, leading_b, beta, c, kind_c, leading_c, compute, _ = given
    wide: Any = {68: np.float32, 70: np.float64}[compute]
    factors = [wide(np.frombuffer((ctypes.c_char * 8).from_address(p), wide, 1)[0]) for p in (alpha, beta)]
    left = _matrix(a, kind_a, *((k, m) if transpose_a else (m, k)), leading_a)
    right = _matrix(b, kind_b, *((n, k) if transpose_b else (k, n)), leading_b)
    out = _matrix(c, kind_c, m, n, leading_c)
    with np.errstate(all="ignore"):
        left, right = ((x.T if t else x).astype(wide) for x, t in ((left, transpose_a), (right, transpose_b)))
        product = factors[0] * (left @ right)
        out[...] = product if factors[1] == 0 else product + factors[1] * out.astype(wide)


cublas = SimpleNamespace(gemmEx=_gemm_ex)
