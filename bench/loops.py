"""Loops of training by hand in NumPy, and ported to plugrad: ``python -m plugrad.bench loops``.

All loops run in this process, in turn. Before they are timed, their losses are compared with those of the loop by hand.
The table has the time of a step by hand, the best of the medians of the turns, and the ratios of the others to it: 0.5
is twice as fast as by hand.

plain     calls of kernels; the caller updates the weights, as by hand
out=      results in arrays that are used again, and the optimizer SGD
layers    Sequential, SoftmaxWithLoss and SGD
captured  the step of out=, recorded by kernels.capture() and replayed
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from plugrad import backends, kernels as K
from plugrad.bench import arguments as types, machine
from plugrad.bench.sides import ours
from plugrad.kernels import layers, optim

# Rows, inputs, hidden layers and classes: the networks of public loops, and of handwritten digits.
SIZES = ("32-64-100-10", "100-64-100-50-10", "1000-64-100-50-10", "64-784-128-10", "256-784-512-10")

RATE = 1e-4  # so small that thousands of steps change little

Step = Callable[[], Any]  # one step, which returns the loss


class Problem(NamedTuple):
    """A batch, and the weights and biases of each layer, which a loop updates."""

    x: Any
    t: Any
    parameters: list[tuple[Any, Any]]


def problem(size: str) -> Problem:
    """Return the batch and the parameters that a loop starts from."""
    rows, *widths = map(int, size.split("-"))
    rng = np.random.default_rng(0)
    parameters = [
        ((rng.normal(size=(a, b)) / a**0.5).astype(np.float32), np.zeros(b, np.float32))
        for a, b in itertools.pairwise(widths)
    ]
    x = rng.normal(size=(rows, widths[0])).astype(np.float32)
    return Problem(x, rng.integers(0, widths[-1], rows), parameters)


def by_hand(size: str) -> Step:
    """Return the loop that users of NumPy write."""
    x, t, parameters = problem(size)
    rate, rows = np.float32(RATE), np.arange(len(x))

    def step() -> Any:
        h = [x]
        for w, b in parameters[:-1]:
            h.append(np.maximum(0, h[-1] @ w + b))
        w, b = parameters[-1]
        z = h[-1] @ w + b
        e = np.exp(z - z.max(axis=1, keepdims=True))
        y = e / e.sum(axis=1, keepdims=True)
        loss = -np.log(y[rows, t]).mean()
        d = y
        d[rows, t] -= 1
        d /= len(x)
        for i in reversed(range(len(parameters))):
            w, b = parameters[i]
            dw, db = h[i].T @ d, d.sum(axis=0)
            if i:
                d = d @ w.T
                d[h[i] <= 0] = 0
            w -= rate * dw
            b -= rate * db
        return loss

    return step


def plain(size: str) -> Step:
    """Return the same loop by plain calls."""
    x, t, parameters = problem(size)
    rate = np.float32(RATE)

    def step() -> Any:
        h = [x]
        for w, b in parameters[:-1]:
            h.append(K.relu(K.affine(h[-1], w, b)))
        w, b = parameters[-1]
        loss, d = K.softmax_cross_entropy_value_and_grad(K.affine(h[-1], w, b), t)
        for i in reversed(range(len(parameters))):
            w, b = parameters[i]
            dx, dw, db = K.affine_backward(d, h[i], w, needs=("dx", "dw", "db") if i else ("dw", "db"))
            if i:
                d = K.relu_backward(dx, h[i])
            w -= rate * dw
            b -= rate * db
        return loss

    return step


def with_out(size: str) -> Step:
    """Return the same loop with results in arrays that are used again, and an optimizer."""
    x, t, parameters = problem(size)
    results = [np.empty((len(x), b.size), np.float32) for _, b in parameters]
    slopes = [np.empty_like(result) for result in results]
    flat = [array for pair in parameters for array in pair]
    grads, optimizer = [np.empty_like(array) for array in flat], optim.SGD(flat, lr=RATE)

    def step() -> Any:
        h = x
        for (w, b), out in zip(parameters[:-1], results, strict=False):
            h = K.relu(K.affine(h, w, b, out=out), out=out)
        z = K.affine(h, *parameters[-1], out=results[-1])
        loss, d = K.softmax_cross_entropy_value_and_grad(z, t, out=z)
        for i in reversed(range(1, len(parameters))):
            places = slopes[i - 1], grads[2 * i], grads[2 * i + 1]
            dx, _, _ = K.affine_backward(d, results[i - 1], parameters[i][0], out=places)
            d = K.relu_backward(dx, results[i - 1], out=dx)
        K.affine_backward(d, x, parameters[0][0], needs=("dw", "db"), out=(None, grads[0], grads[1]))
        optimizer.step(grads)
        return loss

    return step


def by_layers(size: str) -> Step:
    """Return the same loop by layers."""
    x, t, parameters = problem(size)
    stack: list[layers.Layer] = []
    for w, b in parameters:
        stack += [layers.Affine(w, b), layers.Relu()]
    net, loss = layers.Sequential(*stack[:-1]), layers.SoftmaxWithLoss()
    optimizer = optim.SGD(net.params, lr=RATE)

    def step() -> Any:
        value = loss.forward(net.forward(x), t)
        net.backward(loss.backward(), needs_dx=False)
        optimizer.step(net.grads)
        return value

    return step


def captured(size: str) -> Step:
    """Return the loop of `with_out`, which is captured at the first step."""
    return ours.captured(with_out(size))


STYLES = {"plain": plain, "out=": with_out, "layers": by_layers, "captured": captured}


class Side(NamedTuple):
    """A loop, and the backend it runs on."""

    backend: str
    step: Step

    def median(self, seconds: float) -> float:
        """Return the median time of the steps that fit into `seconds`."""
        found, end = list[float](), time.perf_counter() + seconds
        with backends.use(self.backend):
            while time.perf_counter() < end or not found:
                start = time.perf_counter()
                self.step()
                found.append(time.perf_counter() - start)
        return statistics.median(found)

    def losses(self) -> list[float]:
        """Return the losses of the first steps."""
        with backends.use(self.backend):
            return [float(self.step()) for _ in range(3)]


def measured(size: str, names: Sequence[str], rounds: int, seconds: float) -> dict[tuple[str, str], float]:
    """Return the time of a step by hand, and of each style on each backend, by backend and style."""
    sides = {("", "by hand"): Side("numpy", by_hand(size))}
    for name in names:
        for style, make in STYLES.items():
            with backends.use(name):
                sides[name, style] = Side(name, make(size))
    expected = sides["", "by hand"].losses()
    for side in list(sides.values())[1:]:
        np.testing.assert_allclose(side.losses(), expected, rtol=1e-5)
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for key, side in sides.items():
            best[key] = min(best[key], side.median(seconds))
    return best


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench loops",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backend", type=types.comma_separated(types.backend), default="numpy,numba", help="numpy,numba by default"
    )
    parser.add_argument(
        "--sizes",
        type=types.comma_separated(types.network),
        default=",".join(SIZES),
        help="rows-inputs-hidden-classes, with any number of hidden layers, and commas between them",
    )
    parser.add_argument("--rounds", type=types.rounds, default=10, help="turns of each loop, 10 by default")
    parser.add_argument("--seconds", type=types.seconds, default=0.1, help="the time of a turn, 0.1 by default")
    given = parser.parse_args(arguments)
    print(machine.in_a_line(machine.describe(given.backend, ())))
    heads = [f"{name} {style}" for name in given.backend for style in STYLES]
    print(f"\n{'rows-inputs-hidden-classes':27}{'by hand, us':>12}", *(f"{head:>14}" for head in heads))
    for size in given.sizes:
        best = measured(size, given.backend, given.rounds, given.seconds)
        hand = best.pop(("", "by hand"))
        print(f"{size:27}{hand * 1e6:12.0f}", *(f"{value / hand:14.2f}" for value in best.values()), flush=True)
    return 0
