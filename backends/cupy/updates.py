"""Steps of optimizers (see `plugrad.backends.updates`), by one kernel for each parameter."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from plugrad.backends.cupy.arrays import Array
from plugrad.backends.cupy.compiling import Instance, kernel
from plugrad.backends.cupy.rows import MOST_BLOCKS, contiguous, macros
from plugrad.backends.options import FLOAT64

NAMES = ("sgd", "adam", "adamw", "rmsprop")
NUMBERS = 6  # the most that a step has; the kernels take as many
THREADS = 256  # the launch bounds of the kernels
NULL = 0


def sgd(
    params: Sequence[Array],
    grads: Sequence[Array],
    velocities: Sequence[Array | None],
    lr: float,
    momentum: float,
    nesterov: bool,
    decay: float,
) -> None:
    """``d = g + decay p``, ``v = momentum v + d``, ``p -= lr v``, or with Nesterov ``p -= lr (d + momentum v)``."""
    update("sgd", (params, grads, velocities), (lr, momentum, nesterov, decay))


def adam(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    """``m`` and ``v``: the means of ``d = g + decay p`` and of its square; ``p -= step m / (sqrt(v) / root + eps)``."""
    update("adam", (params, grads, means, squares), (step, root, beta1, beta2, eps, decay))


def adamw(
    params: Sequence[Array],
    grads: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    step: float,
    root: float,
    beta1: float,
    beta2: float,
    eps: float,
    keep: float,
) -> None:
    """``m`` and ``v``: the means of ``g`` and of its square; ``p = keep p - step m / (sqrt(v) / root + eps)``."""
    update("adamw", (params, grads, means, squares), (step, root, beta1, beta2, eps, keep))


def rmsprop(
    params: Sequence[Array],
    grads: Sequence[Array],
    squares: Sequence[Array],
    means: Sequence[Array | None],
    velocities: Sequence[Array | None],
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    decay: float,
) -> None:
    """``s``: the mean of the square of ``d = g + decay p``; ``p -= lr d / (sqrt(s - m^2) + eps)``."""
    update("rmsprop", (params, grads, squares, means, velocities), (lr, alpha, eps, momentum, decay))


def update(
    name: str, arrays: tuple[Sequence[Array | None], ...], numbers: tuple[float, ...], place: Array | None = None
) -> None:
    """Make a step, with its numbers or with those that `put_numbers` has written to a place on the device."""
    given = (NULL if place is None else place, *_padded(numbers))
    together = zip(*arrays, strict=True)
    each = [(p, g, *states) for p, g, *states in together if p is not None and g is not None and p.size]
    for position, (p, *others) in enumerate(each):
        if any(array is not None and array.device.id != p.device.id for array in others):
            raise ValueError(
                f"{name}: grads: {position}: expected an array on device {p.device.id}, that of its parameter"
            )
    for p, g, *states in each:
        with cupy.cuda.Device(p.device.id):  # which a kernel does not look at
            _update(name, given, p, g, *states)


def _update(name: str, given: tuple[Any, ...], p: Array, g: Array, *states: Array | None) -> None:
    target, kept = contiguous(p), [NULL if state is None else contiguous(state) for state in states]
    blocks = min(MOST_BLOCKS, -(-p.size // THREADS))
    kernel(name, instance(p.dtype))((blocks,), (THREADS,), (p.size, target, contiguous(g), *kept, *given))
    for array, computed in zip((p, *states), (target, *kept), strict=True):
        if array is not None and computed is not array:
            array[...] = computed


def new_place() -> Array:
    """Memory on the device for the numbers of a step."""
    return cupy.empty(NUMBERS, FLOAT64)


def put_numbers(numbers: tuple[float, ...], place: Array) -> None:
    """Write the numbers of a step to a place on the device. They are arguments of a kernel: nothing waits."""
    kernel("put_numbers", instance(FLOAT64))((1,), (1,), (place, *_padded(numbers)))


def _padded(numbers: tuple[float, ...]) -> list[float]:
    return [*map(float, numbers), *[0.0] * (NUMBERS - len(numbers))]


@functools.cache
def instance(dtype: np.dtype[Any]) -> Instance:
    """The instance for parameters of a dtype."""
    return Instance("updates.cu", macros(dtype, 1, True))


def instances(dtype: np.dtype[Any]) -> Iterator[tuple[Instance, tuple[str, ...]]]:
    """The instance for parameters of a dtype, and the names of its kernels."""
    yield instance(dtype), (*NAMES, "put_numbers")
