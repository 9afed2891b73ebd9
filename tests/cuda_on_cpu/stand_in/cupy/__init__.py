"""A stand-in for the parts of CuPy that plugrad and its tests use: arrays in host memory, kernels run by `device.cpp`.

An array is of a class of its own that NumPy does not take for an array, so that moving data by accident fails as it
does with CuPy. New memory is poisoned. Waiting for the device is refused where cupyx.allow_synchronize says so, and on
a stream that is being captured; there, computations are put off until the graph is launched.
"""

import ctypes
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

__version__ = "14.2.0"

waiting_is_allowed = [True]


def _wait() -> None:
    cuda.refuse_capture("the device was waited for")
    if not waiting_is_allowed[0]:
        raise RuntimeError("the device was waited for")


class _Memory:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class _Device:
    def __init__(self, number: int) -> None:
        self.id = number


class ndarray:  # noqa: N801  (CuPy's name)
    """An array on the device."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, device: int | None = None) -> None:
        self._host = host
        self.device = _Device(cuda.runtime.getDevice() if device is None else device)

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    strides = property(lambda self: self._host.strides)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: _Flags(self._host))
    data = property(lambda self: _Memory(self._host.__array_interface__["data"][0]))
    T = property(lambda self: _view(self._host.T, self))

    def __array__(self, *arguments: Any, **named: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def get(self) -> Any:
        """A copy in host memory."""
        _wait()
        return self._host.copy()

    def item(self, *index: int) -> Any:
        """One element as a Python number."""
        _wait()
        return self._host.item(*index)

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __abs__(self) -> "ndarray":
        return _computed(operator.abs, self, like=self)

    def __neg__(self) -> "ndarray":
        return _computed(operator.neg, self, like=self)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> "ndarray":
        index = index if isinstance(index, tuple) else (index,)
        if any(isinstance(each, ndarray) for each in index):
            return _computed(lambda host, *index: host[index], self, *index, like=self)
        return _view(self._host[_with_ellipsis(index)], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("a numpy.ndarray cannot be written to an array on the device")
        index = index if isinstance(index, tuple) else (index,)
        if any(isinstance(each, ndarray) for each in index):
            cuda.refuse_capture("a copy from host memory: the value for a mask")
            self._host[tuple(map(_host, index))] = _host(value)
            return
        _change(lambda target, value: target.__setitem__(..., value), self[index], value)

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        """The elements in another dtype; the array itself if it has the dtype and `copy` is false."""
        if not copy and self.dtype == dtype:
            return self
        return _computed(lambda host: host.astype(dtype), self, like=self)

    def copy(self) -> "ndarray":
        """A copy."""
        return _computed(lambda host: host, self, like=self)

    def view(self, dtype: Any) -> "ndarray":
        """The same memory as elements of another dtype."""
        return _view(self._host.view(dtype), self)

    def reshape(self, *shape: Any) -> "ndarray":
        """The same elements in another shape; a copy if the strides ask for one."""
        host = self._host.reshape(*shape)
        if host.size and not np.may_share_memory(host, self._host):
            return _computed(lambda host: host.reshape(*shape), self, like=self)
        return _view(host, self)

    def swapaxes(self, one: int, other: int) -> "ndarray":
        """The same elements with two axes exchanged."""
        return _view(self._host.swapaxes(one, other), self)

    def sum(self, axis: int | None = None) -> "ndarray":
        """The sum along an axis."""
        return _computed(lambda host: host.sum(axis=axis), self, like=self)

    def max(self, axis: int | None = None) -> "ndarray":
        """The largest element along an axis."""
        return _computed(lambda host: host.max(axis=axis), self, like=self)

    def transpose(self, *axes: int) -> "ndarray":
        """The same elements with the axes in another order."""
        return _view(self._host.transpose(*axes), self)

    def __repr__(self) -> str:
        return repr(self._host)


class _Flags:
    """The flags of CuPy arrays; like CuPy, without ``writeable``."""

    def __init__(self, host: Any) -> None:
        self.c_contiguous: bool = host.flags.c_contiguous
        self.f_contiguous: bool = host.flags.f_contiguous


def _host(x: Any) -> Any:
    return x._host if isinstance(x, ndarray) else x


def _view(host: Any, of: ndarray) -> ndarray:
    return ndarray(host, of.device.id)


def _with_ellipsis(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """An index whose result is a view, without dimensions too."""
    return index if any(each is Ellipsis for each in index) else (*index, ...)


def _computed(function: Callable[..., Any], *operands: Any, like: ndarray | None = None) -> ndarray:
    """A new array with what a function of NumPy arrays computes, at once or when a graph is launched."""
    with np.errstate(all="ignore"):
        found = np.asarray(function(*map(_host, operands)))
    result = empty(found.shape, found.dtype)
    if like is not None:
        result.device = like.device
    if cuda.get_current_stream().is_capturing():
        _change(lambda target, *operands: target.__setitem__(..., function(*operands)), result, *operands)
    else:
        result._host[...] = found
    return result


def _change(function: Callable[..., Any], *operands: Any) -> None:
    """Have a function write to NumPy arrays, at once or when a graph is launched."""
    if not cuda.get_current_stream().is_capturing():
        with np.errstate(all="ignore"):
            function(*map(_host, operands))
        return
    places = [cuda.Place(each._host) if isinstance(each, ndarray) else each for each in operands]

    def work() -> None:
        with np.errstate(all="ignore"):
            function(*[each.array() if isinstance(each, cuda.Place) else each for each in places])

    cuda.submit(work)


def _operator(name: str) -> Any:
    function = getattr(operator, name, None)

    def operate(self: ndarray, other: Any = None) -> Any:
        if "matmul" in name and cuda.get_current_stream().is_capturing():
            raise NotImplementedError(cuda.NOT_CAPTURED)
        if function is None:  # a reflected one, such as __rmul__
            return _computed(getattr(operator, f"__{name[3:]}"), other, self, like=self)
        if name.startswith("__i"):
            _change(function, self, other)
            return self
        return _computed(function, self, other, like=self)

    return operate


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"):
    for _prefix in ("", "r", "i"):
        if not (_prefix and len(_name) == 2):
            setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """A new array, of the allocator in force; new memory has a byte pattern that shows in results."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    size = int(np.prod(shape)) * dtype.itemsize
    pointer = cuda.alloc(size)
    memory: Any = (ctypes.c_char * size).from_address(pointer.ptr)
    memory.pointer = pointer  # as long as the array or a view of it lives
    return ndarray(np.ndarray(shape, dtype, memory))


def asarray(x: Any) -> ndarray:
    """An array on the device with the elements of `x`."""
    if isinstance(x, ndarray):
        return x
    cuda.refuse_capture("a copy from host memory")
    host = np.asarray(x)
    array = empty(host.shape, host.dtype.newbyteorder("="))
    array._host[...] = host
    return array


def from_dlpack(x: Any) -> ndarray:
    """The memory of another library's array on the device, which a test gives by the attribute `on_device`."""
    found: ndarray = x.on_device
    return found


def asnumpy(x: ndarray) -> Any:
    """An array in host memory with the elements of `x`."""
    return x.get()


def ascontiguousarray(x: ndarray) -> ndarray:
    """`x`, or a C-contiguous copy."""
    return x if x.flags.c_contiguous else _computed(lambda host: host, x, like=x)


def matmul(a: ndarray, b: ndarray, *, out: ndarray) -> ndarray:
    """The product of two matrices, written to `out`."""
    if cuda.get_current_stream().is_capturing():
        raise NotImplementedError(cuda.NOT_CAPTURED)
    np.matmul(a._host, b._host, out=out._host)
    return out


def broadcast_to(x: ndarray, shape: tuple[int, ...]) -> ndarray:
    """`x` repeated by strides of 0."""
    return _view(np.broadcast_to(x._host, shape), x)


def _of_numpy(name: str) -> Any:
    """NumPy's function of this name, on arrays of the device; NumPy arrays are refused."""
    function = getattr(np, name)

    def compute(*arguments: Any, **named: Any) -> ndarray:
        if any(isinstance(argument, np.ndarray) for argument in arguments):
            raise TypeError(f"Unsupported type {np.ndarray}")
        return _computed(lambda *operands: function(*operands, **named), *arguments)

    return compute


_MORE = ("abs", "arange", "cosh", "exp", "full", "isnan", "log1p", "ones", "tanh", "where", "zeros")
for _name in _MORE:
    globals()[_name] = _of_numpy(_name)

from cupy import cuda  # noqa: E402
from cupy.cuda import RawModule  # noqa: E402

__all__ = ["RawModule", "asarray", "ascontiguousarray", "asnumpy", "broadcast_to", "cuda", "empty", "ndarray", *_MORE]
