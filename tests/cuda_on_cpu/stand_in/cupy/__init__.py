"""A stand-in for the parts of CuPy that plugrad and its tests use: arrays in host memory, kernels run by `device.cpp`.

An array is of a class of its own that NumPy does not take for an array, so that moving data by accident fails as it
does with CuPy. New memory is poisoned. Waiting for the device is refused where cupyx.allow_synchronize says so.
"""

import operator
from typing import Any

import numpy as np

__version__ = "14.2.0"

POISON = 0xA5
waiting_is_allowed = [True]


def _wait() -> None:
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
    T = property(lambda self: ndarray(self._host.T, self.device.id))

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
        return _new(abs(self._host), self)

    def __neg__(self) -> "ndarray":
        return _new(-self._host, self)

    def __len__(self) -> int:
        return len(self._host)

    def __getitem__(self, index: Any) -> "ndarray":
        return _new(self._host[_host(index)], self)

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("a numpy.ndarray cannot be written to an array on the device")
        with np.errstate(all="ignore"):
            self._host[_host(index)] = _host(value)

    def astype(self, dtype: Any, copy: bool = True) -> "ndarray":
        """The elements in another dtype; the array itself if it has the dtype and `copy` is false."""
        if not copy and self.dtype == dtype:
            return self
        with np.errstate(all="ignore"):
            return _new(self._host.astype(dtype), self)

    def copy(self) -> "ndarray":
        """A copy."""
        return _new(self._host.copy(), self)

    def view(self, dtype: Any) -> "ndarray":
        """The same memory as elements of another dtype."""
        return _new(self._host.view(dtype), self)

    def reshape(self, *shape: Any) -> "ndarray":
        """The same elements in another shape."""
        return _new(self._host.reshape(*shape), self)

    def swapaxes(self, one: int, other: int) -> "ndarray":
        """The same elements with two axes exchanged."""
        return _new(self._host.swapaxes(one, other), self)

    def sum(self, axis: int | None = None) -> "ndarray":
        """The sum along an axis."""
        return _new(self._host.sum(axis=axis), self)

    def max(self, axis: int | None = None) -> "ndarray":
        """The largest element along an axis."""
        return _new(self._host.max(axis=axis), self)

    def transpose(self, *axes: int) -> "ndarray":
        """The same elements with the axes in another order."""
        return _new(self._host.transpose(*axes), self)

    def __repr__(self) -> str:
        return repr(self._host)


class _Flags:
    """The flags of CuPy arrays; like CuPy, without ``writeable``."""

    def __init__(self, host: Any) -> None:
        self.c_contiguous: bool = host.flags.c_contiguous
        self.f_contiguous: bool = host.flags.f_contiguous


def _host(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_host, x))
    return x._host if isinstance(x, ndarray) else x


def _new(host: Any, like: ndarray) -> ndarray:
    return ndarray(np.asarray(host), like.device.id)


def _operator(name: str) -> Any:
    function = getattr(operator, name, None)

    def operate(self: ndarray, other: Any = None) -> Any:
        with np.errstate(all="ignore"):
            if function is None:  # a reflected one, such as __rmul__
                return _new(getattr(operator, f"__{name[3:]}")(_host(other), self._host), self)
            if name.startswith("__i"):
                function(self._host, _host(other))
                return self
            return _new(function(self._host, _host(other)), self)

    return operate


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "lt", "le", "gt", "ge", "eq", "ne"):
    for _prefix in ("", "r", "i"):
        if not (_prefix and len(_name) == 2):
            setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))


def empty(shape: Any, dtype: Any = float) -> ndarray:
    """A new array filled with a byte pattern that shows in results."""
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8)[...] = POISON
    return ndarray(host)


def asarray(x: Any) -> ndarray:
    """An array on the device with the elements of `x`."""
    if isinstance(x, ndarray):
        return x
    host = np.asarray(x)
    array = empty(host.shape, host.dtype.newbyteorder("="))
    array._host[...] = host
    return array


def asnumpy(x: ndarray) -> Any:
    """An array in host memory with the elements of `x`."""
    return x.get()


def ascontiguousarray(x: ndarray) -> ndarray:
    """`x`, or a C-contiguous copy."""
    if x.flags.c_contiguous:
        return x
    array = empty(x.shape, x.dtype)
    array._host[...] = x._host
    return array


def matmul(a: ndarray, b: ndarray, *, out: ndarray) -> ndarray:
    """The product of two matrices, written to `out`."""
    np.matmul(a._host, b._host, out=out._host)
    return out


def broadcast_to(x: ndarray, shape: tuple[int, ...]) -> ndarray:
    """`x` repeated by strides of 0."""
    return _new(np.broadcast_to(x._host, shape), x)


def _of_numpy(name: str) -> Any:
    """NumPy's function of this name, on arrays of the device; NumPy arrays are refused."""
    function = getattr(np, name)

    def compute(*arguments: Any, **named: Any) -> ndarray:
        if any(isinstance(argument, np.ndarray) for argument in arguments):
            raise TypeError(f"Unsupported type {np.ndarray}")
        with np.errstate(all="ignore"):
            return ndarray(np.asarray(function(*map(_host, arguments), **named)))

    return compute


_MORE = ("arange", "cosh", "exp", "full", "isnan", "log1p", "ones", "tanh", "where", "zeros")
for _name in _MORE:
    globals()[_name] = _of_numpy(_name)

from cupy import cuda  # noqa: E402
from cupy.cuda import RawModule  # noqa: E402

__all__ = ["RawModule", "asarray", "ascontiguousarray", "asnumpy", "broadcast_to", "cuda", "empty", "ndarray", *_MORE]
