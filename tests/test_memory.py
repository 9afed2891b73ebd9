"""Memory: no access outside an array, no leaks, and an error where memory cannot be allocated."""

import os
import subprocess
import sys

import pytest

from plugrad import backends
from plugrad.kernels import KERNELS
from plugrad.tests.processes import PATIENCE

NAMES = [name for name in ("numpy", "numba") if backends.available()[name]]
LARGE_MEMORY = 6 * 2**30  # bytes, for arrays of more than 2^31 float16 numbers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="uses mprotect and /proc, which are Linux's"),
]


def python(code: str, backend: str, **environment: str) -> str:
    """Run code on a backend in a new process, and return its output."""
    variables = {**os.environ, "PLUGRAD_BACKEND": backend, **environment}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("backend", NAMES)
def test_kernels_access_no_memory_outside_their_arrays(backend: str) -> None:
    command = [sys.executable, "-X", "faulthandler", "-m", "plugrad.tests.guarded", backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 2 * 4 * 15 * len(KERNELS)


@pytest.mark.parametrize("place", ["x[-1:].view('u1')[4]", "x.view('u1')[-1 - x.nbytes]"])
def test_the_guard_page_stops_reads_outside_an_array(place: str) -> None:
    code = f"""
import ctypes, numpy as np
from plugrad.tests.guarded import guarded
for at_end, beyond in ((True, 3 * 4), (False, -1)):
    x = guarded(np.arange(3, dtype='f4'), at_end)
    assert x.tolist() == [0, 1, 2]
    if at_end == {place.startswith("x[-1:]")}:
        ctypes.string_at(x.ctypes.data + beyond, 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -11, done.stderr


LOOP = """
import gc, resource, sys, tracemalloc
import numpy as np
from plugrad import kernels as K
rng = np.random.default_rng(0)
x, t, w, b = rng.normal(size=(8, 5)).astype("f4"), np.arange(8) % 5, np.ones((5, 5), "f4"), np.zeros(5, "f4")
y, out = K.softmax(x), np.empty_like(x)
def calls():
    K.relu(x); K.relu_backward(x, y, out=out); K.sigmoid(x, out=out); K.softmax(x); K.softmax_backward(x, y)
    K.log_softmax(x, axis=0); K.affine(x, w, b); K.affine_backward(x, x, w); K.cross_entropy(y, t)
    K.softmax_cross_entropy_value_and_grad(x, t, out=out); K.softmax_cross_entropy(x, y)
    for wrong in (dict(x=x, t=t + 9), dict(x="text", t=t), dict(x=x, t=t, reduction="no")):
        try:
            K.softmax_cross_entropy_value_and_grad(**wrong)
        except (TypeError, ValueError):
            pass
given = (x, t, w, b, y, out)
"""


@pytest.mark.parametrize("backend", NAMES)
def test_nothing_leaks(backend: str) -> None:
    code = """
for _ in range(300):
    calls()
references = [sys.getrefcount(array) for array in given]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
calls(); gc.collect(); before, _ = tracemalloc.get_traced_memory()
for _ in range(300):
    calls()
gc.collect()  # Python keeps up to 2,000 tuples of each length for reuse
traced, _ = tracemalloc.get_traced_memory()
tracemalloc.stop()
for _ in range(14_300):  # 200,000 calls
    calls()
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
print(traced - before, grown, [sys.getrefcount(array) for array in given] == references)
"""
    traced, grown, same = python(LOOP + code, backend).split()
    assert int(traced) < 20_000  # bytes
    assert int(grown) < 2_000  # kilobytes
    assert same == "True"


@pytest.mark.parametrize("backend", NAMES)
def test_nothing_leaks_where_work_is_shared(backend: str) -> None:
    code = """
import resource
import numpy as np
from plugrad import kernels as K
shared = np.ones((600, 500), "f4")
large, larger = np.ones((4000, 2200), "f4"), np.ones((8200, 8800), "f4")  # numba recycles results of 35 MB, not of 288
out = np.empty_like(shared)
def calls(number):
    for _ in range(number):
        K.softmax(shared, out=out)
    for _ in range(number // 50):
        K.relu(large)
    for _ in range(number // 500):
        K.relu(larger)
calls(500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
calls(3000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    assert int(python(code, backend, PLUGRAD_NUM_THREADS="3")) < 6_000  # kilobytes


@pytest.mark.parametrize("backend", NAMES)
def test_a_failed_allocation_raises_memory_error_and_nothing_breaks(backend: str) -> None:
    code = """
calls()
large = np.broadcast_to(np.float32(1), (30_000, 30_000))  # in 4 bytes
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
failed = 0
for call in (lambda: K.relu(large), lambda: K.softmax(large), lambda: K.log_softmax(large, axis=0),
             lambda: K.softmax_cross_entropy_value_and_grad(large, np.zeros(30_000, int)), lambda: K.sigmoid(large),
             lambda: K.affine(np.ones((30_000, 1), "f4"), np.ones((1, 30_000), "f4"), None)):
    try:
        call()
    except MemoryError:
        failed += 1
calls()
print(failed, abs(float(K.softmax(x).sum()) - 8) < 1e-5)
"""
    assert python(LOOP + code, backend).split() == ["6", "True"]


def test_training_in_threads_beside_forks() -> None:
    """Without Ctrl-C, which may leave a lock of Python's own modules taken."""
    done = python("from plugrad.tests import soak\nprint(soak.run(0, rounds=8, interrupts=False))", "numpy")
    assert "8 forks, 0 interrupts" in done
    assert done.split()[-1] == "0", done


def test_the_soak_notices_other_bits_and_memory_that_grows() -> None:
    code = """
from plugrad.tests import soak
one = soak.Soak()
one.expected = dict.fromkeys(one.expected, b"")
one.fork()
one._check("the test")
print(one.wrong[0] == "a forked child ended with status 256", len(one.wrong) == 1 + len(one.expected))
sizes = iter([10 << 20, 60 << 20])
soak.memory = lambda: next(sizes)
print(soak.run(0, rounds=2, interrupts=False))
"""
    done = python(code, "numpy").splitlines()
    assert done[0] == "True True"
    assert done[-2:] == ["memory grew by 50 MiB from the first half to the second", "1"]


def _free() -> int:
    with open("/proc/meminfo") as meminfo:
        return int(next(line for line in meminfo if line.startswith("MemAvailable")).split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux" or _free() < LARGE_MEMORY, reason="needs 6 GiB of memory")
def test_arrays_of_more_than_2_to_the_31_elements() -> None:
    code = """
import numpy as np
from plugrad import kernels as K
n = 2**31 + 2**20
x = np.zeros(n, np.float16)
places = np.array([0, 1, 2**31 - 1, 2**31, 2**31 + 1, n - 1])
x[places] = [-1, 2, -3, 4, -5, 6]
K.relu(x, out=x)
print(x[places].tolist(), np.count_nonzero(x))
rows = x.reshape(-1, 1024)
rows[:, 1:] = -np.inf  # all of each row in its first class
K.softmax(rows, out=rows)
print(rows[[0, 1, 2**21 - 1, 2**21, -1], 0].tolist(), np.count_nonzero(rows) == len(rows))
"""
    lines = python(code, NAMES[-1]).splitlines()
    assert lines == ["[0.0, 2.0, 0.0, 4.0, 0.0, 6.0] 3", "[1.0, 1.0, 1.0, 1.0, 1.0] True"]
