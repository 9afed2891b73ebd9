"""The numpy backend against the textbook formulas: ``python -m plugrad.bench.textbook``.

Each side runs alone in a process of its own, in turn, several times; a row gives the best median of each side and the
ratio of the two. Inputs are float32 and come from the records of the kernels; ours writes to ``out=``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from plugrad import kernels
from plugrad.kernels import KERNELS

Step = Callable[[], Any]
FLOAT32 = np.dtype(np.float32)


def softmax(x: Any) -> Any:
    """Softmax as in a textbook, and so on for the functions below."""
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def softmax_backward(dy: Any, y: Any) -> Any:
    return y * (dy - (dy * y).sum(1, keepdims=True))


def log_softmax(x: Any) -> Any:
    z = x - x.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def log_softmax_backward(dy: Any, y: Any) -> Any:
    return dy - np.exp(y) * dy.sum(1, keepdims=True)


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def relu_backward(dy: Any, y: Any) -> Any:
    return dy * (y > 0)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def sigmoid_backward(dy: Any, y: Any) -> Any:
    return dy * y * (1 - y)


def affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def affine_backward(dy: Any, x: Any, w: Any) -> Any:
    return dy @ w.T, x.T @ dy, dy.sum(0)


def cross_entropy(p: Any, t: Any) -> Any:
    return -np.log(p[np.arange(len(t)), t]).mean()


def cross_entropy_backward(dloss: Any, p: Any, t: Any) -> Any:
    dp = np.zeros_like(p)
    rows = np.arange(len(t))
    dp[rows, t] = -dloss / p[rows, t] / len(t)
    return dp


def softmax_cross_entropy(x: Any, t: Any) -> Any:
    y = softmax(x)
    return cross_entropy(y, t), y


def softmax_cross_entropy_backward(dloss: Any, y: Any, t: Any) -> Any:
    dx = y.copy()
    dx[np.arange(len(t)), t] -= 1
    dx *= dloss / len(t)
    return dx


def softmax_cross_entropy_value_and_grad(x: Any, t: Any) -> Any:
    loss, y = softmax_cross_entropy(x, t)
    return loss, softmax_cross_entropy_backward(1.0, y, t)


SHAPES = ("32x10", "256x256", "4096x1024", "512x50257", "65536x10")
STEPS = ("64-784-128-10", "256-784-512-10")


def kernel_step(side: str, name: str, shape: str) -> Step:
    """One call of a kernel on rows x classes, ours or the textbook's."""
    rows, classes = map(int, shape.split("x"))
    inputs = KERNELS[name].sample(np.random.default_rng(0), rows, classes, FLOAT32)
    arguments = [inputs[argument] for argument in KERNELS[name].arguments]
    if side == "textbook":
        formula = globals()[name]
        return lambda: formula(*arguments)
    function = KERNELS[name].function
    if name == "cross_entropy":
        return lambda: function(*arguments)
    results = function(*arguments)
    if not isinstance(results, tuple):
        out: Any = results
    elif name == "affine_backward":
        out = results
    else:
        out = results[1]
    return lambda: function(*arguments, out=out)


def training_step(side: str, sizes: str) -> Step:
    """One step of a network rows-inputs-hidden-classes: forward, backward, update."""
    rows, inputs, hidden, classes = map(int, sizes.split("-"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    t = rng.integers(0, classes, rows)
    w1 = (rng.normal(size=(inputs, hidden)) / inputs**0.5).astype(np.float32)
    w2 = (rng.normal(size=(hidden, classes)) / hidden**0.5).astype(np.float32)
    b1, b2 = np.zeros(hidden, np.float32), np.zeros(classes, np.float32)
    rate = np.float32(1e-4)

    def textbook() -> Any:
        h = relu(affine(x, w1, b1))
        _, dz = softmax_cross_entropy_value_and_grad(affine(h, w2, b2), t)
        dh, dw2, db2 = affine_backward(dz, h, w2)
        da = relu_backward(dh, h)
        dw1, db1 = x.T @ da, da.sum(0)
        for parameter, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
            parameter -= rate * gradient
        return w1, b1, w2, b2

    a, z = np.empty((rows, hidden), np.float32), np.empty((rows, classes), np.float32)
    dh, dw1, db1 = np.empty_like(a), np.empty_like(w1), np.empty_like(b1)
    dw2, db2 = np.empty_like(w2), np.empty_like(b2)

    def ours() -> Any:
        h = kernels.relu(kernels.affine(x, w1, b1, out=a), out=a)
        _, dz = kernels.softmax_cross_entropy_value_and_grad(kernels.affine(h, w2, b2, out=z), t, out=z)
        kernels.affine_backward(dz, h, w2, out=(dh, dw2, db2))
        kernels.relu_backward(dh, h, out=dh)
        kernels.affine_backward(dh, x, w1, needs=("dw", "db"), out=(None, dw1, db1))
        for parameter, gradient in ((w1, dw1), (b1, db1), (w2, dw2), (b2, db2)):
            gradient *= rate  # its array is ours, and written anew in the next step
            parameter -= gradient
        return w1, b1, w2, b2

    return textbook if side == "textbook" else ours


def measure(step: Step, seconds: float) -> float:
    """The median time of one call, in seconds, of as many as fit."""
    for _ in range(3):
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_own_process(side: str, name: str, size: str, seconds: float) -> float:
    """The median of one side, measured alone in a new process."""
    command = [sys.executable, "-W", "ignore", "-m", "plugrad.bench.textbook"]  # the textbook's exp and log overflow
    command += ["--side", side, "--seconds", str(seconds), name, size]
    environment = {**os.environ, "PLUGRAD_BACKEND": "numpy"}
    return float(json.loads(subprocess.check_output(command, env=environment, text=True)))


def main() -> None:
    """Measure one side, or compare the two."""
    parser = argparse.ArgumentParser(prog="python -m plugrad.bench.textbook", description=__doc__)
    parser.add_argument("name", nargs="?", help=f"a kernel, or 'step'; by default all: {', '.join(KERNELS)}, step")
    parser.add_argument("size", nargs="?", help="rows x classes, such as 256x10; for 'step' rows-inputs-hidden-classes")
    parser.add_argument("--side", choices=("ours", "textbook"), help="measure this side only, and print seconds")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent in each process")
    chosen = parser.parse_args()
    if chosen.side:
        step = training_step if chosen.name == "step" else lambda side, size: kernel_step(side, chosen.name, size)
        print(json.dumps(measure(step(chosen.side, chosen.size), chosen.seconds)))
        return
    print(f"{'kernel':38} {'size':>15} {'textbook us':>12} {'ours us':>12} {'ratio':>6}")
    for name in [chosen.name] if chosen.name else [*KERNELS, "step"]:
        for size in [chosen.size] if chosen.size else STEPS if name == "step" else SHAPES:
            if "affine" in name and size == "512x50257" and not chosen.size:
                continue  # a square weight of this size does not fit into memory
            best = {"textbook": float("inf"), "ours": float("inf")}
            for _ in range(chosen.rounds):
                for side in best:
                    best[side] = min(best[side], in_own_process(side, name, size, chosen.seconds))
            print(
                f"{name:38} {size:>15} {best['textbook'] * 1e6:12.1f} {best['ours'] * 1e6:12.1f} "
                f"{best['textbook'] / best['ours']:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
