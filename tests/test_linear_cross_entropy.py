"""The layer with its loss on the CPU: its memory, the BLAS, and workspaces.

The conformance suite checks its results.
"""

import copy
import itertools
import math
import pickle
import threading
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends.chunks import Way, planned
from plugrad.backends.cpu import blas
from plugrad.backends.workspace import bytes_of
from plugrad.tests.records.linear_cross_entropy import value_and_grad as exactly

pytestmark = pytest.mark.slow

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

numba_too = pytest.mark.parametrize("backend", ["numpy", "numba"])


def arguments(rows: int, inputs: int, classes: int, dtype: Any = np.float32) -> list[Any]:
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((rows, inputs), (inputs, classes), (classes,)))
    return [x, w, b, rng.integers(0, classes, rows)]


def close(got: tuple[Any, ...], expected: tuple[Any, ...], tolerance: float = 1e-5) -> None:
    for one, true in zip(got, expected, strict=True):
        size = np.abs(true).max()
        np.testing.assert_allclose(np.asarray(one, np.float64), true, rtol=0, atol=tolerance * size)


@numba_too
@pytest.mark.parametrize("lead", [(4,), (2, 3), (0, 3)])
def test_a_layer_without_inputs_adds_nothing(backend: str, lead: tuple[int, ...]) -> None:
    """A random call once found an error of the oracle here."""
    x, w, b = np.ones((*lead, 0)), np.ones((0, 5)), np.arange(5.0)
    t = np.full(lead, 2)
    with backends.use(backend):
        assert (K.affine(x, w, b) == np.broadcast_to(b, (*lead, 5))).all()
        close(K.affine_backward(np.ones((*lead, 5)), x, w)[2:], (np.full(5, math.prod(lead)),))
        if math.prod(lead):
            got = K.linear_cross_entropy_value_and_grad(x, w, b, t)
            close((got[0], got[3]), exactly(x, w, b, t)[::3])
            assert (got[1].shape, got[2].shape) == (x.shape, w.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@numba_too
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", ["4MB", "9MB"])
def test_memory_stays_within_the_bound(backend: str, dtype: Any, size: str) -> None:
    given = arguments(2000, 64, 4000, dtype)
    with backends.use(backend):
        for way in (K.linear_cross_entropy, K.linear_cross_entropy_value_and_grad):
            way(*given, max_workspace=size)
            tracemalloc.start()
            results: Any = way(*given, max_workspace=size)
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            held = sum(r.nbytes for r in (results if isinstance(results, tuple) else (results,)))
            # Besides the bound: a product of 2 MiB to add in parts, blocks of 2 MiB of the losses, sums of classes.
            assert most - held < bytes_of("", size) + 12 * 2**20, most - held


@numba_too
def test_no_allocation_of_a_training_loop_grows(backend: str) -> None:
    workspace, peaks = K.Workspace("2MB"), []
    for rows in (9 * 999, 27 * 999):  # chunks of 999
        given = arguments(rows, 40, 500)
        out = (np.zeros((), np.float32), *(np.empty_like(array) for array in given[:3]))
        with backends.use(backend):
            K.linear_cross_entropy_value_and_grad(*given, max_workspace=workspace, out=out)
            tracemalloc.start()
            for _ in range(3):
                K.linear_cross_entropy_value_and_grad(*given, max_workspace=workspace, out=out)
            kept, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert kept < 20_000
        peaks.append(most)
    assert peaks[0] < 2 * 2**20, "more than one block of the losses"
    assert peaks[1] < peaks[0] + 20_000


@numba_too
def test_no_gradient_is_computed_for_the_loss(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with backends.use(backend):
        given = arguments(50, 6, 30)
        expected = K.linear_cross_entropy_value_and_grad(*given)[0]

        def refused(*_: Any) -> None:
            raise AssertionError("a gradient was computed")

        module = {"numpy": "linear_cross_entropy", "numba": "last_layer"}[backend]
        where = import_module(f"plugrad.backends.{backend}.{module}")
        kernels = where.CHUNK_KERNELS._replace(loss_and_gradient=refused, column_sums=refused)
        monkeypatch.setattr(where, "CHUNK_KERNELS", kernels)
        np.testing.assert_allclose(K.linear_cross_entropy(*given), expected, rtol=1e-6)
        found = K.linear_cross_entropy_value_and_grad(*given, needs=())
        assert found[1:] == (None, None, None)
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)
        with pytest.raises(AssertionError, match="a gradient was computed"):
            K.linear_cross_entropy_value_and_grad(*given)


@numba_too
def test_transposed_weights_are_not_copied(backend: str) -> None:
    x, w, b, t = arguments(200, 64, 3000)
    turned = np.ascontiguousarray(w.T).T  # (in, out) of an array (out, in)
    gradient = np.empty((3000, 64), np.float32)
    with backends.use(backend):
        expected = K.linear_cross_entropy_value_and_grad(x, w, b, t, max_workspace=100_000)  # which finds the BLAS
        tracemalloc.start()
        got = K.linear_cross_entropy_value_and_grad(
            x, turned, b, t, max_workspace=100_000, out=(None, None, gradient.T, None)
        )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert got[2].base is gradient
    close(got, expected)
    assert most < w.nbytes


def test_chunks_have_similar_sizes() -> None:
    plan = planned("k", 1000, 100, 400, 0, 8, [Way(0)], 1000, 400 * 333 + 448)
    assert plan.rows == 250  # four chunks, since three do not fit
    assert planned("k", 1000, 100, 400, 0, 8, [Way(0)], 90, 10**6).rows == 84  # 12 chunks, and not 11 and a small one
    assert planned("k", 1000, 100, 400, 0, 8, [Way(0, chunks=10), Way(8)], 1000, 10_000).way == 1
    with pytest.raises(ValueError, match="k: max_workspace: expected at least 848 bytes, for one row of 100 classes"):
        planned("k", 1000, 100, 400, 0, 8, [Way(0)], 1000, 847)
    assert planned("k", 1000, 100, 400, 0, 8, [Way(0)], 1000, 848).rows == 1


@pytest.mark.parametrize(
    ("most", "size", "times"),
    [
        (1024, 2000, 1),  # 25 chunks, and too few bytes for a fourth of dw in float64
        (1024, 34_000, 4),  # a fourth of it in half of the workspace: 4 parts
        (1024, 18_000, 4),  # the same, though it takes more than half
        (10, 2000, 100),  # too many chunks for float32: one class at a time
    ],
)
def test_how_often_the_logits_are_computed(most: int, size: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 100
    given, chunks = arguments(rows, 80, 100), import_module("plugrad.backends.cpu.linear_cross_entropy")
    seen: list[int] = []
    logits = chunks._HostChunks.logits

    def counted(self: Any, chunk: slice) -> Any:
        seen.append(chunk.stop - chunk.start)
        return logits(self, chunk)

    monkeypatch.setattr(chunks._HostChunks, "logits", counted)
    monkeypatch.setattr(chunks, "MOST_CHUNKS", 1)
    monkeypatch.setattr(chunks, "MANY_CHUNKS", most)
    with backends.use("numpy"):
        close(K.linear_cross_entropy_value_and_grad(*given, max_workspace=size), exactly(*given))
    assert sum(seen) == times * rows


# ---------------------------------------------------------------------------------------------------------------------
# BLAS
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("is_known", [True, False])
def test_products_are_added(dtype: Any, is_known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_known:
        assert blas._gemm(dtype) is not None, "NumPy's BLAS is not known here"
    else:
        monkeypatch.setattr(blas, "_gemm", lambda dtype: None)
        monkeypatch.setattr(blas, "PIECE", 40)
    rng = np.random.default_rng(1)
    layouts = (
        lambda shape: np.empty(shape, dtype),
        lambda shape: np.empty(shape[::-1], dtype).T,
        lambda shape: np.empty((shape[0], shape[1] + 3), dtype)[:, 1:-2],
        lambda shape: np.empty((shape[1], shape[0] + 3), dtype)[:, 1:-2].T,
    )
    for rows, depth, columns in ((3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1), (17, 9, 30), (3, 0, 5)):
        for ways in itertools.product(layouts, repeat=3):
            a, b, out = (
                way(s) for way, s in zip(ways, ((rows, depth), (depth, columns), (rows, columns)), strict=True)
            )
            for array in (a, b, out):
                array[...] = rng.normal(size=array.shape)
                assert blas.is_matrix(array, dtype)
            expected = out + a.astype(np.float64) @ b
            blas.gemm(a, b, out, accumulate=True)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
            blas.gemm(a, b, out, accumulate=False)
            np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_result_with_columns_side_by_side_is_computed_in_parts(
    accumulate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenBLAS keeps a copy of all columns that it is given."""
    widths, (place, name) = list[int](), (blas, "add_product") if accumulate else (np, "matmul")
    multiply = getattr(place, name)
    monkeypatch.setattr(place, name, lambda a, b, out: (widths.append(b.shape[1]), multiply(a, b, out)))
    monkeypatch.setattr(blas, "COLUMNS", 8)
    a, b = arguments(5, 4, 21)[:2]
    for out, expected in ((np.ones((21, 5), np.float32).T, [8, 8, 5]), (np.ones((5, 21), np.float32), [21])):
        widths.clear()
        blas.gemm(a, b, out, accumulate)
        assert widths == expected
        np.testing.assert_allclose(out, a.dot(b) + accumulate, rtol=1e-5, atol=1e-5)


@numba_too
@pytest.mark.parametrize("rows", [4, 300])
def test_a_transposed_gradient_of_weights_is_not_copied(backend: str, rows: int) -> None:
    x, w, _, _ = arguments(rows, 64, 3000)
    dy, gradient = np.full((rows, 3000), 0.5, np.float32), np.empty((3000, 64), np.float32)
    with backends.use(backend):
        expected = K.affine_backward(dy, x, w, needs=("dw",))[1]
        tracemalloc.start()
        dw = K.affine_backward(dy, x, w, needs=("dw",), out=(None, gradient.T, None))[1]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert dw.base is gradient
    assert most < w.nbytes / 2
    np.testing.assert_allclose(dw, expected, rtol=1e-4, atol=1e-5)


def test_arrays_that_a_blas_cannot_read() -> None:
    x = np.zeros((6, 8), np.float32)
    for other in (x[:, ::2], x[::-1], x[:, ::-1], np.broadcast_to(x[:1], (6, 8)), x.astype(np.float64)):
        assert not blas.is_matrix(other, FLOAT32)
    for one in (x, x.T, x[::2], x[:, 2:5], x[2:3, ::2][:, :1]):
        assert blas.is_matrix(one, FLOAT32)


@numba_too
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_weights_from_arrays_that_a_blas_cannot_read(backend: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, dy, w = (rng.normal(size=shape).astype(dtype) for shape in ((300, 160), (300, 70), (80, 70)))
    turned, constant = x[:, ::2], np.broadcast_to(dtype(1), dy.shape)
    with backends.use(backend):
        for rows, slopes in ((turned, dy), (x[:, 80:], dy[::-1]), (x[:, :80], constant), (x[:, 79::-1], dy[:, ::-1])):
            dw = K.affine_backward(slopes, rows, w, needs="dw")[1]
            np.testing.assert_allclose(
                dw, rows.astype(float).T @ slopes, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-11
            )


@numba_too
def test_ignored_rows_keep_the_bound(backend: str) -> None:
    x, w, b, t = arguments(4096, 512, 4)
    t[::2], x[0, 0] = -100, np.inf
    with backends.use(backend):
        for measured in (False, True):
            if measured:
                tracemalloc.start()
            K.linear_cross_entropy_value_and_grad(
                x, w, b, t, ignore_index=-100, needs="dw", max_workspace="1MB", out=np.empty_like(w)
            )
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 2 * 10**6


@numba_too
@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32, np.float64])
def test_labels_for_each_class_keep_the_bound(backend: str, dtype: Any) -> None:
    x, w, b, t = arguments(2000, 8, 2000)
    soft = np.asfortranarray(np.eye(2000)[t].astype(dtype))
    with backends.use(backend):
        for measured in (False, True):
            if measured:
                tracemalloc.start()
            K.linear_cross_entropy(x, w, b, soft, max_workspace="12MB")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < (12 + 9) * 10**6  # numpy also uses blocks of 2 MiB


@numba_too
def test_without_a_known_blas_the_results_are_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(300, 40, 600)
    monkeypatch.setattr(blas, "_gemm", lambda dtype: None)
    with backends.use(backend):
        close(K.linear_cross_entropy_value_and_grad(*given, max_workspace="200kB"), exactly(*given))


# ---------------------------------------------------------------------------------------------------------------------
# Workspaces
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (7, 7),
        (np.int32(7), 7),
        ("7", 7),
        ("64MB", 64_000_000),
        ("64 MB", 64_000_000),
        ("64mb", 64_000_000),
        (" 1GiB ", 2**30),
        ("1.5kB", 1500),
        ("2KiB", 2048),
        ("3B", 3),
        ("2T", 2 * 10**12),
    ],
)
def test_sizes(size: Any, count: int) -> None:
    assert bytes_of("size", size) == count
    assert K.Workspace(size).size == count


@pytest.mark.parametrize(
    ("size", "error"),
    [
        ("", ValueError),
        ("0." + "0" * 400 + "1", ValueError),
        ("MB", ValueError),
        ("-1", ValueError),
        ("1e6", ValueError),
        ("0.1B", ValueError),
        (0, ValueError),
        (-5, ValueError),
        (True, TypeError),
        (1e6, TypeError),
        (None, TypeError),
        (b"1MB", TypeError),
    ],
)
def test_invalid_sizes(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^Workspace: size: expected "):
        K.Workspace(size)
    with pytest.raises(error, match=r"^linear_cross_entropy: max_workspace: expected "):
        K.linear_cross_entropy(*arguments(2, 3, 4), max_workspace=size)


def test_another_thread_may_use_a_workspace_after_its_thread_has_ended() -> None:
    workspace, found = K.Workspace("1MB"), []

    def call() -> None:
        found.append(K.linear_cross_entropy(*arguments(5, 3, 4), max_workspace=workspace))

    for _ in range(2):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]


def test_a_workspace_in_use_by_another_thread_is_rejected() -> None:
    workspace, started, over = K.Workspace("1MB"), threading.Event(), threading.Event()

    def hold() -> None:
        K.linear_cross_entropy(*arguments(5, 3, 4), max_workspace=workspace)
        started.set()
        over.wait()

    thread = threading.Thread(target=hold, name="the first")
    thread.start()
    started.wait()
    out = np.full((5, 3), 7, np.float32)
    with pytest.raises(ValueError, match=r"max_workspace: expected a Workspace of this thread, .*'the first' uses"):
        K.linear_cross_entropy_value_and_grad(*arguments(5, 3, 4), needs="dx", max_workspace=workspace, out=out)
    assert (out == 7).all()
    over.set()
    thread.join()


def test_a_workspace_grows_within_its_bound_and_serves_several_backends() -> None:
    workspace = K.Workspace("1MB")
    for rows in (3, 300, 3000):
        given = arguments(rows, 8, 50)
        for backend in ("numpy", "numba"):
            with backends.use(backend):
                close(K.linear_cross_entropy_value_and_grad(*given, max_workspace=workspace), exactly(*given))
        assert sum(len(memory) for memory in workspace._memory.values()) <= workspace.size


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


@numba_too
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 3, 300])
def test_a_layer_without_inputs_gives_its_biases(backend: str, rows: int, dtype: Any) -> None:
    x, w, b, t = arguments(rows, 0, 4, dtype)
    with backends.use(backend):
        loss, dx, dw, db = K.linear_cross_entropy_value_and_grad(x, w, b, t)
        logits = np.tile(b, (rows, 1))
        expected, dz = K.softmax_cross_entropy_value_and_grad(logits.astype(np.float64), t)
    assert dx.shape == (rows, 0)
    assert dw.shape == (0, 4)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(db, dz.sum(axis=0), rtol=1e-2 if dtype == np.float16 else 1e-5, atol=1e-6)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_workspace_has_memory_of_its_own(duplicate: Callable[[K.Workspace], K.Workspace]) -> None:
    workspace = K.Workspace("1MB")
    arguments = np.ones((4, 3)), np.ones((3, 5)), None, np.array([0, 1, 2, 3])
    K.linear_cross_entropy(*arguments, max_workspace=workspace)
    other = duplicate(workspace)
    assert (other.size, other._memory, other._owner) == (workspace.size, {}, None)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            K.linear_cross_entropy(*arguments, max_workspace=other)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert not errors
