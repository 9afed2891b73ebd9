"""Ctrl-C stops long work, and the library works afterwards."""

import _imp
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from plugrad import backends
from plugrad.kernels import layers, optim
from plugrad.tests.processes import PATIENCE

LONG = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
import numpy as np
from plugrad import backends, kernels as K
x = np.random.default_rng(0).normal(size=(8000, 5000)).astype("f4")
h, w = x[:, :500].copy(), x[:500].copy()
t, out, dx = np.zeros(8000, int), np.empty((8000, 5000), "f4"), np.empty((8000, 500), "f4")
calls = {
    "softmax": (lambda: K.softmax(x, out=out), out),
    "log_softmax": (lambda: K.log_softmax(x, axis=0, out=out), out),
    "softmax_cross_entropy_value_and_grad": (lambda: K.softmax_cross_entropy_value_and_grad(x, t, out=out), out),
    "affine": (lambda: K.affine(h, w, None, out=out), out),
    "linear_cross_entropy_value_and_grad": (
        lambda: K.linear_cross_entropy_value_and_grad(
            h, w, None, t, needs=("dx",), max_workspace="16MB", out=(None, dx, None, None)
        ),
        dx,
    ),
}
name = sys.argv[1]
call, written = calls[name]
backends.warmup([name, "relu", "softmax"])  # test_while_kernels_are_compiled interrupts compilation
UNTOUCHED = 7.0  # a value that no result has

def interrupt():
    while (written[::400, ::100] == UNTOUCHED).all():
        time.sleep(1e-4)
    os.kill(os.getpid(), signal.SIGINT)

# On a busy machine the signal may arrive after the end of the call. The call is then repeated.
for attempt in range(100):
    written[...] = UNTOUCHED
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        try:
            call()
        finally:
            thread.join()
        print("Ctrl-C was ignored")
    except KeyboardInterrupt:
        if name == "affine" or (written == UNTOUCHED).any():  # a product is one call of the BLAS
            print("broken off")
            break
left = written.copy()
small = np.arange(-3, 4, dtype="f4")
print(K.relu(small).sum() == 6, abs(K.softmax(x[:50]).sum() - 50) < 0.01)
print(np.array_equal(left, written), np.array_equal(K.relu(x, out=out), np.maximum(x, 0)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    "kernel",
    ["softmax", "log_softmax", "softmax_cross_entropy_value_and_grad", "affine", "linear_cross_entropy_value_and_grad"],
)
def test_a_long_kernel(kernel: str, backend: str) -> None:
    """Ctrl-C stops it: after its first results, the rest is never written."""
    done = subprocess.run(
        [sys.executable, "-c", LONG, kernel],
        env={**os.environ, "PLUGRAD_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["broken", "off", "True", "True", "True", "True"], done.stdout + done.stderr


def on_numba(code: str, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PLUGRAD_BACKEND": "numba", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


IMPORTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from plugrad import backends, kernels as K

calls = 0

def interrupt(frame, event, argument):
    global calls
    caller = frame.f_back and frame.f_back.f_code
    if event == "return" and caller and caller.co_filename.endswith("numba/cpython/unicode.py"):
        calls += 1
        if calls == 60:
            sys.setprofile(None)
            os.kill(os.getpid(), signal.SIGINT)

sys.setprofile(interrupt)
interrupted, x = 0, np.arange(-3, 4, dtype="f4")
for _ in range(2):
    try:
        y = K.softmax(x)
    except KeyboardInterrupt:
        interrupted += 1
print(interrupted, np.allclose(y, np.exp(x) / np.exp(x).sum()))
"""


@pytest.mark.slow
def test_while_numba_imports_itself() -> None:
    """Numba imports most of its modules at the first compilation, and is broken if that stops halfway."""
    found = on_numba(IMPORTED)
    assert found.stdout.split() == ["1", "True"], found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_a_signal_handler_may_end_the_process_while_numba_is_imported(backend: str) -> None:
    code = "def handler(number, frame): raise SystemExit('ended')\n" + IMPORTED.replace("SIGINT", "SIGTERM")
    found = on_numba(code.replace("signal.default_int_handler", "handler"), PLUGRAD_BACKEND=backend)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1] == "ended"


@pytest.mark.slow
def test_a_handler_that_calls_a_kernel_while_numba_is_imported() -> None:
    """Another backend computes the call, and numba works afterwards."""
    handler = """
def handler(number, frame):
    print(K.relu([-1.0, 2.0]).tolist(), str(backends.current()), str(backends.available()["numba"])[-25:])

"""
    code = handler + IMPORTED.replace("SIGINT", "SIGTERM").replace("signal.default_int_handler", "handler")
    found = on_numba(code + "print(backends.current())", PLUGRAD_BACKEND="auto")
    assert found.stdout.splitlines() == [
        "[0.0, 2.0] numpy it is just being imported",
        "0 True",
        "numba",
    ], found.stderr


@pytest.mark.slow
@pytest.mark.parametrize("handled", [signal.SIG_DFL, signal.SIG_IGN])
def test_the_handler_of_the_process_stays_in_force(handled: signal.Handlers) -> None:
    code = IMPORTED.replace("signal.default_int_handler", str(handled))
    found = on_numba(code)
    ends = handled == signal.SIG_DFL
    assert found.returncode == (-signal.SIGINT if ends else 0), found.stderr
    assert found.stdout.split() == ([] if ends else ["0", "True"])


COMPILED = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
import numpy as np
from numba.core import codegen, event
from plugrad import backends, kernels as K

is_watched = False

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Watch(event.Listener):
    counts = {"start": 0, "end": 0}
    def on_start(self, _):
        self.count("start")
    def on_end(self, _):
        self.count("end")
    def count(self, what):
        if is_watched:
            self.counts[what] += 1
            if sys.argv[1] == f"{what} of {self.counts[what]}":
                thread = threading.Thread(target=interrupt)
                thread.start()
                thread.join()

event.register("numba:compile", Watch())
called_by_llvm = codegen.CPUCodeLibrary._object_compiled_hook.__func__

def hook(library, module, code):
    if sys.argv[1] == "called by LLVM" and is_watched:
        sys.argv[1] = ""
        interrupt()
    called_by_llvm(library, module, code)

codegen.CPUCodeLibrary._object_compiled_hook = classmethod(hook)
x = np.arange(-3, 4, dtype="f4")
with backends.use("numba"):
    assert K.sigmoid(x)[3] == 0.5  # numba is imported
is_watched, interrupted = True, 0
for _ in range(100):
    try:
        found = K.softmax_cross_entropy_value_and_grad(x[None], [6])[1]
        break
    except KeyboardInterrupt:
        interrupted += 1
y = np.exp(x.astype(float)); y /= y.sum(); y[6] -= 1
print(interrupted, np.allclose(found[0], y, atol=1e-6), K.relu(x).sum() == 6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["start of 1", "end of 1", "start of 3", "end of 3", "start of 6", "called by LLVM"])
def test_while_kernels_are_compiled(where: str, tmp_path: Path) -> None:
    """At the start or end of a compilation, or where Python would print the exception and ignore it."""
    found = on_numba(COMPILED, where, NUMBA_CACHE_DIR=str(tmp_path))
    assert found.stdout.split() == ["1", "True", "True"], found.stderr


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_step_waits_for_no_lock_of_imports(name: str) -> None:
    """Ctrl-C at the wrong place of Python's import system leaves that lock taken; training then goes on."""
    rng = np.random.default_rng(0)
    x, t, done = rng.normal(size=(8, 4)).astype(np.float32), np.zeros(8, int), list[float]()

    def train() -> None:
        with backends.use(name):
            net = layers.Sequential(layers.Affine.init(4, 5, rng=rng), layers.Relu(), layers.Affine.init(5, 3, rng=rng))
            step = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params)).step
            done.append(sum(float(step(x, t)) for _ in range(3)))

    train()  # imports what it needs
    _imp.acquire_lock()
    try:
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(PATIENCE)
    finally:
        _imp.release_lock()
    assert len(done) == 2
