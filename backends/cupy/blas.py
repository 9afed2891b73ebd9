"""cuBLAS: by CuPy, or for the products of a CUDA graph by a handle of plugrad's own.

CuPy refuses cuBLAS on a stream that is being captured: its `setStream`, which each of its calls makes, raises
`NotImplementedError`. cuBLAS itself can be captured (its documentation, "CUDA Graphs Support"): scalars on the host are
stored in the graph, and a workspace that the caller has set is used in place of allocations in the graph. So the handle
gets its stream and its workspace first, and is called by ctypes.

cuBLAS may choose its algorithm by the size of the workspace. That of a graph is as large as the pool that a handle has
by default, so that the products of a graph have the bits of those outside of it.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cupy

# The sizes of cuBLAS's default workspace by the major compute capability (documentation of cublasSetWorkspace).
MIB = 2**20
WORKSPACES = {9: 32 * MIB, 10: 32 * MIB, 12: 12 * MIB}
WORKSPACE_BEFORE = 4 * MIB

# The variable that gives that pool another size.
CONFIG = "CUBLAS_WORKSPACE_CONFIG"

INT, POINTER = ctypes.c_int, ctypes.c_void_p
SIGNATURES: dict[str, list[Any]] = {
    "cublasSetWorkspace_v2": [POINTER, POINTER, ctypes.c_size_t],
    "cublasGemmEx": [
        *(POINTER, INT, INT, INT, INT, INT),
        *(POINTER, POINTER, INT, INT, POINTER, INT, INT),
        *(POINTER, POINTER, INT, INT, INT, INT),
    ],
}


class _Thread(threading.local):
    """The handle in force in a thread, if not CuPy's."""

    handle: "Handle | None" = None


_thread = _Thread()


def gemm_ex(*arguments: int) -> None:
    """Call ``cublasGemmEx`` on the current stream, with its arguments after the handle."""
    handle = _thread.handle
    if handle is None:
        cupy.cuda.cublas.gemmEx(cupy.cuda.get_cublas_handle(), *arguments)
    else:
        handle.gemm_ex(*arguments)


def is_captured() -> bool:
    """Whether this thread is capturing a CUDA graph by `Handle.capturing`."""
    return _thread.handle is not None


class Handle:
    """A handle of cuBLAS for the products of CUDA graphs on the current device; one thread at a time may use it."""

    def __init__(self) -> None:
        if os.environ.get(CONFIG):
            raise RuntimeError(
                f"{CONFIG} is set, and products of a graph might not choose the algorithms that it leads to"
            )
        of_cupy = cupy.cuda.get_cublas_handle()
        self._functions = _functions(cupy.cuda.cublas.getVersion(of_cupy) // 10_000)
        self._handle: int = cupy.cuda.cublas.create()
        self._new_workspace: Callable[[int], Any] | None = None
        major = int(cupy.cuda.Device().compute_capability) // 10
        self._size = WORKSPACES.get(major, WORKSPACE_BEFORE)

    @contextlib.contextmanager
    def capturing(self, stream: Any, workspace: Callable[[int], Any]) -> Iterator[None]:
        """Make the products of this thread in the block by this handle, on a stream that is not captured yet.

        `workspace` returns a pointer to as many bytes as it is asked for, which stay the graph's.
        """
        cublas = cupy.cuda.cublas
        cublas.setStream(self._handle, stream.ptr)
        cublas.setMathMode(self._handle, cublas.getMathMode(cupy.cuda.get_cublas_handle()))
        self._new_workspace = workspace
        try:
            _thread.handle = self
            yield
        finally:
            _thread.handle = self._new_workspace = None

    def gemm_ex(self, *arguments: int) -> None:
        """Call ``cublasGemmEx``, with its arguments after the handle."""
        if self._new_workspace is not None:
            pointer, self._new_workspace = self._new_workspace(self._size), None
            self._call("cublasSetWorkspace_v2", pointer.ptr, self._size)
        self._call("cublasGemmEx", *arguments)

    def _call(self, name: str, *arguments: int) -> None:
        status = self._functions[name](self._handle, *arguments)
        if status:
            raise RuntimeError(f"{name} failed with the status {status}")


def _functions(major: int) -> dict[str, Any]:
    """The functions of the cuBLAS that CuPy has loaded: a library is loaded once under its name."""
    library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
    functions = {name: getattr(library, name) for name in SIGNATURES}
    for name, function in functions.items():
        function.argtypes, function.restype = SIGNATURES[name], INT
    return functions
