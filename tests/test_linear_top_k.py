"""The largest logits of a last layer on the CPU: worked examples, memory, and what a user meets first."""

import tracemalloc
import types
from importlib import import_module
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K


@pytest.fixture(autouse=True, params=["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Any:
    """The backends that compute on the host."""
    with backends.use(request.param):
        yield request.param


def test_a_worked_example() -> None:
    w = [[1.0, 0.0, 3.0, 3.0], [0.0, 1.0, 0.0, 0.0]]
    values, indices = K.linear_top_k([[1.0, 2.0], [0.0, 5.0]], w, None, 3)
    assert values.tolist() == [[3, 3, 2], [5, 0, 0]]
    assert indices.tolist() == [[2, 3, 1], [1, 0, 2]]
    values, indices = K.linear_top_k([1.0, 2.0], w, [9.0, 0.0, 0.0, np.nan])
    assert (values.shape, indices.tolist()) == ((1,), [3])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_results_have_the_dtype_of_the_arguments_and_int64(dtype: Any) -> None:
    values, indices = K.linear_top_k(np.ones((2, 1), dtype), np.ones((1, 3), dtype), None, 2)
    assert (values.dtype, indices.dtype) == (dtype, np.int64)


@pytest.mark.parametrize("held", ["many equal logits", "NaN", "NaN in one row"])
def test_rows_that_are_longer_than_a_piece(held: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("plugrad.backends.numpy.largest")
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(module, "CANDIDATES", 100)
    logits = np.random.default_rng(0).integers(0, 5, (3, 5000)).astype(np.float32)
    if held == "NaN":
        logits[:, 5:4000] = np.nan
    elif held == "NaN in one row":
        logits[1, 10:] = np.nan
    for row in logits:
        order = np.lexsort((-row, ~np.isnan(row)))[:9]
        values, indices = K.linear_top_k(np.ones((1, 1), np.float32), row[np.newaxis], None, 9)
        assert indices.tolist() == [order.tolist()]
        np.testing.assert_array_equal(values[0], row[order])


@pytest.mark.parametrize(
    ("rows", "classes", "k"), [(3000, 2000, 5), (40_000, 20, 20), (20, 50_000, 5), (50, 9000, 9000)]
)
def test_memory_stays_within_the_bound(rows: int, classes: int, k: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, 8)).astype(np.float32), rng.normal(size=(8, classes)).astype(np.float32)
    out = np.empty((rows, k), np.float32), np.empty((rows, k), np.int64)[::-1]
    for measured in (False, True):
        if measured:
            tracemalloc.start()
        K.linear_top_k(x, w, None, k, max_workspace="2MB", out=out)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < (2 + 20) * 10**6, f"{most} bytes"  # numpy also uses blocks of 2 MiB


def test_a_backend_without_it_is_named() -> None:
    backends.register("lacks_largest", types.SimpleNamespace(relu=lambda x, out: None), replace=True)
    with backends.use("lacks_largest"), pytest.raises(NotImplementedError, match="linear_top_k"):
        K.linear_top_k([[1.0, 0.0]], [[1.0], [1.0]], None)
