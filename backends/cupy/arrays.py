"""Hooks for CuPy arrays: conversion, creation, comparison of memory. Only `to_numpy` waits for the device."""

from typing import Any, TypeAlias

import cupy
import numpy as np

from plugrad.backends import host, libraries, tensors

Array: TypeAlias = Any


def take(what: str, x: Any) -> Array:
    """The argument `x`, called `what` in messages, as a CuPy array on the current device; no data is moved."""
    if tensors.is_tensor(x):
        x = tensors.seen_by_cupy(what, x, cupy)
    elif (library := libraries.library_of(type(x))) is not None and library.on_gpu(x):
        if problem := tensors.problem_of_jax(x):
            raise TypeError(f"{what}: expected an array, got {problem}")
        x = cupy.from_dlpack(x)
    elif not isinstance(x, cupy.ndarray):
        kind = type(x)
        # An array that could be on a device but is not lacks the attribute, which its type may have.
        if getattr(x, "__cuda_array_interface__", None) is None:
            raise TypeError(
                f"{what}: expected a cupy.ndarray, got a {kind.__module__}.{kind.__qualname__}; "
                f"call plugrad.backends.asarray on it first, or select a backend that computes in host memory"
            )
        x = cupy.asarray(x)  # a view of another library's array on the device
    current = cupy.cuda.runtime.getDevice()
    if x.device.id != current:
        raise TypeError(
            f"{what}: expected an array on the current device, {current}, got one on device {x.device.id}; "
            f"call inside `with cupy.cuda.Device({x.device.id}):`, or move it with cupy.asarray"
        )
    return x


def asarray(x: Any) -> Array:
    """`x` on the current device."""
    return cupy.asarray(x)


def to_numpy(x: Array) -> Any:
    """`x` in host memory; waits until the device has computed it."""
    return cupy.asnumpy(x)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A new array from CuPy's memory pool, with undefined values."""
    return cupy.empty(shape, dtype)


def overlap(a: Array, b: Array) -> str:
    """How the memory of two arrays relates: "none", "same" (the very same elements) or "partial"."""
    if a is b:
        return "same"
    (first, last), (other_first, other_last) = _bounds(a), _bounds(b)
    if last <= other_first or other_last <= first:
        return "none"
    found = host.overlap(_as_addresses(a), _as_addresses(b))
    return "partial" if found == "same" and a.dtype != b.dtype else found


def _bounds(x: Array) -> tuple[int, int]:
    """The address of the first byte, and the address after the last byte."""
    first = last = x.data.ptr
    if x.flags.c_contiguous:
        return first, first + x.nbytes
    if not x.size:
        return first, first
    for stride, length in zip(x.strides, x.shape, strict=True):
        if stride < 0:
            first += stride * (length - 1)
        else:
            last += stride * (length - 1)
    return first, last + x.dtype.itemsize


class _Addresses:
    """An array interface to the addresses of device memory, for comparison only: nothing reads it."""

    def __init__(self, x: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (x.data.ptr, False),
            "shape": x.shape,
            "strides": x.strides,
            "typestr": f"|V{x.dtype.itemsize}",
        }


def _as_addresses(x: Array) -> Any:
    return np.asarray(_Addresses(x))
