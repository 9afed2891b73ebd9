"""Train a small language model on the docstrings of Python's standard library, without ever holding its logits.

    PLUGRAD_BACKEND=numba python examples/words.py

The model predicts a word from the three words before it: embeddings, a hidden layer, and `linear_cross_entropy` for the
last layer and its loss (Bengio et al., "A neural probabilistic language model", 2003). At the end the script prints the
memory of the last layer with that kernel, and with `affine` and `softmax_cross_entropy_value_and_grad` instead, each
measured in a process of its own.

    mpiexec -n 2 python examples/words.py --distributed

trains with the vocabulary split over the processes that `mpiexec` starts, and prints the same perplexities as one.
"""

import argparse
import ast
import contextlib
import functools
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from plugrad import backends, distributed, kernels as K
from plugrad.bench.memory import watched
from plugrad.kernels import optim

CONTEXT, EMBEDDING, HIDDEN, BATCH, RATE = 3, 64, 128, 1024, 2e-3
LOGITS = 4096  # rows, where memory is measured
WORKSPACE = "16MB"


def docstrings() -> str:
    """All docstrings of the standard library, from its sources, which are parsed and not run."""
    library = Path(sysconfig.get_path("stdlib"))
    apart = {"test", "tests", "site-packages", "dist-packages"}
    found = []
    for path in sorted(library.rglob("*.py")):
        if apart & set(path.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some are wrong on purpose
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    return "\n".join(found)


def numbered(text: str) -> tuple[np.ndarray, list[str]]:
    """The words of a text as numbers, the most frequent first, and the words by number."""
    words = re.findall(r"[A-Za-z_]\w*|\d+|[^\w\s]", text)
    vocabulary = [word for word, _ in Counter(words).most_common()]
    number = {word: i for i, word in enumerate(vocabulary)}
    return np.array([number[word] for word in words], np.int32), vocabulary


def contexts(text: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """For each word of a text the numbers of the words before it and its own, and the words by number."""
    numbers, vocabulary = numbered(text)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, CONTEXT + 1)
    return windows[:, :CONTEXT], windows[:, CONTEXT], vocabulary


def main(steps: int, seed: int, comm=None) -> None:
    """Train the model, and print the perplexity."""
    is_first = comm is None or comm.rank == 0  # the process that shows the progress
    rng = np.random.default_rng(seed)
    before, after, vocabulary = contexts(docstrings())
    order = rng.permutation(len(after))
    held_out, training = order[: 4 * BATCH], order[4 * BATCH :]
    classes = len(vocabulary)
    print(f"backend: {backends.current()}   words: {len(after):,}   vocabulary: {classes:,}", flush=True)

    def weights(inputs: int, outputs: int, scale: float) -> np.ndarray:
        return (rng.normal(size=(inputs, outputs)) * scale).astype(np.float32)

    table = weights(classes, EMBEDDING, 0.1)  # the embeddings, which NumPy looks up
    w1 = backends.asarray(weights(CONTEXT * EMBEDDING, HIDDEN, (2 / (CONTEXT * EMBEDDING)) ** 0.5))
    w2 = weights(HIDDEN, classes, 0.01)
    if comm:  # the words of this process
        w2 = np.ascontiguousarray(np.array_split(w2, comm.size, axis=1)[comm.rank])
    w2 = backends.asarray(w2)
    b1, b2 = (backends.asarray(np.zeros(size, np.float32)) for size in (HIDDEN, w2.shape[1]))
    optimizer = optim.Adam([w1, b1, w2, b2], RATE)
    with backends.use("numpy"):
        embedding_optimizer = optim.Adam([table], RATE)
    workspace = K.Workspace(WORKSPACE)
    last_layer = K.linear_cross_entropy_value_and_grad
    if comm:
        last_layer = functools.partial(distributed.linear_cross_entropy_value_and_grad, comm=comm)

    def hidden(rows):
        x = backends.asarray(table[before[rows]].reshape(len(rows), -1))
        return x, K.relu(K.affine(x, w1, b1))

    def train_step(rows):
        x, h = hidden(rows)
        t = backends.asarray(after[rows])
        loss, dh, dw2, db2 = last_layer(h, w2, b2, t, max_workspace=workspace)
        dx, dw1, db1 = K.affine_backward(K.relu_backward(dh, h), x, w1)
        dtable = np.zeros_like(table)
        np.add.at(dtable, before[rows], backends.to_numpy(dx).reshape(len(rows), CONTEXT, EMBEDDING))
        optimizer.step([dw1, db1, dw2, db2])
        with backends.use("numpy"):
            embedding_optimizer.step([dtable])
        return loss

    def perplexity(rows):
        t = backends.asarray(after[rows])
        loss, *_ = last_layer(hidden(rows)[1], w2, b2, t, needs=(), max_workspace=workspace)
        return float(np.exp(backends.to_numpy(loss)))

    print(f"step {0:5}   held-out perplexity {perplexity(held_out):8.1f}", flush=True)
    start, spent = time.perf_counter(), 0.0
    for first in range(0, steps, max(1, steps // 10)):
        start = time.perf_counter()
        last = min(steps, first + max(1, steps // 10))
        for _ in tqdm(range(first, last), desc=f"steps to {last}", leave=False, disable=not is_first):
            train_step(rng.choice(training, BATCH, replace=False))
        spent += time.perf_counter() - start
        print(f"step {last:5}   held-out perplexity {perplexity(held_out):8.1f}", flush=True)
    print(f"{spent / steps * 1e3:.0f} ms per step")
    if not comm:
        tell_memory(classes)


def tell_memory(classes: int) -> None:
    """Print the memory of the last layer and its loss, in a process for each variant."""
    command = [sys.executable, __file__, "--backend", backends.current().name, "--classes", str(classes), "--memory"]
    print(f"memory for the gradients of the last layer, {LOGITS:,} rows, beside arguments and results,")
    print(f"with a workspace of {WORKSPACE} for linear_cross_entropy:")
    for way in WAYS:
        done = subprocess.run([*command, way], capture_output=True, text=True, check=True)  # noqa: S603  (this file)
        print(f"  {done.stdout.strip()}")


def in_chunks(x, w, b, t):
    """The layer fused with its loss."""
    return K.linear_cross_entropy_value_and_grad(x, w, b, t, max_workspace=WORKSPACE)


def with_logits(x, w, b, t):
    """The layer, then the loss of its logits, then the gradients of the layer."""
    z = K.affine(x, w, b)
    loss, dz = K.softmax_cross_entropy_value_and_grad(z, t, out=z)
    return loss, *K.affine_backward(dz, x, w)


WAYS = {"linear_cross_entropy": in_chunks, "affine, then softmax_cross_entropy": with_logits}


def measure(way: str, classes: int) -> None:
    """Print the peak of memory of a call, beyond the memory in use before it."""
    rng = np.random.default_rng(0)
    x, w = rng.random((LOGITS, HIDDEN), np.float32), rng.random((HIDDEN, classes), np.float32)
    b, t = rng.random(classes, np.float32), rng.integers(0, classes, LOGITS)
    arguments = [backends.asarray(array) for array in (x, w, b, t)]
    few = [backends.asarray(array) for array in (x[:8], w[:, :64].copy(), b[:64], t[:8] % 64)]
    WAYS[way](*few)  # the first call compiles and loads code, which does not count
    taken = watched()
    results = WAYS[way](*arguments)
    print(f"{way}: {(taken() - sum(result.nbytes for result in results)) / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="instead of the environment variable PLUGRAD_BACKEND")
    parser.add_argument("--distributed", action="store_true", help="on the processes that mpiexec started")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", choices=WAYS, help="only measure the memory of one variant of the last layer")
    parser.add_argument("--classes", type=int, default=20_000, help="and for so many classes")
    chosen = parser.parse_args()
    if chosen.steps < 1:
        parser.error("--steps: expected at least 1")
    try:
        if chosen.backend:
            backends.set_default(chosen.backend)
        backends.current()
    except (ValueError, backends.BackendUnavailableError) as error:
        parser.error(str(error))
    if chosen.memory:
        measure(chosen.memory, chosen.classes)
    elif chosen.distributed:
        ranks = distributed.mpi()
        with distributed.guard(ranks), open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
            if ranks.rank:  # one process tells
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            main(chosen.steps, chosen.seed, ranks)
    else:
        main(chosen.steps, chosen.seed)
