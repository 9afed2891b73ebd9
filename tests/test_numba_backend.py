"""What only the numba backend has: its functions of numbers, its threads, and the code it keeps on disk."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends
from plugrad import kernels as K
from plugrad.backends.numba import team, vector
from plugrad.backends.numba.compiling import inlined

Array = Any
FLOATS = (np.float32, np.float64)


def over_array(function: Any) -> Callable[..., None]:
    """A function of numbers, compiled for every element of arrays; the last one is for the results."""

    @inlined()
    def one(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    return one  # type: ignore[no-any-return]


def values(function: Any, x: Array) -> Array:
    y = np.empty_like(x)
    over_array(function)(x, y)
    return y


def worst_ulp(got: Array, exact: Array) -> float:
    """The largest error in units in the last place of the exact value."""
    ulp = np.spacing(np.abs(exact).astype(got.dtype)).astype(np.longdouble)
    return float(np.max(np.abs(got.astype(np.longdouble) - exact) / ulp))


def spread_over_exponents(dtype: Any, count: int = 300_000) -> Array:
    """Positive numbers of every exponent."""
    of = np.finfo(dtype)
    rng = np.random.default_rng(0)
    return np.ldexp(1 + rng.random(count), rng.integers(of.minexp, of.maxexp - 1, count)).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_exponential(dtype: Any) -> None:
    low, high = (-104, 88) if dtype == np.float32 else (-745, 709)
    x = np.linspace(low, high, 400_001).astype(dtype)
    assert worst_ulp(values(vector.exp, x), np.exp(x.astype(np.longdouble))) < 1
    x = -spread_over_exponents(dtype)
    x = x[x > low]
    assert worst_ulp(values(vector.exp, x), np.exp(x.astype(np.longdouble))) < 1
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e4, -1e4], dtype)
    np.testing.assert_array_equal(values(vector.exp, special), [np.nan, np.inf, 0, 1, 1, np.inf, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_scaled_exponential(dtype: Any) -> None:
    scale = np.longdouble(2) ** (64 if dtype == np.float32 else 512)
    x = -np.linspace(0, 103 if dtype == np.float32 else 740, 400_001).astype(dtype)
    assert worst_ulp(values(vector.scaled_exp, x), np.exp(x.astype(np.longdouble)) * scale) < 1
    assert np.isnan(values(vector.scaled_exp, np.array([np.nan], dtype)))[0]
    least = values(vector.scaled_exp, np.array([-np.inf, -1e4], dtype))
    assert (least.astype(np.longdouble) / scale < np.longdouble(np.finfo(dtype).smallest_subnormal) / 4).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_logarithm(dtype: Any) -> None:
    x = np.concatenate([spread_over_exponents(dtype), 1 + np.linspace(-0.5, 0.5, 100_001).astype(dtype)])
    exact = np.log(x.astype(np.longdouble))
    assert worst_ulp(values(vector.log, x)[exact != 0], exact[exact != 0]) < 1.2
    exact = np.log1p(x.astype(np.longdouble))
    assert worst_ulp(values(vector.log1p, x), exact) < 2
    smallest = np.finfo(dtype).smallest_subnormal
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, -1, 1, smallest], dtype)
    expected = [np.nan, np.inf, np.nan, -np.inf, -np.inf, np.nan, 0, np.log(np.longdouble(smallest))]
    np.testing.assert_allclose(values(vector.log, special), np.array(expected, dtype), rtol=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_maximum_orders_all_numbers(dtype: Any) -> None:
    @inlined()
    def largest(x: Array) -> Any:
        return vector.largest(x)

    numbers = np.array([-np.inf, -1e30, -1, -1e-40, -0.0, 0.0, 1e-40, 1, 1e30, np.inf], dtype)
    for count in range(1, len(numbers) + 1):
        for seed in range(5):
            x = np.random.default_rng(seed).permutation(numbers[:count])
            assert largest(x) == numbers[:count].max()
    assert np.isnan(largest(np.array([1, np.nan, np.inf], dtype)))


@pytest.mark.parametrize(("dtype", "integer"), [(np.float16, np.int16), (ml_dtypes.bfloat16, np.uint16)])
def test_16_bit_numbers(dtype: Any, integer: Any) -> None:
    @inlined()
    def widened(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = vector.widen(x[i])

    @inlined()
    def narrowed(x: Array, y: Array) -> None:
        for i in range(x.size):
            y[i] = vector.narrow(x[i], y[i])

    every = np.arange(2**16, dtype=np.uint16)
    y = np.empty(every.size, np.float32)
    widened(every.view(integer), y)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, every.view(dtype).astype(np.float32))
        x = np.random.default_rng(0).integers(0, 2**32, 500_000, np.uint32).view(np.float32)
        halfway = (y[:-1].astype(np.float64) + y[1:]) / 2
        x = np.concatenate([x, halfway[np.isfinite(halfway)].astype(np.float32)])
    got = np.empty(x.size, integer)
    narrowed(x, got)
    with np.errstate(all="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(got.view(dtype).astype(np.float32), expected)


def test_many_threads_call_at_once() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 500)).astype(np.float32)
    t = rng.integers(0, 500, 600)

    def work(seed: int) -> bool:
        with backends.use("numba"):
            mine = x + np.float32(seed)  # softmax does not notice
            y = K.softmax(mine)
            _, dx = K.softmax_cross_entropy_value_and_grad(mine, t, reduction="sum")
        return bool(np.allclose(y, exact, atol=1e-5) and np.allclose(dx, exact - np.eye(500)[t], atol=1e-5))

    e = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    exact = e / e.sum(axis=1, keepdims=True)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(64)))


def test_an_error_in_a_piece_reaches_the_caller() -> None:
    def fails(start: int, stop: int) -> None:
        if start:
            raise ValueError("in a piece")

    with pytest.raises(ValueError, match="in a piece"):
        team.run(fails, 64, team.WORTH_SHARING)
    done: list[int] = []
    team.run(lambda start, stop: done.extend(range(start, stop)), 64, team.WORTH_SHARING)
    assert sorted(done) == list(range(64))


SCRIPT = """
import os, sys
import numpy as np
from plugrad import kernels as K, backends
backends.set_default("numba")
x = np.random.default_rng(0).normal(size=(600, 500)).astype(np.float32)
"""


def python(code: str, **environment: str) -> str:
    """What a process prints that runs `code` after the script above."""
    told = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + code], env=told, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_forked_processes_have_threads_of_their_own() -> None:
    fork = """
pid = os.fork()
if pid == 0:
    os._exit(0 if abs(K.softmax(x).sum() - 600) < 0.1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), abs(K.softmax(x).sum() - 600) < 0.1)
"""
    assert python(fork).strip().endswith("0 True")
    assert python("K.softmax(x)\n" + fork).strip().endswith("0 True")


def test_one_thread_starts_no_others() -> None:
    count = "import threading; K.softmax(x); print(threading.active_count())"
    assert python(count, PLUGRAD_NUM_THREADS="1").strip() == "1"
    assert python(count, PLUGRAD_NUM_THREADS="3").strip() == "3"


def test_compiled_code_is_kept_and_anything_wrong_with_it_costs_only_time(tmp_path: Path) -> None:
    call = "print(abs(K.relu(x).sum() - np.maximum(x, 0).sum()) < 1)"
    folder = {"NUMBA_CACHE_DIR": str(tmp_path)}
    first = python(call, **folder)
    assert "True" in first
    assert "compiling kernels" in first
    assert python(call, **folder).strip() == "True"  # without a word of compiling
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert kept
    for path in kept:
        path.write_bytes(b"not what it was")
    again = python(call, **folder)
    assert "True" in again
    assert again.count("RuntimeWarning") == 1


def test_where_nothing_can_be_kept_it_compiles_each_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    told = python("print(K.relu(x).min() == 0)", NUMBA_CACHE_DIR=str(blocked / "cache"), HOME=str(blocked))
    assert "True" in told


def test_numba_is_imported_by_the_first_call_only() -> None:
    code = "print('numba' in sys.modules, backends.available()['numba']); K.relu(x); print('numba' in sys.modules)"
    assert python(code).split()[:3] == ["False", "True", "True"]


def test_without_numba_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    room = backends.get("numba").room
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    assert "pip install 'plugrad[numba]'" in room.probe()
    monkeypatch.delattr(room, "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "plugrad.backends.numba.kernels", None)
    with pytest.raises(backends.BackendUnavailableError, match="numba fails to import"):
        room.__getattr__("relu")
    with pytest.raises(AttributeError):
        getattr(room, "no_kernel")  # noqa: B009
