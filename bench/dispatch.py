"""The parts of the time of a small call: ``python -m plugrad.bench.dispatch --backend numpy,numba``.

A call selects a backend, checks its arguments and brings them to canonical form, and calls the backend's function.
`call` is the time of a plain call, and `out=` that of a call whose result goes to an array. `compute` is the time of
the backend's function alone, with the arguments that it gets in a call with ``out=``; `checks` is the time of such a
call whose function does nothing, less that of `selection`. `overhead` is the time of that call beyond `compute`:
slightly more than the sum of the parts, since each evicts data of the others from the processor's caches.

`by hand` is the time of the textbook formula in NumPy, and `torch` that of PyTorch's nearest call, where it is
installed. Layers and optimizers are called as in a training loop, one step after another. All are timed in turn in this
process, many times; the table has the least time of each, in microseconds.
"""

import argparse
import contextlib
import timeit
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from plugrad import backends
from plugrad.backends.selection import backend_for
from plugrad.bench import arguments as types, sides
from plugrad.bench.cases import Case
from plugrad.bench.sides import ours, textbook
from plugrad.bench.sizes import LAST_LAYER, sizes_of
from plugrad.kernels import KERNELS, layers, optim

CALLS = 2000

Call = Callable[[], Any]


class Parts(NamedTuple):
    """The time of a call, of its parts, and of the same by others, in seconds."""

    call: float
    with_out: float
    compute: float
    selection: float
    empty: float
    by_hand: float
    torch: float | None

    @property
    def overhead(self) -> float:
        """The time of the call with ``out=`` beyond the backend's function."""
        return self.with_out - self.compute

    @property
    def checks(self) -> float:
        """The time to check the arguments and bring them to canonical form."""
        return self.empty - self.selection

    def cells(self) -> tuple[float | None, ...]:
        """The columns of the table."""
        parts = self.call, self.with_out, self.compute, self.selection, self.checks, self.overhead
        return (*parts, self.by_hand, self.torch)


COLUMNS = ("call", "out=", "compute", "selection", "checks", "overhead", "by hand", "torch")


def measured(name: str, rounds: int) -> Parts:
    """Time a call of a kernel on the selected backend, its parts, and the same by others."""
    size = sizes_of(name).smallest
    case, new = Case(name, size), Case(name, size, new=True)
    call = ours.prepare(case)
    seen: list[tuple[Any, ...]] = []
    with _replaced(name, lambda *given: seen.append(given)):
        call()
    (given,) = seen
    function, first = backends.current().functions[name], next(x for x in given if hasattr(x, "dtype"))
    parts: list[Call] = [ours.prepare(new), call, lambda: function(*given), lambda: backend_for(first)]
    others: list[Call] = [textbook.prepare(new)]
    if sides.is_installed("torch") and name in sides.load("torch").NAMES:
        others.append(sides.load("torch").prepare(new))
    least = [float("inf")] * (len(parts) + 1 + len(others))
    for _ in range(rounds):
        times = [_time(part) for part in parts]
        with _replaced(name, lambda *given: None):
            times.append(_time(call))
        times += [_time(other) for other in others]
        least = [min(pair) for pair in zip(least, times, strict=True)]
    return Parts(*least, *[None] * (len(Parts._fields) - len(least)))


def _time(call: Call) -> float:
    return timeit.timeit(call, number=CALLS) / CALLS


@contextlib.contextmanager
def _replaced(name: str, other: Callable[..., None]) -> Iterator[None]:
    """Replace the backend's function."""
    functions = backends.current().functions
    function = functions[name]
    functions[name] = other
    try:
        yield
    finally:
        functions[name] = function


def steps() -> dict[str, tuple[Call, Call]]:
    """Return calls of layers and optimizers on the selected backend, each with the same by hand in NumPy."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    x, w, b, dy, t = array(32, 64), array(64, 10), array(10), array(32, 10), rng.integers(0, 10, 32)
    affine, relu, loss = layers.Affine(w, b), layers.Relu(), layers.SoftmaxWithLoss()
    affine.forward(x), relu.forward(dy)
    parameters, grads = [array(64, 10), array(10)], [array(64, 10), array(10)]
    rate, hand = np.float32(1e-4), [parameter.copy() for parameter in parameters]
    sgd, adam = optim.SGD(parameters, lr=1e-4), optim.Adam([parameter.copy() for parameter in parameters], lr=1e-4)
    means, squares = ([np.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    value_and_grad = textbook.RECORDS["softmax_cross_entropy_value_and_grad"].textbook

    def sgd_by_hand() -> None:
        for parameter, gradient in zip(hand, grads, strict=True):
            parameter -= rate * gradient

    def adam_by_hand() -> None:
        for parameter, gradient, mean, square in zip(hand, grads, means, squares, strict=True):
            mean *= 0.9
            mean += 0.1 * gradient
            square *= 0.999
            square += 0.001 * gradient * gradient
            parameter -= rate * mean / (np.sqrt(square) + 1e-8)

    return {
        "layers.Affine.forward": (lambda: affine.forward(x), lambda: x @ w + b),
        "layers.Affine.backward": (lambda: affine.backward(dy), lambda: (dy @ w.T, x.T @ dy, dy.sum(axis=0))),
        "layers.Relu.forward": (lambda: relu.forward(dy), lambda: np.maximum(0, dy)),
        "layers.Relu.backward": (lambda: relu.backward(dy), lambda: dy * (dy > 0)),
        "layers.SoftmaxWithLoss": (
            lambda: (loss.forward(dy, t), loss.backward()),
            lambda: value_and_grad(dy, t),
        ),
        "optim.SGD.step": (lambda: sgd.step(grads), sgd_by_hand),
        "optim.Adam.step": (lambda: adam.step(grads), adam_by_hand),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench.dispatch",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "kernel",
        nargs="*",
        type=types.one_of(KERNELS),
        help="kernels; by default all but those of the last layer with its loss, and layers and optimizers",
    )
    parser.add_argument(
        "--backend",
        type=types.comma_separated(types.backend),
        default="numpy,numba",
        help="our backends, with commas between them",
    )
    parser.add_argument("--rounds", type=types.rounds, default=20, help="20 by default")
    given = parser.parse_args()
    np.seterr(all="ignore")  # the textbook formulas overflow
    print(f"{'kernel':37} {'backend':>8}", *(f"{column:>9}" for column in COLUMNS), " us")
    for name in given.kernel or [name for name in KERNELS if sizes_of(name) is not LAST_LAYER]:
        for backend in given.backend:
            with backends.use(backend):
                _print(name, backend, measured(name, given.rounds).cells())
    for backend in given.backend if not given.kernel else ():
        with backends.use(backend):
            for name, (call, by_hand) in steps().items():
                times = [(_time(call), _time(by_hand)) for _ in range(given.rounds)]
                least = [min(column) for column in zip(*times, strict=True)]
                _print(name, backend, (least[0], *[None] * 5, least[1], None))


def _print(name: str, backend: str, cells: tuple[float | None, ...]) -> None:
    texts = ["-" if cell is None else f"{cell * 1e6:.2f}" for cell in cells]
    print(f"{name:37} {backend:>8}", *(f"{text:>9}" for text in texts), flush=True)


if __name__ == "__main__":
    main()
