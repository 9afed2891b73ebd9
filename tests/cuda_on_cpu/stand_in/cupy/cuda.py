"""A stand-in for cupy.cuda: devices, memory, streams and graphs, g++ in place of NVRTC, and NumPy in place of cuBLAS.

``CUDA_ON_CPU_ORDER`` is the order in which threads run: ascending, descending, random, ``alternating`` between the
three from launch to launch, ``pairs``: each launch is repeated in two of them, in turn for each kernel, and must leave
the same bits, or ``every``: the same in all three.
``CUDA_ON_CPU_FLAGS`` are more flags for g++, such as those of a sanitizer.
"""

import atexit
import contextlib
import ctypes
import functools
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ORDERS = ("ascending", "descending", "random")
HERE = Path(__file__).resolve().parents[2]
STANDARD = "-std=c++17"
FLAGS = [STANDARD, "-O1", "-w", "-ffp-contract=off", *os.environ.get("CUDA_ON_CPU_FLAGS", "").split()]

POISON = 0xA5


class CUDARuntimeError(RuntimeError):
    """The error for a status other than success."""


class _Thread(threading.local):
    """The state of a thread: its devices, streams and allocator."""

    def __init__(self) -> None:
        self.devices = [0]  # the current one last
        self.streams: dict[int, Any] = {}  # the current one of each device
        self.blocks: dict[int, list[Any]] = {}  # those of the `with` blocks
        self.allocator: Callable[[int], Any] | None = None


_thread = _Thread()


class Device:
    """A device, current within a ``with`` block."""

    compute_capability = "90"

    def __init__(self, number: int | None = None) -> None:
        self.id = runtime.getDevice() if number is None else number

    def __enter__(self) -> None:
        _thread.devices.append(self.id)

    def __exit__(self, *error: Any) -> None:
        _thread.devices.pop()


class Event:
    """A point in time."""

    time = 0.0

    def record(self) -> None:
        """Record the current time."""
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        """Return at once: kernels run synchronously."""


def get_elapsed_time(start: Event, stop: Event) -> float:
    """Milliseconds between two events."""
    return (stop.time - start.time) * 1e3


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDevice=lambda: _thread.devices[-1],
    getDeviceCount=lambda: 2,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    getDeviceProperties=lambda number: {"name": b"a device on the CPU"},
)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------

_serials = itertools.count(1)
_allocated: dict[int, tuple[int, int]] = {}  # address -> size, and a number that no other allocation has


_libc = ctypes.CDLL(None)  # its allocator is that of a sanitizer, where there is one
ALIGNMENT = 256


class Memory:
    """Memory of CUDA's allocator, poisoned."""

    def __init__(self, size: int) -> None:
        self.ptr, self.size, self.device_id = 0, size, runtime.getDevice()
        address = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(address), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(max(1, size))):
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        self.ptr = address.value or 0
        ctypes.memset(self.ptr, POISON, size)
        _allocated[self.ptr] = max(1, size), next(_serials)

    def __del__(self) -> None:
        if self.ptr:
            _allocated.pop(self.ptr)
            _libc.free(ctypes.c_void_p(self.ptr))


class UnownedMemory:
    """Memory that an owner, another object, keeps."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int) -> None:
        self.ptr, self.size, self._owner, self.device_id = ptr, size, owner, device_id


class MemoryPointer:
    """An address in a memory, which is held."""

    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset


def alloc(size: int) -> Any:
    """Memory of the allocator in force."""
    return MemoryPointer(Memory(size), 0) if _thread.allocator is None else _thread.allocator(size)


@contextlib.contextmanager
def using_allocator(allocator: Callable[[int], Any]) -> Iterator[None]:
    """Within the block, use another allocator in this thread."""
    before = _thread.allocator
    _thread.allocator = allocator
    try:
        yield
    finally:
        _thread.allocator = before


class Place:
    """The memory of an array or a matrix as a graph knows it: by its address, and by nothing that keeps it."""

    def __init__(self, host: Any) -> None:
        self._shape, self._strides, self._dtype = host.shape, host.strides, host.dtype
        self._ptr = host.__array_interface__["data"][0]
        steps = [stride * (length - 1) for stride, length in zip(host.strides, host.shape, strict=True)]
        self._first = self._ptr + sum(step for step in steps if step < 0)
        self._bytes = sum(map(abs, steps)) + host.itemsize if host.size else 0
        self._serial = self._found() if host.size else None

    def _found(self) -> int | None:
        """The serial number of the allocation that all of it lies in."""
        for ptr, (size, serial) in list(_allocated.items()):
            if ptr <= self._first and self._first + self._bytes <= ptr + size:
                return serial
        raise CUDARuntimeError("cudaErrorIllegalAddress: a graph uses memory that has been freed")

    def array(self) -> Any:
        """The array there; an error if the memory has been freed, or freed and allocated anew."""
        if self._serial is not None and self._found() != self._serial:
            raise CUDARuntimeError("cudaErrorIllegalAddress: a graph uses memory that has been freed")
        memory = (ctypes.c_char * self._bytes).from_address(self._first)
        return np.ndarray(self._shape, self._dtype, memory, self._ptr - self._first, self._strides)


# ---------------------------------------------------------------------------------------------------------------------
# Streams and graphs
# ---------------------------------------------------------------------------------------------------------------------

_captures: dict[int, list[Callable[[], None]] | None] = {}  # stream -> the nodes of its graph; None if it is invalid
_addresses = itertools.count(1000)


class _BaseStream:
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        self.ptr, self.device_id = ptr, device_id

    def use(self) -> Any:
        """Make the stream current, until another one is, or a block of a stream ends."""
        device = runtime.getDevice()
        if self.device_id not in (-1, device):
            raise RuntimeError(f"the stream belongs to device {self.device_id}, and the current one is {device}")
        _thread.streams[device] = self
        return self

    def __enter__(self) -> Any:
        self.use()
        _thread.blocks.setdefault(runtime.getDevice(), [null_stream]).append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        """Return to the stream of the block around this one: CuPy forgets what `use` made current before."""
        device = runtime.getDevice()
        _thread.blocks[device].pop()
        _thread.streams[device] = _thread.blocks[device][-1]

    def is_capturing(self) -> bool:
        """Whether the stream is being captured."""
        return self.ptr in _captures

    def begin_capture(self) -> None:
        """Record the work of the stream, in place of doing it."""
        if self.ptr in (0, 1):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.ptr in _captures:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is being captured")
        _captures[self.ptr] = []

    def end_capture(self) -> "Graph":
        """Return the recorded work."""
        if self.ptr not in _captures:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not being captured")
        nodes = _captures.pop(self.ptr)
        if nodes is None:
            raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: an error has ended the capture")
        return Graph(nodes, runtime.getDevice())


class Stream(_BaseStream):
    """A new stream."""

    def __init__(self, *, non_blocking: bool = False) -> None:
        if not non_blocking:
            raise NotImplementedError("a stream that waits for the default one")
        super().__init__(next(_addresses), runtime.getDevice())


class ExternalStream(_BaseStream):
    """The stream of another library."""


null_stream = _BaseStream(0)


def get_current_stream() -> Any:
    """The current stream; kernels on all of them run synchronously."""
    return _thread.streams.get(runtime.getDevice(), null_stream)


class Graph:
    """Work that has been captured."""

    def __init__(self, nodes: list[Callable[[], None]], device: int) -> None:
        self._nodes, self._device = nodes, device

    def launch(self) -> None:
        """Do the work, on the current stream."""
        if runtime.getDevice() != self._device:
            raise CUDARuntimeError("cudaErrorInvalidResourceHandle: a graph of another device")
        launched.append(f"graph of {len(self._nodes)}")
        submit(lambda: [node() for node in self._nodes])


launched: list[str] = []  # graphs, and the names of kernels outside of them, for tests to look at


def submit(work: Callable[[], Any], stream: int | None = None) -> None:
    """Do work on the current stream or another; if it is being captured, when the graph is launched."""
    ptr = get_current_stream().ptr if stream is None else stream
    if ptr not in _captures:
        work()
    elif (nodes := _captures[ptr]) is None:
        raise CUDARuntimeError("cudaErrorStreamCaptureInvalidated: an error has ended the capture")
    else:
        nodes.append(work)


def refuse_capture(what: str) -> None:
    """Raise the error of CUDA for what a stream that is being captured cannot do, which ends the capture."""
    if (ptr := get_current_stream().ptr) in _captures:
        _captures[ptr] = None
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a capture")


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
        text = _run(program, *FLAGS, "-E", *macros, "-I", name, str(folder / "source.cpp"))
        kernels = re.findall(r'extern "C" __attribute__\(\(annotate_kernel\)\) void\s+(\w+)\(', text)
        launchers = "".join(_launcher(kernel) for kernel in dict.fromkeys(kernels))
        (folder / "kernels.ii").write_text(text + launchers)
        _run(
            program,
            *FLAGS,
            "-shared",
            "-fPIC",
            str(folder / "kernels.ii"),
            _threads(),
            "-o",
            str(folder / "kernels.so"),
        )
        program.code = (folder / "kernels.so").read_bytes()


@functools.cache
def _threads() -> str:
    """The object file of device.cpp."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = f"{folder.name}/device.o"
    _run(_Program("", (), ()), STANDARD, "-O2", "-c", "-fPIC", str(HERE / "device.cpp"), "-o", path)  # no sanitizers
    return path


def _launcher(kernel: str) -> str:
    parameters = "const unsigned* grid, const unsigned* block, void** arguments, const int* sizes, int count, int order"
    call = f"device::launch(&{kernel}, grid, block, arguments, sizes, count, order)"
    return f'extern "C" const char* launch_{kernel}({parameters}) {{ return {call}; }}\n'


def _run(program: _Program, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer in g++
    done = subprocess.run(["g++", *arguments], env=variables, capture_output=True, text=True, check=False)
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
_pairs: defaultdict[str, Iterator[tuple[int, int]]] = defaultdict(lambda: itertools.cycle([(0, 1), (1, 2), (2, 0)]))


def orders(kernel: str) -> tuple[int, ...]:
    """The orders of the threads of the next launch of a kernel."""
    name = os.environ.get("CUDA_ON_CPU_ORDER", "alternating")
    if name == "every":
        return tuple(range(len(ORDERS)))
    if name == "pairs":
        return next(_pairs[kernel])
    return (next(_turns) if name == "alternating" else ORDERS.index(name),)


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
        if not get_current_stream().is_capturing():
            launched.append(self.name)
            self._launch(grid, block, values, [argument._host for argument in arguments if hasattr(argument, "_host")])
            return
        places = [Place(argument._host) for argument in arguments if hasattr(argument, "_host")]
        submit(lambda: self._launch(grid, block, values, [place.array() for place in places]))

    def _launch(self, grid: Any, block: Any, values: list[Any], memory: list[Any]) -> None:
        addresses = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        sizes = (ctypes.c_int * len(values))(*[ctypes.sizeof(value) for value in values])
        three = ctypes.c_uint * 3
        turns = orders(self.name)
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
    """The handle that CuPy has."""
    return 1


NOT_CAPTURED = "calling cuBLAS API during stream capture is currently unsupported"
LARGEST_WORKSPACE = 32 * 2**20


class _Handles:
    """The handles of cuBLAS: their streams, math modes and workspaces."""

    def __init__(self) -> None:
        self.streams, self.modes = {1: 0}, {1: 0}
        self.workspaces: dict[int, Any] = {}

    def create(self) -> int:
        refuse_capture("a new handle")
        handle = len(self.streams) + 1
        self.streams[handle] = self.modes[handle] = 0
        return handle

    def set_stream(self, handle: int, stream: int) -> None:
        """Set the stream as CuPy does; it also takes away the workspace."""
        if stream in _captures:
            raise NotImplementedError(NOT_CAPTURED)
        self.streams[handle] = stream
        self.workspaces.pop(handle, None)


_handles = _Handles()


def _gemm_ex_of_cupy(handle: int, *given: int) -> None:
    _handles.set_stream(handle, get_current_stream().ptr)
    _gemm_ex(handle, *given)


# The library itself, which is called by ctypes. Its name is that of a version which does not exist: another library in
# the process may have loaded a real one.
MAJOR = 99
LIBRARY = """
#include <cstddef>
using Gemm = int (*)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int,
                     const void*, void*, int, int, int, int);
using Workspace = int (*)(void*, void*, size_t);
static Gemm gemm;
static Workspace set_workspace;
extern "C" void stand_in(Gemm one, Workspace other) { gemm = one; set_workspace = other; }
extern "C" int cublasSetWorkspace_v2(void* handle, void* workspace, size_t size) {
    return set_workspace(handle, workspace, size);
}
extern "C" int cublasGemmEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* A,
                            int Atype, int lda, const void* B, int Btype, int ldb, const void* beta, void* C, int Ctype,
                            int ldc, int compute, int algorithm) {
    return gemm(handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, compute,
                algorithm);
}
"""
INVALID_VALUE, ALLOC_FAILED, EXECUTION_FAILED = 7, 3, 13


def _set_workspace(handle: int, workspace: int, size: int) -> int:
    if workspace % ALIGNMENT or not 2**14 <= size <= LARGEST_WORKSPACE:
        return INVALID_VALUE
    _handles.workspaces[handle] = np.frombuffer((ctypes.c_char * size).from_address(workspace), np.uint8)
    return 0


def _gemm_ex_of_library(handle: int, *given: int) -> int:
    """A product on the stream of the handle. In a capture it needs a workspace, and its factors are read at once."""
    stream, workspace = _handles.streams[handle], _handles.workspaces.get(handle)
    if stream not in _captures:
        return EXECUTION_FAILED  # plugrad calls the library in captures only
    if workspace is None:
        return ALLOC_FAILED
    try:
        _gemm_ex(handle, *given, stream=stream, workspace=workspace)
    except (CUDARuntimeError, ValueError):
        return EXECUTION_FAILED
    return 0


@functools.cache
def _library() -> list[Any]:
    """Load the library under its name, as CuPy has loaded cuBLAS; what its functions call has to be kept."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/cublas.so"
        Path(f"{folder}/cublas.cpp").write_text(LIBRARY)
        soname = f"-Wl,-soname,libcublas.so.{MAJOR}"
        _run(_Program("", (), ()), "-shared", "-fPIC", soname, f"{folder}/cublas.cpp", "-o", path)
        library = ctypes.CDLL(path)
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    operands = [pointer, pointer, integer, integer, pointer, integer, integer, pointer, pointer, *[integer] * 4]
    gemm = ctypes.CFUNCTYPE(integer, pointer, *[integer] * 5, *operands)(_gemm_ex_of_library)
    workspace = ctypes.CFUNCTYPE(integer, pointer, pointer, ctypes.c_size_t)(_set_workspace)
    library.stand_in(gemm, workspace)
    return [library, gemm, workspace]


def _version(handle: int) -> int:
    _library()
    return MAJOR * 10_000


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


def _gemm_ex(
    handle: int,
    transpose_a: int,
    transpose_b: int,
    m: int,
    n: int,
    k: int,
    *given: int,
    stream: int | None = None,
    workspace: Any = None,
) -> None:
    """``c = alpha op(a) op(b) + beta c``, as cuBLAS's reference describes it; with a beta of 0, c is not read."""
    alpha, a, kind_a, leading_a, b, kind_b, leading_b, beta, c, kind_c, leading_c, compute, _ = given
    wide: Any = {68: np.float32, 70: np.float64}[compute]
    factors = [wide(np.frombuffer((ctypes.c_char * 8).from_address(p), wide, 1)[0]) for p in (alpha, beta)]
    left = _matrix(a, kind_a, *((k, m) if transpose_a else (m, k)), leading_a)
    right = _matrix(b, kind_b, *((n, k) if transpose_b else (k, n)), leading_b)
    out = _matrix(c, kind_c, m, n, leading_c)

    def compute_product(left: Any, right: Any, out: Any, workspace: Any = None) -> None:
        if workspace is not None:
            workspace[...] = POISON
        with np.errstate(all="ignore"):
            left, right = ((x.T if t else x).astype(wide) for x, t in ((left, transpose_a), (right, transpose_b)))
            product = factors[0] * (left @ right)
            out[...] = product if factors[1] == 0 else product + factors[1] * out.astype(wide)

    if workspace is None:
        compute_product(left, right, out)
        return
    places = [Place(array) for array in (left, right, out, workspace)]
    submit(lambda: compute_product(*[place.array() for place in places]), stream)


cublas = SimpleNamespace(
    gemmEx=_gemm_ex_of_cupy,
    create=_handles.create,
    setStream=_handles.set_stream,
    getMathMode=_handles.modes.__getitem__,
    setMathMode=_handles.modes.__setitem__,
    getVersion=_version,
)
