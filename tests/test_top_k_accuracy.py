"""The share of rows whose label is among the largest logits: worked examples, and what a user meets first."""

import types
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
    x = [[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4], [0.0, np.nan, 1.0]]
    t = [1, 2, 1, 2]
    assert [float(K.top_k_accuracy(x, t, k)) for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    assert K.top_k_accuracy(x, [1, 2, 1, -1], 3, ignore_index=-1) == 1
    assert K.top_k_accuracy([3.0, 1.0], 0) == 1
    assert K.top_k_accuracy(np.transpose(x), t, 2, axis=0) == 0.5


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8])
def test_it_is_float64_for_any_dtype(dtype: Any) -> None:
    accuracy = K.top_k_accuracy(np.eye(3).astype(dtype), [0, 1, 1])
    assert type(accuracy) is np.float64
    assert accuracy == 2 / 3
    out = np.zeros(())
    assert K.top_k_accuracy(np.eye(3).astype(dtype), [0, 1, 1], out=out) is out
    assert out == 2 / 3


def test_a_million_rows_are_counted_exactly() -> None:
    x = np.zeros((1_000_000, 2), np.float16)
    t = np.zeros(len(x), np.uint8)
    t[::7] = 1
    assert K.top_k_accuracy(x, t) == np.count_nonzero(t == 0) / 1_000_000


def test_a_single_class_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    assert K.top_k_accuracy([[1.0], [2.0]], [0, 0]) == 1
    assert not caplog.records


def test_a_backend_without_it_is_named() -> None:
    backends.register("lacks_accuracy", types.SimpleNamespace(relu=lambda x, out: None), replace=True)
    with backends.use("lacks_accuracy"), pytest.raises(NotImplementedError, match="top_k_accuracy"):
        K.top_k_accuracy([[1.0, 0.0]], [0])
