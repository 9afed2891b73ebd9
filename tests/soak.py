"""Training loops for hours: ``python -m plugrad.tests.soak SECONDS``.

Sixteen threads train, on `numpy` and `numba`, by `TrainingStep`, by a graph and by plain calls. Meanwhile the process
forks again and again, and Ctrl-C interrupts trainings of the main thread. Each training, those of forked children
included, must have the bits of the first one, and the memory of the process must not grow. Not for Windows.
"""

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim

THREADS = 16
STEPS = 12  # of a training
GROWTH = 16 << 20  # bytes by which memory may grow from the first half to the second: it varies by some megabytes

Training = Callable[[], bytes]


def by_training_step() -> bytes:
    """Layers with dropout, by captured steps of batches of two sizes."""
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(100, 20)).astype(np.float32), rng.integers(0, 10, 100)
    net = layers.Sequential(
        layers.Affine.init(20, 32, rng=rng),
        layers.Relu(),
        layers.Dropout(0.2, rng),
        layers.Affine.init(32, 10, rng=rng),
    )
    optimizer = optim.Adam(net.params, lr=optim.cosine(0.01, steps=STEPS))
    training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optimizer)
    losses = [training.step(x[rows], t[rows]) for _ in range(STEPS // 2) for rows in (slice(64), slice(64, None))]
    return _bits(*losses, *net.params)


def by_graph() -> bytes:
    """Plain calls with ``out=``, captured once."""
    rng = np.random.default_rng(2)
    x, t = np.empty((32, 20), np.float32), np.empty(32, np.int64)
    w, v = (rng.normal(size=shape).astype(np.float32) for shape in ((20, 16), (16, 5)))
    h, z, dh = np.empty((32, 16), np.float32), np.empty((32, 5), np.float32), np.empty((32, 16), np.float32)
    optimizer = optim.SGD([w, v], lr=0.1, momentum=0.9)
    batches = [(rng.normal(size=x.shape), rng.integers(0, 5, t.shape)) for _ in range(STEPS)]
    x[...], t[...] = batches[0]
    with K.capture() as graph:
        K.relu(K.affine(x, w, None, out=h), out=h)
        loss, _ = K.softmax_cross_entropy_value_and_grad(K.affine(h, v, None, out=z), t, out=(None, z))
        _, dv, _ = K.affine_backward(z, h, v, needs=("dx", "dw"), out=(dh, None, None))
        K.relu_backward(dh, h, out=dh)
        _, dw, _ = K.affine_backward(dh, x, w, needs=("dw",))
        optimizer.step([dw, dv])
    losses = [float(loss)]
    for x[...], t[...] in batches[1:]:
        graph.replay()
        losses.append(float(loss))
    return _bits(*losses, w, v)


def by_plain_calls() -> bytes:
    """A last layer in chunks, clipping, a wrong label, and a result that threads share."""
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(64, 20)).astype(np.float32), rng.integers(0, 300, 64)
    w, b = rng.normal(size=(20, 300)).astype(np.float32), np.zeros(300, np.float32)
    workspace = K.Workspace("1MB")
    optimizer = optim.RMSprop([w, b], lr=0.001)
    losses = []
    for _ in range(STEPS):
        loss, _, dw, db = K.linear_cross_entropy_value_and_grad(x, w, b, t, needs=("dw", "db"), max_workspace=workspace)
        losses += [float(loss), optim.clip_by_global_norm([dw, db], 1.0)]
        optimizer.step([dw, db])
    with contextlib.suppress(ValueError):
        K.softmax_cross_entropy(x, t + 300)
    return _bits(*losses, w, K.softmax(np.tile(w, (40, 1))))


TRAININGS: tuple[Training, ...] = (by_training_step, by_graph, by_plain_calls)


def _bits(*values: object) -> bytes:
    return b"".join(np.asarray(value).tobytes() for value in values)


class Soak:
    """The threads, and what has happened in them."""

    def __init__(self) -> None:
        self.names = [name for name in ("numpy", "numba") if backends.available()[name]]
        self.expected = {(name, train): self._train(name, train) for name in self.names for train in TRAININGS}
        self.counts: Counter[str] = Counter()  # of the main thread
        self.trained = [0] * THREADS
        self.wrong: list[str] = []
        self.is_over = threading.Event()
        self.may_interrupt = False

    def _train(self, name: str, train: Training) -> bytes:
        with backends.use(name):
            return train()

    def _check(self, where: str) -> None:
        for (name, train), expected in self.expected.items():
            if self._train(name, train) != expected:
                self.wrong.append(f"{train.__name__} on {name} in {where}")

    def work(self, number: int) -> None:
        """Train until it is over, in a thread."""
        try:
            while not self.is_over.is_set():
                self._check(f"thread {number}")
                self.trained[number] += len(self.expected)
        except BaseException as error:
            self.wrong.append(f"thread {number}: {error!r}")

    def fork(self) -> None:
        """Train in a forked child."""
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.wrong.clear()
                self._check("a child")
                status = bool(self.wrong)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        self.counts["forks"] += 1
        if status:
            self.wrong.append(f"a forked child ended with status {status}")

    def interrupt(self) -> None:
        """Train in the main thread until Ctrl-C, and once more without it."""
        asked = threading.Timer(random.uniform(0, 0.05), signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        try:
            self.may_interrupt = True
            asked.start()
            while True:
                for name, train in self.expected:
                    self._train(name, train)
        except KeyboardInterrupt:
            self.counts["interrupts"] += 1
        asked.join()
        self._check("the main thread after Ctrl-C")

    def handle(self, number: int, frame: object) -> None:
        """Raise `KeyboardInterrupt`, once for each time that it is waited for."""
        if self.may_interrupt:
            self.may_interrupt = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def threads(self) -> Iterator[None]:
        """Train in threads, and handle Ctrl-C."""
        before = signal.signal(signal.SIGINT, self.handle)
        working = [threading.Thread(target=self.work, args=(number,)) for number in range(THREADS)]
        for thread in working:
            thread.start()
        try:
            yield
        finally:
            self.is_over.set()
            for thread in working:
                thread.join()
            signal.signal(signal.SIGINT, before)


def memory() -> int:
    """The bytes of memory that the process uses."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def run(seconds: float, rounds: int = 8, *, interrupts: bool = True) -> int:
    """Train for so many seconds, and at least so many rounds; return the number of errors."""
    soak, start, line = Soak(), time.monotonic(), 0.0
    used: list[int] = []
    with soak.threads():
        while len(used) < rounds or time.monotonic() < start + seconds:
            if interrupts:
                soak.interrupt()
            soak.fork()
            used.append(memory())
            if time.monotonic() > line + 60:
                line = time.monotonic()
                print(_state(soak, line - start, used), flush=True)
            if soak.wrong:
                break
    print(_state(soak, time.monotonic() - start, used))
    middle = len(used) // 2
    grown = max(used[middle:]) - max(used[:middle], default=0)
    if not soak.wrong and grown > GROWTH:
        soak.wrong.append(f"memory grew by {grown >> 20} MiB from the first half to the second")
    for error in soak.wrong:
        print(error)
    return len(soak.wrong)


def _state(soak: Soak, seconds: float, used: list[int]) -> str:
    counts = ", ".join(f"{soak.counts[name]:,} {name}" for name in ("forks", "interrupts"))
    return f"{seconds:.0f} s: {sum(soak.trained):,} trainings in threads, {counts}, {used[-1] / 2**20:.1f} MiB"


if __name__ == "__main__":
    sys.exit(bool(run(float(sys.argv[1]))))
