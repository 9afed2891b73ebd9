"""Processes: forked, spawned, killed, and several that compile into one cache folder at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plugrad.tests.processes import PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here"),
]

WORKER = '''
import multiprocessing, os, sys
import numpy as np
from plugrad import backends, kernels as K

x = np.random.default_rng(0).normal(size=(600, 500)).astype("f4")

def total(seed):
    """Whether the probabilities of 600 rows, a batch of a loader, sum to 600 on the selected backend."""
    y = K.softmax(x + np.float32(seed))
    return abs(float(y.sum()) - 600) < 0.1
'''


def script(folder: Path, code: str, **environment: str) -> str:
    """Run a program, which its workers import as ``program``, and return its output."""
    path = folder / "program.py"
    path.write_text(WORKER + code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "faulthandler", str(path)],
        env={**os.environ, "PLUGRAD_BACKEND": "numba", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_workers(method: str, before: bool, tmp_path: Path) -> None:
    code = f"""
if __name__ == "__main__":
    if {before}:
        print(total(0))
    with multiprocessing.get_context({method!r}).Pool(4) as pool:
        print(all(pool.map(total, range(40))))
    print(total(1))
"""
    assert set(script(tmp_path, code).split()) == {"True"}


TRAINING = """
from plugrad.kernels import layers, optim

def trained(everything, count):
    net, loss, optimizer, training, workspace = everything
    x, t = np.linspace(-1, 1, 28, dtype=np.float32).reshape(7, 4), np.arange(7) % 3
    for _ in range(count):
        loss.forward(net.forward(x), t)
        net.backward(loss.backward())
        optimizer.step(net.grads)
        training.step(x, t)
    K.linear_cross_entropy(x, net[0].w, None, t, max_workspace=workspace)
    return everything

def bits(everything):
    return [p.tobytes() for p in everything[0].params], everything[2].steps

if __name__ == "__main__":
    net = layers.Sequential(layers.Affine.init(4, 5, rng=0), layers.Relu(),
                            layers.Affine.init(5, 3, rng=1))
    loss, optimizer = layers.SoftmaxWithLoss(), optim.AdamW(net.params, optim.cosine(0.1, steps=20, warmup=3))
    everything = net, loss, optimizer, layers.TrainingStep(net, loss, optimizer), K.Workspace("1MB")
    trained(everything, 3)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        others = pool.starmap(trained, [(everything, 4)] * 2)
    trained(everything, 4)
    print(all(bits(other) == bits(everything) for other in others), optimizer.steps)
    trained(others[0], 1)
    trained(everything, 1)
    print(bits(others[0]) == bits(everything))
"""


def test_everything_that_a_loop_holds_can_be_sent_to_processes_and_back(tmp_path: Path) -> None:
    assert script(tmp_path, TRAINING, PLUGRAD_BACKEND="numpy").split() == ["True", "14", "True"]


@pytest.mark.parametrize("used_by", ["parent", "child", "both"])
def test_a_fork_before_and_after_a_call(used_by: str, tmp_path: Path) -> None:
    code = f"""
if {used_by != "child"}:
    total(0)
pid = os.fork()
if pid == 0:
    os._exit(0 if {used_by == "parent"} or (total(1) and total(2)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, total(3))
"""
    assert script(tmp_path, code).split() == ["True", "True"]


def test_a_fork_while_another_thread_compiles(tmp_path: Path) -> None:
    code = """
import threading
from numba.core import event

class Begun(event.Listener):
    def on_start(self, _):
        begun.set()
    def on_end(self, _):
        pass

K.sigmoid(x[0, :5].copy())  # numba is there
begun = threading.Event()
event.register("numba:compile", Begun())
thread = threading.Thread(target=lambda: print(abs(float(K.softmax(x[:3, :9].copy()).sum()) - 3) < 1e-5))
thread.start()
begun.wait()
pid = os.fork()
if pid == 0:
    os._exit(0 if K.relu(-np.ones((3, 4), "f4")).sum() == 0 and K.softmax(x[:3, :9].copy()).sum() > 2 else 1)
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0)
"""
    assert script(tmp_path, code, NUMBA_CACHE_DIR=str(tmp_path / "cache")).split() == ["True", "True"]


def test_a_fork_while_another_thread_starts_the_team(tmp_path: Path) -> None:
    code = """
import signal, threading
from plugrad.backends.numba import team
held, forked = threading.Event(), threading.Event()

def hold():
    with team._starting:
        held.set()
        forked.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(100)
    os._exit(0 if total(1) else 1)
forked.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, total(2))
"""
    assert script(tmp_path, code, PLUGRAD_NUM_THREADS="3").split() == ["True", "True"]


def test_a_child_that_is_killed_leaves_nothing_locked(tmp_path: Path) -> None:
    code = """
import signal
if __name__ == "__main__":
    total(0)
    for _ in range(5):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            while True:
                total(1)
                os.write(writer, b".")
        os.read(reader, 1)  # it computes
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(total(2))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(all(pool.map(total, range(4))))
"""
    assert script(tmp_path, code).split() == ["True"] * 6


CALL = "from plugrad import kernels as K; import numpy as np; print(float(K.relu(np.arange(-3, 4, dtype='f4')).sum()))"


def started(cache: Path, code: str = CALL) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PLUGRAD_BACKEND": "numba", "NUMBA_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_processes_compile_into_one_folder_at_once(tmp_path: Path) -> None:
    processes = [started(tmp_path) for _ in range(4)]
    results = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [out for out, _ in results] == ["6.0\n"] * 4, results
    out, errors = started(tmp_path).communicate(timeout=PATIENCE)
    assert out == "6.0\n"
    assert errors == ""  # the code is there, and whole: nothing is compiled, and there is no warning


KILLED = """
import os, signal
from numba.core import event

def reach(here):
    if here == place:
        os.kill(os.getpid(), signal.SIGKILL)

class Watch(event.Listener):
    def on_start(self, _):
        reach("start")
    def on_end(self, _):
        reach("end")

def replaced(new, old):  # numba writes the file of the code under another name, and then renames it
    kind = os.path.splitext(old)[1]
    reach(f"before {kind}")
    replace(new, old)
    reach(f"after {kind}")

event.register("numba:compile", Watch())
replace, os.replace = os.replace, replaced
"""


def test_a_process_killed_while_it_compiles_leaves_a_usable_cache(tmp_path: Path) -> None:
    """At the start and the end of a compilation, and before and after the index and the code are written."""
    for place in ("start", "end", "before .nbi", "after .nbi", "before .nbc", "after .nbc"):
        process = started(tmp_path, f"place = {place!r}\n{KILLED}\n{CALL}")
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -signal.SIGKILL, (place, errors)
    out, _ = started(tmp_path).communicate(timeout=PATIENCE)
    assert out == "6.0\n"


def test_a_full_disk(tmp_path: Path) -> None:
    # A limit of 0 bytes for files has the effect of a full disk.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));" + CALL
    done = subprocess.run(
        [sys.executable, "-c", limited],
        env={**os.environ, "PLUGRAD_BACKEND": "numba", "NUMBA_CACHE_DIR": str(tmp_path / "full")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (0, "6.0\n"), done.stderr
    out, errors = started(tmp_path / "full").communicate(timeout=PATIENCE)
    assert out == "6.0\n", errors


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="there are no users here")
def test_without_a_home_folder(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CONFIG_HOME")}
    environment = {name: value for name, value in environment.items() if not name.startswith("PLUGRAD")}
    done = subprocess.run(
        [sys.executable, "-c", CALL], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (0, "6.0\n"), done.stderr
