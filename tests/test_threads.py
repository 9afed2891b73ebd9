"""Many threads and tasks at once: every result is right, and a selection affects only its own thread or task."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from plugrad.tests.processes import PATIENCE

pytestmark = pytest.mark.slow

SCRIPT = """
import asyncio, os, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from plugrad import backends, kernels as K
from plugrad.backends import threads

CALLS = 2000
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 100)).astype("f4")
large = rng.normal(size=(600, 500)).astype("f4")  # shared among threads
t, w, b = np.arange(64) % 100, rng.normal(size=(100, 30)).astype("f4"), np.zeros(30, "f4")
wide = rng.normal(size=(500, 200)).astype("f4")  # large enough for the threads of the BLAS
product = large.astype(float) @ wide
exact = np.exp(x.astype(float)); exact /= exact.sum(axis=1, keepdims=True)
loss = -np.log(exact[np.arange(64), t]).mean()
sums = np.exp(large.astype(float)); sums /= sums.sum(axis=1, keepdims=True)

def near(a, b):
    return np.allclose(a, b, rtol=1e-4, atol=1e-6)

def one(number, out):
    kind = number % 7
    if kind == 0:
        return near(K.softmax(x, out=out), exact)
    if kind == 1:
        return near(K.softmax_cross_entropy_value_and_grad(x, t, out=out)[0], loss)
    if kind == 2:
        if number % 10 == 2:
            return np.allclose(K.affine(large, wide), product, rtol=1e-3, atol=1e-3)
        return near(K.affine(x, w, b), x.astype(float) @ w)
    if kind == 3:
        return near(K.relu(x, out=out), np.maximum(x, 0))
    if kind == 4:
        return near(K.softmax(large), sums) if number % 10 == 4 else near(K.sigmoid(x), 1 / (1 + np.exp(-x)))
    if kind == 5:
        try:
            K.softmax_cross_entropy(x, t + 100)
        except ValueError:
            return True
        return False
    dx, dw, db = K.affine_backward(np.ones((64, 30), "f4"), x, w)
    return near(dw, np.repeat(x.sum(axis=0, dtype=float)[:, None], 30, axis=1))

def work(seed):
    name = ("numpy", "numba")[seed % 2]
    out = np.empty_like(x)
    with backends.use(name):
        good = [one(number + seed, out) and str(backends.current()) == name for number in range(CALLS)]
    return sum(good)
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SCRIPT + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("layer", ["omp", "tbb", "workqueue"])
def test_sixteen_threads_with_a_backend_each(layer: str) -> None:
    code = """
with ThreadPoolExecutor(16) as pool:
    done = list(pool.map(work, range(16)))
print(done == [CALLS] * 16, backends.current(), threads.blas_threads() in (None, min(3, len(os.sched_getaffinity(0)))))
"""
    result = python(
        code,
        NUMBA_THREADING_LAYER=layer,
        PLUGRAD_NUM_THREADS="3",
        OPENBLAS_NUM_THREADS="3",
        PLUGRAD_BACKEND="numpy",
    )
    assert result.split() == ["True", "numpy", "True"]


@pytest.mark.skipif(find_spec("joblib") is None, reason="joblib is not installed")
@pytest.mark.parametrize("kind", ["threading", "loky"])
def test_inside_joblib(kind: str) -> None:
    code = f"""
if __name__ == "__main__":
    from joblib import Parallel, delayed
    CALLS = 300
    done = Parallel(n_jobs=4, backend={kind!r})(delayed(work)(seed) for seed in range(8))
    print(done == [CALLS] * 8 if {kind!r} == "threading" else all(n in (300, 2000) for n in done))
"""
    assert python(code).split()[-1] == "True"


def test_tasks_do_not_see_each_others_selection() -> None:
    code = """
async def task(seed):
    name = ("numpy", "numba")[seed % 2]
    with backends.use(name):
        for number in range(50):
            await asyncio.sleep(0)
            if str(backends.current()) != name or not near(K.softmax(x), exact):
                return False
    return str(backends.current()) == "numpy"

async def main():
    return all(await asyncio.gather(*(task(seed) for seed in range(40))))

print(asyncio.run(main()))
"""
    assert python(code, PLUGRAD_BACKEND="numpy").split() == ["True"]
