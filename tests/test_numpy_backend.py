"""Guarantees of the numpy backend alone: memory, threads, blocks."""

import os
import subprocess
import sys
import threading
import tracemalloc
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels, kernels as K
from plugrad.backends.cpu import blocks
from plugrad.backends.cpu.blocks import with_errors
from plugrad.backends.numpy import pool
from plugrad.backends.workspace import Workspace
from plugrad.kernels import optim
from plugrad.tests.conformance.subject import DTYPES, as_tuple, epsilon, loss_dtype
from plugrad.tests.processes import PATIENCE
from plugrad.tests.records import RECORDS, Record

FLOAT32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with backends.use("numpy"):
        yield


def sample(kernel: Record, rows: int, classes: int, dtype: np.dtype[Any] = FLOAT32) -> list[Any]:
    inputs = kernel.sample(np.random.default_rng(0), rows, classes, dtype)
    return [inputs[name] for name in kernel.arguments]


@pytest.mark.parametrize("lead", [(1,), (7,), (10, 3), (3, 5, 7), (2, 1000), (4, 3, 100), ()])
@pytest.mark.parametrize("width", [1, 3, 1000, 10**9])
def test_blocks_cover_every_element_once(lead: tuple[int, ...], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 64)
    seen = np.zeros(lead, int)
    for index in blocks.cut(lead, width):
        seen[index] += 1
        assert seen[index].size * width <= 64 or seen[index].size == 1
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", RECORDS.values(), ids=list(RECORDS))
def test_results_do_not_depend_on_the_blocks(
    kernel: Record, dtype: np.dtype[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for classes in (5, 60):
        inputs = sample(kernel, 500, classes, dtype)
        whole = as_tuple(kernel.function(*inputs, **kernel.given))
        monkeypatch.setattr(blocks, "BLOCK", 1000)
        pieces = as_tuple(kernel.function(*inputs, **kernel.given))
        monkeypatch.undo()
        for a, b in zip(whole, pieces, strict=True):
            allowed = epsilon(dtype) + 16 * epsilon(loss_dtype(dtype))
            np.testing.assert_allclose(
                a.astype(float), b.astype(float), rtol=0, atol=allowed * np.abs(a.astype(float)).max()
            )


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(kernel, id=name, marks=[pytest.mark.slow] if name.startswith("linear") else [])
        for name, kernel in RECORDS.items()
    ],
)
def test_with_out_no_allocation_grows_with_the_batch(kernel: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.threads, "count", lambda: 1)  # with two threads the peak would depend on timing
    if "t" not in kernel.arguments or "pos_weight" in kernel.options:  # class indices are read half a million at a time
        monkeypatch.setattr(blocks, "BLOCK", blocks.BLOCK // 8)

    cut, counts = blocks.cut, [0]

    def counting(lead: tuple[int, ...], width: float) -> list[blocks.Index]:
        indices = cut(lead, width)
        counts.append(len(indices))
        return indices

    monkeypatch.setattr(blocks, "cut", counting)

    def peak(rows: int, classes: int, strided: bool) -> int:
        inputs = sample(kernel, rows, classes)

        def array(value: Any) -> Any:
            if not strided or not value.ndim:
                return np.empty(value.shape, value.dtype)
            return np.empty(tuple(2 * n for n in value.shape), value.dtype)[tuple([slice(None, None, 2)] * value.ndim)]

        options: dict[str, Any] = {"max_workspace": Workspace("1MB")} if "max_workspace" in kernel.options else {}
        if "loss" not in kernel.results or len(kernel.results) > 1:
            out = tuple(array(value) for value in as_tuple(kernel.function(*inputs, **kernel.given)))
            options["out"] = out if len(out) > 1 else out[0]
        kernel.function(*inputs, **kernel.given, **options)  # the first call allocates the buffers that are kept
        tracemalloc.start()
        kernel.function(*inputs, **kernel.given, **options)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for classes in (10, 300):
        few, many = 6 * blocks.BLOCK // classes, 15 * blocks.BLOCK // classes
        for strided in (False, True):
            small, large = peak(few, classes, strided), peak(many, classes, strided)
            grown = 4 * (many - few) * classes
            # A few objects for each block of 2 MiB, or, where only labels count, of half a million rows. Kernels of
            # much work have smaller blocks.
            allowed = max(grown / 100, 300 * counts[-1])
            assert large - small < allowed < grown / 10, (classes, strided, small, large, grown)


THREADED = """
import sys, hashlib, numpy as np
from plugrad import backends, kernels as K
from plugrad.tests.records import RECORDS
for name, kernel in RECORDS.items():
    if "w" in kernel.arguments:
        continue
    for rows, classes in ((400_000, 7), (3_000, 1_000), (40, 70_001)):
        inputs = kernel.sample(np.random.default_rng(0), rows, classes, np.dtype(np.float32))
        results = kernel.function(*[inputs[a] for a in kernel.arguments], **kernel.given)
        for result in results if isinstance(results, tuple) else (results,):
            print(name, rows, hashlib.sha256(np.asarray(result).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bits_for_any_number_of_threads() -> None:
    printed = []
    for number in ("1", "2", "4"):
        environment = {**os.environ, "PLUGRAD_BACKEND": "numpy", "PLUGRAD_NUM_THREADS": number}
        printed.append(
            subprocess.run(
                [sys.executable, "-c", THREADED], env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert printed[0].count("\n") > 40
    assert printed[0] == printed[1] == printed[2]


def test_every_block_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Python without the GIL, two threads that share an iterator may get the same element."""
    monkeypatch.setattr(pool.threads, "count", lambda: 8)
    monkeypatch.setattr(blocks, "BLOCK", 1)
    for _ in range(20):
        computed = np.zeros(20_000, np.float32)
        pool.run_blocks(lambda scratch, block: np.add(block, 1, out=block), [computed], computed.shape, 1)
        assert np.array_equal(np.unique(computed), [1])


def test_many_threads_at_once() -> None:
    kernel = RECORDS["softmax_cross_entropy_value_and_grad"]
    inputs = sample(kernel, 2_000, 600)
    expected = kernel.function(*inputs)
    wrong: list[int] = []

    def work(number: int) -> None:
        with backends.use("numpy"):
            for _ in range(5):
                got = kernel.function(*inputs)
                if got[0] != expected[0] or not np.array_equal(got[1], expected[1]):
                    wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


FORKED = """
import os, warnings, numpy as np
from plugrad import kernels as K
warnings.simplefilter("ignore", DeprecationWarning)  # a process with threads forks
x = np.random.default_rng(0).normal(size=(3_000, 1_000)).astype("f4")
before = K.softmax(x)
child = os.fork()
if not child:
    os._exit(0 if np.array_equal(K.softmax(x), before) else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), np.array_equal(K.softmax(x), before))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_can_compute() -> None:
    environment = {**os.environ, "PLUGRAD_BACKEND": "numpy", "PLUGRAD_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


@pytest.mark.parametrize("broken", [0, 1, 5])
def test_an_error_in_one_block_stops_the_others_and_is_raised(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 10)
    monkeypatch.setattr(pool.threads, "count", lambda: 3)
    started, stopped = [], threading.Event()

    class Turns(deque[Any]):
        def clear(self) -> None:
            super().clear()
            stopped.set()

    def task(scratch: Any, block: Any) -> int:
        started.append(int(block[0]))
        if block[0] == 10 * broken:
            raise KeyboardInterrupt
        if block[0] > 10 * broken:
            assert stopped.wait(PATIENCE)
        return int(block[0])

    monkeypatch.setattr(pool, "deque", Turns)
    with pytest.raises(KeyboardInterrupt):
        pool.run_blocks(task, (np.arange(1000),), (1000,), 1)
    assert len(started) <= broken + 3
    assert pool.run_blocks(lambda scratch, block: int(block[0]), (np.arange(100),), (100,), 1) == list(
        range(0, 100, 10)
    )


def test_the_caller_computes_if_no_thread_can_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    threads = ThreadPoolExecutor(3)
    submitted = []

    def submit(work: Any) -> Any:
        submitted.append(work)
        if len(submitted) > 1:
            raise RuntimeError("can't start new thread")
        return ThreadPoolExecutor.submit(threads, work)

    monkeypatch.setattr(pool, "_pool", lambda: types.SimpleNamespace(submit=submit))
    monkeypatch.setattr(blocks, "BLOCK", 10)
    monkeypatch.setattr(pool.threads, "count", lambda: 4)
    for _ in range(20):
        submitted.clear()
        assert pool.run_blocks(lambda scratch, block: int(block[0]), (np.arange(500),), (500,), 1) == list(
            range(0, 500, 10)
        )


def test_floating_point_errors_stay_silent_even_where_the_user_wants_them() -> None:
    bad = np.array([[np.nan, np.inf, -np.inf, 1e38], [1e4, -1e4, 0, 1e-45]], np.float32)
    with np.errstate(all="raise"):
        for name, kernel in RECORDS.items():
            inputs = sample(kernel, 2, 4)
            for position, x in enumerate(inputs):
                argument = kernel.arguments[position]
                if isinstance(x, np.ndarray) and x.shape == bad.shape and argument != "t":
                    values = np.clip(abs(bad), 0, 1) if argument == "p" else bad  # probabilities, or NaN
                    kernel.function(*inputs[:position], values, *inputs[position + 1 :], **kernel.given)
            assert np.geterr()["over"] == "raise", name


@pytest.mark.parametrize("shape", [(8, 8), (5, 8), (8, 5)])
def test_a_small_loss_with_classes_along_the_first_axis(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=shape), rng.integers(0, shape[0], shape[1])
    loss, dx = kernels.softmax_cross_entropy_value_and_grad(x, t, axis=0)
    expected, gradient = kernels.softmax_cross_entropy_value_and_grad(x.T, t)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(dx, gradient.T, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_with_differences_of_infinities_stay_silent(dtype: np.dtype[Any]) -> None:
    x = np.array([[np.inf, -np.inf, np.inf], [-np.inf, np.inf, -np.inf]], dtype)
    w = np.ones((3, 3), dtype)
    with np.errstate(all="raise"):
        assert np.isnan(kernels.affine(x, w)).all()
        dx, dw, db = kernels.affine_backward(x, x, w)
    assert np.isnan(dx).all()
    assert np.isinf(dw).all()
    assert np.isnan(db).all()


def test_affine_in_place_of_strided_weights_over_several_blocks() -> None:
    rng = np.random.default_rng(0)
    n = 1_000  # more rows than one block has of this width
    x, plain = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    expected = x @ plain
    w = np.empty((n, 2 * n))[:, ::2]
    w[...] = plain
    np.testing.assert_allclose(kernels.affine(x, w, out=w), expected, atol=1e-10)
    w[...] = plain
    dx, _, _ = kernels.affine_backward(x, x, w, needs="dx", out=(w, None, None))
    np.testing.assert_allclose(dx, x @ plain.T, atol=1e-10)


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_negative_labels_never_wrap(dtype: Any) -> None:
    classes = 2 ** (8 * np.dtype(dtype).itemsize) + 10
    p = np.full((2, classes), 1 / classes)
    with backends.use("numpy"):
        for bad in (-1, np.iinfo(dtype).min):
            for kernel in (K.cross_entropy, K.softmax_cross_entropy_value_and_grad):
                with pytest.raises(ValueError, match=rf"got {bad} at row 1"):
                    kernel(p, np.array([0, bad], dtype))


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize("t", [np.array([1] * 64), np.eye(2, dtype=np.int8)[[1] * 64]], ids=["indices", "per class"])
def test_the_gradient_of_a_mean_does_not_overflow_at_subnormal_probabilities(t: Any, smoothing: float) -> None:
    """1 / p is larger than the largest number of float32, and a 64th of it is not."""
    p = np.array([[1.0, 1e-39]] * 64, np.float32)
    exact = K.cross_entropy_backward(1.0, p.astype(np.float64), t, label_smoothing=smoothing)
    with backends.use("numpy"):
        gradient = K.cross_entropy_backward(1.0, p, t, label_smoothing=smoothing)
        strided = np.empty((2, 64), np.float32).T
        K.cross_entropy_backward(1.0, p, t, label_smoothing=smoothing, out=strided)
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)
    np.testing.assert_array_equal(strided, gradient)


HUGE = np.full((2, 2), 3e38, np.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: K.affine(HUGE, HUGE, HUGE[0]),
        lambda: K.affine_backward(HUGE, HUGE, HUGE),
        lambda: K.affine_backward(HUGE, HUGE * np.nan, HUGE),
        lambda: K.softmax_cross_entropy_value_and_grad(HUGE * [1, 0], [1, 1], reduction="sum"),
        lambda: K.softmax_cross_entropy(HUGE * np.float32([1, 0]), [1, 1], reduction="sum"),
        lambda: K.cross_entropy(np.zeros((2, 2), np.float32), [1, 1], reduction="sum"),
        lambda: K.tanh_backward(HUGE, HUGE),
        lambda: optim.SGD([HUGE.copy()], lr=10.0).step([HUGE]),
        lambda: optim.Adam([HUGE.copy()], lr=10.0).step([HUGE]),
    ],
)
def test_numbers_that_overflow_raise_nothing(call: Callable[[], Any]) -> None:
    with backends.use("numpy"), np.errstate(all="raise"):
        call()


def test_code_that_interrupts_a_kernel_runs_in_its_own_context() -> None:
    seen = []

    @with_errors(all="ignore")
    def computing() -> None:
        seen.append((backends.current().name, np.geterr()["over"]))
        np.seterr(over="raise")

    backends.set_default("numpy")
    backends.register("other", types.SimpleNamespace())
    with backends.use("other"), np.errstate(over="warn"):
        computing()
        computing()
        assert np.geterr()["over"] == "warn"
    assert seen == [("other", "ignore")] * 2
