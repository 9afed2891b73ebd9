"""Steps on several processes: ``python -m plugrad.bench --distributed``.

Starts 1, 2 and 4 processes of one thread each by MPI. Compute and communication are timed apart: communication is the
time in messages, which includes waiting for slower ranks. The bytes that a rank gives to messages in a step are counted
and compared with the formula of docs/distributed.md; the exit status is 1 if they differ.

rows     data-parallel: each rank has some rows of the batch, and the gradients are summed
classes  the classes of linear_cross_entropy are spread over the ranks

`--model FILE.svg` draws instead how far this would go, by a model of networks (see plugrad.bench.scaling).
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from plugrad import distributed, kernels as K
from plugrad.bench import arguments as types, machine, scaling
from plugrad.bench.outputs import PACKAGES
from plugrad.kernels import optim

RANKS = (1, 2, 4)
NETWORK = (1024, 256, 512, 10)  # rows, inputs, hidden neurons, classes
LAYER = (512, 128, 8192)  # rows, inputs, classes
MESSAGES = (8, 65_536, 4_194_304)  # bytes


class Counted:
    """A communicator that counts the bytes of messages, and the time in them."""

    def __init__(self, comm: Any) -> None:
        self._comm, self.rank, self.size, self.check = comm, comm.rank, comm.size, comm.check
        self.bytes, self.seconds = 0, 0.0

    def _timed(self, array: Any, send: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = send()
        self.seconds += time.perf_counter() - start
        self.bytes += array.nbytes
        return result

    def allreduce(self, array: Any, op: str = "sum") -> None:
        """See `Communicator`."""
        self._timed(array, lambda: self._comm.allreduce(array, op))

    def start_allreduce(self, array: Any) -> Callable[[], None]:
        """See `Communicator`."""
        wait = self._timed(array, lambda: self._comm.start_allreduce(array))
        return lambda: self._timed(np.zeros(0), wait)

    def broadcast(self, array: Any, root: int = 0) -> None:
        """See `Communicator`."""
        self._timed(array, lambda: self._comm.broadcast(array, root))

    def barrier(self) -> None:
        """See `Communicator`."""
        self._comm.barrier()


def by_rows(comm: Any) -> Callable[[], Any]:
    """Return a step of data-parallel training."""
    rows, inputs, hidden, classes = NETWORK
    rng = np.random.default_rng(0)
    mine = slice(rows * comm.rank // comm.size, rows * (comm.rank + 1) // comm.size)
    x, t = rng.normal(size=(rows, inputs)).astype(np.float32)[mine], rng.integers(0, classes, rows)[mine]
    w1, w2 = (rng.normal(size=s).astype(np.float32) / 16 for s in ((inputs, hidden), (hidden, classes)))
    b1, b2 = np.zeros(hidden, np.float32), np.zeros(classes, np.float32)
    trainer = distributed.DataParallel(optim.SGD([w1, b1, w2, b2], lr=1e-4), comm)

    def step() -> None:
        h = K.relu(K.affine(x, w1, b1))
        _, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, w2, b2), t, reduction="sum")
        dh, dw2, db2 = K.affine_backward(dz, h, w2)
        _, dw1, db1 = K.affine_backward(K.relu_backward(dh, h), x, w1, needs=("dw", "db"))
        trainer.step([dw1, db1, dw2, db2], len(t))

    return step


def by_classes(comm: Any) -> Callable[[], Any]:
    """Return the loss and gradients of a last layer with spread classes."""
    rows, inputs, classes = LAYER
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(rows, inputs)).astype(np.float32), rng.integers(0, classes, rows)
    w = rng.normal(size=(inputs, classes)).astype(np.float32) / 16
    mine = np.ascontiguousarray(np.array_split(w, comm.size, axis=1)[comm.rank])
    b, workspace = np.zeros(mine.shape[1], np.float32), K.Workspace("64MB")
    call = distributed.linear_cross_entropy_value_and_grad
    return lambda: call(x, mine, b, t, comm=comm, max_workspace=workspace)


STEPS = {"rows": by_rows, "classes": by_classes}


def expected_bytes(what: str, ranks: int) -> int:
    """Return the bytes of a step by the formulas of docs/distributed.md; 0 for the messages of one rank."""
    if ranks == 1 and what == "classes":
        return 0
    if what == "rows":
        _, inputs, hidden, classes = NETWORK
        parameters = inputs * hidden + hidden + hidden * classes + classes
        return scaling.bytes_of_rows(parameters) + (scaling.bytes_of_comparison(ranks) if ranks > 1 else 0)
    rows, inputs, _ = LAYER
    return scaling.bytes_of_classes(rows, inputs, chunks=1) + scaling.bytes_of_comparison(ranks)


def on_a_rank(seconds: float) -> None:
    """Measure, and print the results as JSON on the rank 0."""
    comm = distributed.mpi()
    with distributed.guard(comm):
        found: dict[str, Any] = {"ranks": comm.size, "steps": {}, "messages": {}}
        for what, make in STEPS.items():
            counted = Counted(comm)
            step = make(counted)
            step()
            found["steps"][what] = _of_steps(step, counted, seconds)
        for size in MESSAGES:
            counted = Counted(comm)
            send = functools.partial(counted.allreduce, np.zeros(size // 8))
            found["messages"][size] = _of_steps(send, counted, seconds)["whole"]
        if comm.rank == 0:
            print(json.dumps(found))


def _of_steps(step: Callable[[], Any], comm: Counted, seconds: float) -> dict[str, float]:
    """Return the medians of the times of steps in seconds, and the bytes of one."""
    whole, apart, sent = list[float](), list[float](), comm.bytes
    end = time.perf_counter() + seconds
    while True:
        more = np.array([float(time.perf_counter() < end or not whole)])
        comm._comm.allreduce(more, "max")  # all ranks make as many steps
        if not more[0]:
            break
        before, sent = comm.seconds, comm.bytes
        start = time.perf_counter()
        step()
        whole.append(time.perf_counter() - start)
        apart.append(comm.seconds - before)
        sent = comm.bytes - sent
    return {"whole": statistics.median(whole), "messages": statistics.median(apart), "bytes": sent}


def _job(ranks: int, seconds: float) -> dict[str, Any]:
    """Return what the processes of a job measured."""
    beside = Path(sys.executable).parent / "mpiexec"
    program = str(beside) if beside.exists() else shutil.which("mpiexec")
    if program is None:
        raise SystemExit("python -m plugrad.bench --distributed: mpiexec was not found; install it with: "
                         "python -m pip install 'plugrad[mpi]'")  # fmt: skip
    command = [program, "-n", str(ranks), sys.executable, "-m", __name__, "--rank", str(seconds)]
    one = dict.fromkeys(("PLUGRAD_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(command, env={**os.environ, **one}, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str]) -> int:
    """Measure, and print tables; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m plugrad.bench --distributed",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=types.seconds, default=1.0, help="for each measurement, 1 by default")
    parser.add_argument("--model", metavar="FILE.svg", help="draw the model instead")
    parser.add_argument("--ranks", type=types.comma_separated(int), default=list(RANKS), help="1,2,4 by default")
    given = parser.parse_args(arguments)
    if given.model:
        missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
        if missing:
            parser.error(f"--model: needs {', '.join(missing)}: python -m pip install 'plugrad[bench]'")
        scaling.draw(given.model)
        return 0
    print(machine.in_a_line({**machine.describe(["numpy"], ()), "threads": 1}))
    jobs = [_job(ranks, given.seconds) for ranks in given.ranks]
    print(
        f"\n{'step':10}{'ranks':>6}{'whole, us':>12}{'compute, us':>13}{'messages, us':>14}{'bytes':>12}{'formula':>12}"
    )
    is_right = True
    for what in STEPS:
        for job in jobs:
            step, ranks = job["steps"][what], job["ranks"]
            expected = expected_bytes(what, ranks)
            is_right &= step["bytes"] == expected
            compute = step["whole"] - step["messages"]
            times = f"{step['whole'] * 1e6:12,.0f}{compute * 1e6:13,.0f}{step['messages'] * 1e6:14,.0f}"
            print(f"{what:10}{ranks:6}{times}{step['bytes']:12,}{expected:12,}")
    print(f"\n{'bytes':>10}", *(f"{job['ranks']} ranks, us".rjust(14) for job in jobs))
    for size in MESSAGES:
        print(f"{size:10,}", *(f"{job['messages'][str(size)] * 1e6:14.1f}" for job in jobs))
    if not is_right:
        print("\nTHE BYTES ARE NOT THOSE OF THE FORMULA")
    return 0 if is_right else 1


if __name__ == "__main__":
    on_a_rank(float(sys.argv[2]))
