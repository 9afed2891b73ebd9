"""Functions of Python that XLA calls on its own memory: handlers of its foreign function interface, by ctypes.

A handler gets NumPy arrays over the memory of XLA's buffers, so that nothing is copied and nothing of JAX is called
while it runs. (`jax.pure_callback` copies arguments and results, by calls into JAX that wait for threads which it may
hold up itself.) The structures are those of ``xla/ffi/api/c_api.h``, version 0 of the interface; the layout of their
fields is fixed within a version, and new fields come last.
"""

import _thread
import atexit
import contextlib
import ctypes
import functools
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax
import ml_dtypes
import numpy as np

MAJOR_VERSION = 0
METADATA = 1  # the extension by which XLA asks a handler for its version
INVALID_ARGUMENT, INTERNAL = 3, 13
DTYPES = {
    2: np.dtype(np.int8),
    3: np.dtype(np.int16),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    6: np.dtype(np.uint8),
    7: np.dtype(np.uint16),
    8: np.dtype(np.uint32),
    9: np.dtype(np.uint64),
    10: np.dtype(np.float16),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
    16: np.dtype(ml_dtypes.bfloat16),
}

Arrays = list[Any]
Function = Callable[[bytes, Arrays, Arrays], None]


class _Extension(Structure):
    pass


_START: list[Any] = [("struct_size", c_size_t), ("extension_start", POINTER(_Extension))]


class _Version(Structure):
    _fields_ = [*_START, ("major", c_int), ("minor", c_int)]


class _Metadata(Structure):
    _fields_ = [("struct_size", c_size_t), ("version", _Version), ("traits", c_uint32), ("state_type", c_int64)]


_Extension._fields_ = [
    ("struct_size", c_size_t),
    ("type", c_int),
    ("next", POINTER(_Extension)),
    ("metadata", POINTER(_Metadata)),  # of the extension METADATA only
]


class _Buffer(Structure):
    _fields_ = [*_START, ("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64))]


class _Buffers(Structure):
    _fields_ = [*_START, ("size", c_int64), ("types", POINTER(c_int)), ("buffers", POINTER(POINTER(_Buffer)))]


class _Text(Structure):
    _fields_ = [("start", c_void_p), ("length", c_size_t)]


class _Attributes(Structure):
    _fields_ = [
        *_START,
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("names", c_void_p),
        ("values", POINTER(POINTER(_Text))),
    ]


class _Error(Structure):
    _fields_ = [*_START, ("message", c_char_p), ("code", c_int)]


class _Api(Structure):
    _fields_ = [
        *_START,
        ("version", _Version),
        ("internal", c_void_p),
        ("create_error", CFUNCTYPE(c_void_p, POINTER(_Error))),
    ]


class _Call(Structure):
    _fields_ = [
        *_START,
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    ]


class _Memory:
    """Memory of XLA, as NumPy reads it."""

    def __init__(self, **interface: Any) -> None:
        self.__array_interface__ = interface


def _arrays(buffers: Any, *, read_only: bool) -> Arrays:
    arrays: Arrays = []
    for i in range(buffers.size):
        buffer = buffers.buffers[i].contents
        shape, dtype = tuple(buffer.dims[: buffer.rank]), DTYPES[buffer.dtype]
        if not buffer.data:  # of an empty array
            arrays.append(np.empty(shape, dtype))
            continue
        typestr = f"|V{dtype.itemsize}"  # bfloat16 has none of its own
        memory = _Memory(version=3, shape=shape, typestr=typestr, data=(buffer.data, read_only))
        arrays.append(np.asarray(memory).view(dtype))
    return arrays


def _tell_version(call: Any) -> None:
    """Answer the question of XLA at registration: the version is its own, if we know that layout."""
    xla = call.api.contents.version
    if xla.major != MAJOR_VERSION:
        raise ImportError(f"expected version {MAJOR_VERSION} of XLA's foreign functions, got {xla.major}.{xla.minor}")
    version = call.extension_start.contents.metadata.contents.version
    version.major, version.minor = xla.major, xla.minor


def _error(call: Any, error: BaseException) -> Any:
    if isinstance(error, KeyboardInterrupt):  # an error of XLA would take its place
        _thread.interrupt_main()
    code = INVALID_ARGUMENT if isinstance(error, TypeError | ValueError) else INTERNAL
    message = f"{type(error).__name__}: {error}".encode()
    given = _Error(ctypes.sizeof(_Error), None, message, code)
    return call.api.contents.create_error(byref(given))


def register(target: str, function: Function) -> None:
    """Make `function` the handler of custom calls of `target` on the CPU.

    It is called with the call's only attribute, a string, the arguments, which are read-only, and the results to
    write. An exception becomes a `jax.errors.JaxRuntimeError` with its type and message.
    """

    def handle(pointer: Any) -> Any:
        call = pointer.contents
        try:
            if call.extension_start and call.extension_start.contents.type == METADATA:
                _tell_version(call)
                return None
            text = call.attributes.values[0].contents
            arguments = _arrays(call.arguments, read_only=True)
            results = _arrays(call.results, read_only=False)
            function(ctypes.string_at(text.start, text.length), arguments, results)
        except BaseException as error:
            return _error(call, error)
        return None

    handler = CFUNCTYPE(c_void_p, POINTER(_Call))(handle)
    _handlers.append(handler)
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(ctypes.cast(handler, c_void_p)), platform="cpu")


_handlers: list[Any] = []  # XLA calls them as long as the process runs


def call(target: str, text: str, results: Any, vmap_method: str, *arguments: Any) -> tuple[Any, ...]:
    """The results of the handler of `target`, arrays of these shapes and dtypes, when JAX computes them."""
    _wait_at_exit()
    structs = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results)
    found = jax.ffi.ffi_call(target, structs, vmap_method=vmap_method)(*arguments, call=text)
    return alike(*found, axes=_varying(*arguments))


def alike(*arrays: Any, axes: frozenset[Any] = frozenset()) -> tuple[Any, ...]:
    """The arrays inside `jax.shard_map`, each typed to vary over the axes over which one does, and `axes`."""
    axes |= _varying(*arrays)
    return tuple(
        jax.lax.pcast(x, tuple(missing), to="varying") if (missing := axes - _varying(x)) else x for x in arrays
    )


def _varying(*arrays: Any) -> frozenset[Any]:
    """The axes of a mesh over which one of the arrays differs between devices."""
    axes: frozenset[Any] = frozenset()
    return axes.union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


@functools.cache
def _wait_at_exit() -> None:
    """Let what is being computed at exit end before JAX goes, which waits for it and keeps handlers from running."""
    atexit.register(_wait)  # after JAX's own, and so before it


def _wait() -> None:
    for array in jax.live_arrays("cpu"):
        with contextlib.suppress(Exception):
            array.block_until_ready()
