"""Kernels that compute each element by itself.

The source, elementwise.cu, lists them: a line ``MAP(relu, Relu)`` or ``MAP_OF_TWO(relu_backward, ReluBackward)`` makes
the kernel and, here, the function of the backend with its name. Kernels with options have their functions here.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from plugrad.backends import normal
from plugrad.backends.contract import Elementwise, ElementwiseBackward
from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import SOURCES, Instance, kernel
from plugrad.backends.cupy.rows import ACCESS, MOST_BLOCKS, contiguous, macros, widest, write_contiguous
from plugrad.backends.options import FLOAT64, GELU_A, GELU_B, PHILOX, DropoutOptions, GeluOptions, LeakyReluOptions

THREADS = 256  # the launch bounds of the kernels
SOURCE = (SOURCES / "elementwise.cu").read_text()
NAMES = tuple(re.findall(r"^MAP\w*\((\w+), ", SOURCE, re.MULTILINE))


def __getattr__(name: str) -> Elementwise | ElementwiseBackward:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return backward(name) if f"MAP_OF_TWO({name}, " in SOURCE else forward(name)


def forward(name: str) -> Elementwise:
    """The function of the backend for a kernel with one argument."""

    def function(x: Array, out: Array) -> None:
        _write(name, (x,), out)

    return function


def backward(name: str) -> ElementwiseBackward:
    """The function of the backend for a kernel with two arguments."""

    def function(dy: Array, y: Array, out: Array) -> None:
        _write(name, (dy, y), out)

    return function


def leaky_relu(x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = x where x > 0, else negative_slope x``."""
    _write("leaky_relu", (x,), out, options.negative_slope)


def leaky_relu_backward(dy: Array, x: Array, options: LeakyReluOptions, out: Array) -> None:
    """``out = dy where x > 0, else negative_slope dy``."""
    _write("leaky_relu_backward", (dy, x), out, options.negative_slope)


def gelu(x: Array, options: GeluOptions, out: Array) -> None:
    """``out = x Phi(x)``, or the approximation by the hyperbolic tangent."""
    _write(f"gelu_{options.approximate}", (x,), out)


def gelu_backward(dy: Array, x: Array, options: GeluOptions, out: Array) -> None:
    """``out = dy (Phi(x) + x phi(x))``, or the derivative of the approximation."""
    _write(f"gelu_backward_{options.approximate}", (dy, x), out)


def dropout(x: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor x`` where the random word is at least the threshold, else 0."""
    seed = options.seed
    place, key = (0, np.uint64(seed)) if type(seed) is int else (seed, np.uint64(0))
    _write("dropout", (x,), out, place, key, np.uint64(options.threshold), options.factor)


def dropout_backward(dy: Array, options: DropoutOptions, out: Array) -> None:
    """``out = factor dy`` where `dropout` keeps the element, else 0."""
    dropout(dy, options, out)


def _write(name: str, arguments: tuple[Array, ...], out: Array, *numbers: Any) -> None:
    reads = [contiguous(x) for x in arguments]
    write_contiguous(out, lambda target: _run(name, *reads, target, numbers=numbers))


def _run(name: str, *arrays: Array, numbers: tuple[Any, ...] = ()) -> None:
    dtype, size = arrays[0].dtype, arrays[0].size
    is_aligned = all(array.data.ptr % ACCESS == 0 for array in arrays)
    blocks = min(MOST_BLOCKS, -(-size // (THREADS * widest(dtype))))
    kernel(f"map_{name}", instance(dtype, is_aligned))((blocks,), (THREADS,), (size, *arrays, *numbers))


@functools.cache
def instance(dtype: np.dtype[Any], is_aligned: bool) -> Instance:
    """The instance for arrays of a dtype."""
    tail = normal.DOUBLE if dtype == FLOAT64 else normal.SINGLE
    constants = {
        "GELU_A": GELU_A,
        "GELU_B": GELU_B,
        "INVERSE_ROOT": normal.INVERSE_ROOT,
        "NORMAL_SHIFT": normal.SHIFT,
        "NORMAL_END": tail.end,
        "PHILOX_ROUNDS": PHILOX.rounds,
        "PHILOX_M0": f"{PHILOX.multipliers[0]}u",
        "PHILOX_M1": f"{PHILOX.multipliers[1]}u",
        "PHILOX_W0": f"{PHILOX.increments[0]}u",
        "PHILOX_W1": f"{PHILOX.increments[1]}u",
        "NORMAL_TAIL": ",".join(f"A({coefficient!r})" for coefficient in tail.coefficients),
    }
    sizes = macros(dtype, widest(dtype) if is_aligned else 1, True)
    return Instance("elementwise.cu", (*sizes, *((name, str(value)) for name, value in constants.items())))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """Every instance for arrays of a dtype, and the names of its kernels."""
    for is_aligned in (True, False):
        yield instance(dtype, is_aligned), tuple(f"map_{name}" for name in NAMES)
