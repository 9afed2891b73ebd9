"""The losses: every combination of options, and the cases in which other libraries go wrong."""

import itertools
from collections.abc import Iterator
from typing import Any

import mpmath
import numpy as np
import pytest

from plugrad import backends
from plugrad import kernels as K
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.comparison import DTYPES, check
from plugrad.tests.oracles import ORACLES

FLOAT32 = np.dtype(np.float32)
LOSSES = [pytest.param(k, id=n) for n, k in KERNELS.items() if "reduction" in k.options]
NAN, INF = np.nan, np.inf


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with backends.use("numpy"):
        yield


def call(kernel: Kernel, rng: np.random.Generator, dtype: np.dtype[Any], axis: int, kind: str, reduction: str) -> Any:
    """Arguments of a loss of 3-dimensional arrays."""
    shape = [4, 3, 5]
    classes = shape[axis]
    rest = [n for i, n in enumerate(shape) if i != axis]
    rows = kernel.sample(rng, int(np.prod(rest)), classes, dtype)
    name = kernel.arguments[-2]
    x = np.ascontiguousarray(np.moveaxis(rows[name].reshape(*rest, classes), -1, axis))
    if kind == "indices":
        t = rng.integers(0, classes, rest).astype(rng.choice([np.int8, np.uint16, np.int64]))
    elif kind == "one-hot":
        t = np.moveaxis(np.eye(classes, dtype=np.int32)[rng.integers(0, classes, rest)], -1, axis)
    else:
        t = rng.random(shape).astype(rng.choice([np.float16, np.float32, np.float64]))
    given = [x, t]
    if "dloss" in kernel.arguments:
        given.insert(0, rng.normal(size=rest).astype(np.float32) if reduction == "none" else 0.5)
    return given


@pytest.mark.parametrize("kind", ["indices", "one-hot", "soft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", LOSSES)
def test_every_combination_of_options(kernel: Kernel, dtype: np.dtype[Any], kind: str) -> None:
    rng = np.random.default_rng(0)
    for axis, weighted, ignored, smoothing, reduction in itertools.product(
        (0, 1, 2), (False, True), (False, True), (0.0, 0.1, 1.0), ("mean", "sum", "none")
    ):
        if ignored and kind != "indices":
            continue
        given = call(kernel, rng, dtype, axis, kind, reduction)
        options = {
            "axis": axis - 3,
            "weight": rng.random(given[-2].shape[axis]) if weighted else None,
            "ignore_index": 1 if ignored else None,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }
        expected = ORACLES[kernel.name](*given, **{**options, "axis": axis})
        check(kernel, kernel.function(*given, **options), expected, dtype, options)


def one_row_per_label(x: Any, t: Any, **options: Any) -> tuple[Any, Any]:
    return K.softmax_cross_entropy_value_and_grad(np.asarray(x, np.float32), t, reduction="none", **options)


# Confident rows


@pytest.mark.parametrize(
    "x",
    [[20.0, 0.0, 0.0], [30.7, 0.3, -1.9, 4.4], [1000.5, 980.25, 970.0], [85.2, 0.1, -3.3], [8.0, 0.0], [1e4, 1e4 - 60]],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_of_a_confident_row_keeps_its_relative_accuracy(x: list[float], dtype: Any) -> None:
    x = np.array([x], dtype)
    with mpmath.workdps(50):
        rest = sum(mpmath.exp(mpmath.mpf(float(v)) - mpmath.mpf(float(x[0, 0]))) for v in x[0, 1:])
        exact, slope = mpmath.log1p(rest), -rest / (1 + rest)
        loss, dx = K.softmax_cross_entropy_value_and_grad(x, [0])
        one_hot, _ = K.softmax_cross_entropy(x, np.eye(x.shape[1])[:1])
        for value, true in ((loss, exact), (one_hot, exact), (dx[0, 0], slope)):
            assert abs((mpmath.mpf(float(value)) - true) / true) < 8 * np.finfo(dtype).eps


def test_the_example_of_the_contract() -> None:
    loss, _ = K.softmax_cross_entropy(np.array([[20, 0, 0]], np.float32), [0])
    assert loss == pytest.approx(4.1223072e-09, rel=5e-7)
    assert K.log_softmax(np.array([20, 0, 0], np.float32))[0] == pytest.approx(-4.1223072e-09, rel=5e-7)


def test_confident_rows_in_large_batches_of_every_layout() -> None:
    rng = np.random.default_rng(0)
    for classes in (5, 60):
        x = rng.normal(size=(20_000, classes)).astype(np.float32)
        x[:, 2] += 40
        exact = np.log1p(np.exp(np.delete(x, 2, 1).astype(float) - x[:, 2:3].astype(float)).sum(1))
        for axis, logits in ((1, x), (0, np.ascontiguousarray(x.T))):
            loss, _ = K.softmax_cross_entropy(logits, np.full(20_000, 2), axis=axis, reduction="none")
            np.testing.assert_allclose(loss, exact, rtol=8 * np.finfo(np.float32).eps)


# NaN and infinities


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("labels", [[0, 1, 2], np.eye(3)], ids=["indices", "one-hot"])
def test_nan_and_infinity_poison_their_row_and_no_other(bad: float, labels: Any) -> None:
    for place in range(3):
        x = np.arange(9.0, dtype=np.float32).reshape(3, 3)
        x[1, place] = bad
        loss, dx = one_row_per_label(x, labels)
        probabilities = K.softmax(x)
        for result in (loss, dx, probabilities, K.log_softmax(x)):
            assert np.isnan(result[1]).all()
            assert np.isfinite(result[[0, 2]]).all()
        assert np.isnan(K.softmax_cross_entropy_value_and_grad(x, labels)[0])


def test_rows_of_minus_infinity() -> None:
    x = np.array([[-INF, -INF], [0.0, -INF]], np.float32)
    assert np.isnan(K.softmax(x)[0]).all()
    assert np.isnan(K.log_softmax(x)[0]).all()
    np.testing.assert_array_equal(K.softmax(x)[1], [1, 0])
    np.testing.assert_array_equal(K.log_softmax(x)[1], [0, -INF])
    loss, dx = one_row_per_label(x, [0, 0])
    np.testing.assert_array_equal(loss, [NAN, 0])
    np.testing.assert_array_equal(dx[1], [0, 0])
    loss, dx = one_row_per_label(x, [0, 1])
    np.testing.assert_array_equal(loss, [NAN, INF])
    np.testing.assert_array_equal(dx[1], [1, -1])


def test_a_label_of_zero_on_minus_infinity_adds_zero() -> None:
    x = np.array([[0.0, 0.0, -INF]], np.float32)
    loss, dx = one_row_per_label(x, [[0.5, 0.5, 0.0]])
    assert loss[0] == pytest.approx(np.log(2))
    np.testing.assert_array_equal(dx, [[0, 0, 0]])
    assert K.cross_entropy([[0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0]]) == pytest.approx(np.log(2))
    np.testing.assert_array_equal(K.cross_entropy_backward(1.0, [[0.5, 0.5, 0.0]], [[1, 0, 0]]), [[-2, 0, 0]])
    loss, _ = one_row_per_label(x, [2], weight=[1.0, 1.0, 0.0])
    assert loss[0] == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_rows_count_for_nothing_whatever_their_logits(bad: float, smoothing: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    t = np.array([0, -100, 2, -100])
    options = {"ignore_index": -100, "label_smoothing": smoothing}
    kept_loss, kept_dx = K.softmax_cross_entropy_value_and_grad(x[[0, 2]], t[[0, 2]], label_smoothing=smoothing)
    x[[1, 3]] = bad
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, **options)
    assert loss == kept_loss
    np.testing.assert_array_equal(dx[[0, 2]], kept_dx)
    np.testing.assert_array_equal(dx[[1, 3]], np.zeros((2, 3)))
    loss, y = K.softmax_cross_entropy(x, t, **options)
    assert loss == kept_loss
    dx = K.softmax_cross_entropy_backward(1.0, y, t, **options)
    np.testing.assert_array_equal(dx[[1, 3]], np.zeros((2, 3)))
    rows, _ = K.softmax_cross_entropy(x, t, reduction="none", **options)
    np.testing.assert_array_equal(rows[[1, 3]], [0, 0])
    dlosses = np.array([1, NAN, 1, INF], np.float32)
    dx = K.softmax_cross_entropy_backward(dlosses, y, t, reduction="none", **options)
    np.testing.assert_array_equal(dx[[1, 3]], np.zeros((2, 3)))
    p = np.abs(x)
    p[[0, 2]] = 0.3
    assert np.isfinite(K.cross_entropy(p, t, **options))
    np.testing.assert_array_equal(K.cross_entropy_backward(1.0, p, t, **options)[[1, 3]], np.zeros((2, 3)))


def test_an_out_that_overlaps_the_weights_is_refused() -> None:
    x, t = np.ones((4, 3), np.float32), [0, 1, 2, 0]
    out = np.ones((4, 3), np.float32)
    for call in (
        lambda: K.softmax_cross_entropy_value_and_grad(x, t, weight=out[0], out=out),
        lambda: K.softmax_cross_entropy(x, t, weight=out[0], out=out),
        lambda: K.softmax_cross_entropy_backward(1.0, x, t, weight=out[0], out=out),
        lambda: K.cross_entropy_backward(1.0, x, t, weight=out[0], out=out),
    ):
        with pytest.raises(ValueError, match="shares part of its memory with an argument"):
            call()


def test_the_loss_of_one_row_goes_back_as_it_came() -> None:
    x = np.array([1.0, 2.0])
    loss, y = K.softmax_cross_entropy(x, 0, reduction="none")
    for dloss in (loss, 2.0, np.array(2.0)):
        dx = K.softmax_cross_entropy_backward(dloss, y, 0, reduction="none")
        np.testing.assert_allclose(dx, float(dloss) * (y - [1, 0]))
        np.testing.assert_allclose(K.cross_entropy_backward(dloss, y, 0, reduction="none")[1], 0)


def test_an_infinite_upstream_gradient_does_not_reach_ignored_rows() -> None:
    p = np.full((2, 3), 1 / 3)
    for smoothing in (0.0, 0.1):
        options: dict[str, Any] = {"ignore_index": -1, "label_smoothing": smoothing, "reduction": "none"}
        dp = K.cross_entropy_backward([NAN, 1.0], p, [-1, 0], **options)
        np.testing.assert_array_equal(dp[0], [0, 0, 0])
        assert np.isfinite(dp).all()


def test_tiny_weights_do_not_overflow() -> None:
    x = np.ones((2, 3), np.float32)
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, [1, 1], weight=np.full(3, 1e-39, np.float32))
    assert loss == pytest.approx(np.log(3), rel=1e-5)
    np.testing.assert_allclose(dx, [[1 / 6, -1 / 3, 1 / 6]] * 2, rtol=1e-5)
    _, y = K.softmax_cross_entropy(x, [1, 1])
    dx = K.softmax_cross_entropy_backward(1.0, y, [1, 1], weight=np.full(3, 1e-39, np.float32))
    np.testing.assert_allclose(dx, [[1 / 6, -1 / 3, 1 / 6]] * 2, rtol=1e-5)
    K.softmax_cross_entropy(x, [1, 1], weight=[1e300] * 3)  # without a warning


# Means over nothing, and means that are hard to take


@pytest.mark.parametrize("case", ["no rows", "all ignored", "weight zero"])
def test_where_nothing_counts_loss_and_gradient_are_zero(case: str) -> None:
    x = np.full((0 if case == "no rows" else 2, 3), NAN, np.float32)
    t = np.zeros(len(x), int)
    options: dict[str, Any] = {
        "no rows": {},
        "all ignored": {"ignore_index": 0},
        "weight zero": {"weight": [0.0, 1.0, 1.0]},
    }[case]
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, **options)
    assert loss == 0
    np.testing.assert_array_equal(dx, np.zeros_like(x))
    loss, y = K.softmax_cross_entropy(x, t, **options)
    assert loss == 0
    np.testing.assert_array_equal(K.softmax_cross_entropy_backward(1.0, y, t, **options), np.zeros_like(x))
    assert K.cross_entropy(x, t, **options) == 0
    np.testing.assert_array_equal(K.cross_entropy_backward(1.0, x, t, **options), np.zeros_like(x))


def test_the_mean_of_300_000_rows_in_float16() -> None:
    x = np.zeros((300_000, 2), np.float16)
    x[:, 0] = 0.5
    loss, _ = K.softmax_cross_entropy_value_and_grad(x, np.zeros(300_000, int))
    assert loss.dtype == np.float32
    assert loss == pytest.approx(np.log1p(np.exp(-0.5)), rel=1e-6)
    total, _ = K.softmax_cross_entropy(x, np.zeros(300_000, int), reduction="sum")
    assert total == pytest.approx(300_000 * np.log1p(np.exp(-0.5)), rel=1e-6)
    w = np.ones((1, 2), np.float32)
    small = np.full((300_000, 2), 1e-3, np.float16)
    _, dw, db = K.affine_backward(small, np.ones((300_000, 1), np.float16), w.astype(np.float16))
    for gradient in (dw[0], db):
        np.testing.assert_allclose(gradient.astype(float), 300_000 * float(np.float16(1e-3)), rtol=2e-3)
    _, _, db = K.affine_backward(np.full((300_000, 2), 0.1, np.float32), np.ones((300_000, 1), np.float32), w)
    np.testing.assert_allclose(db, 300_000 * float(np.float32(0.1)), rtol=1e-6)


def test_index_and_one_hot_labels_agree() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 5))
    t = rng.integers(0, 5, 8)
    by_index = K.softmax_cross_entropy_value_and_grad(x, t, label_smoothing=0.1)
    one_hot = K.softmax_cross_entropy_value_and_grad(x, np.eye(5)[t], label_smoothing=0.1)
    for a, b in zip(by_index, one_hot, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_soft_labels_that_do_not_sum_to_one_get_the_true_gradient() -> None:
    x, t = np.array([[0.0, 0.0]]), np.array([[0.5, 1.5]])
    _, dx = K.softmax_cross_entropy_value_and_grad(x, t)
    np.testing.assert_allclose(dx, 0.5 * 2 - t)


def test_one_row_and_one_class() -> None:
    loss, dx = K.softmax_cross_entropy_value_and_grad(np.array([1.0, 2.0, 3.0]), 2)
    assert loss == pytest.approx(np.log(np.exp([-2.0, -1.0, 0.0]).sum()))
    assert dx.shape == (3,)
    loss, dx = K.softmax_cross_entropy_value_and_grad(np.array([[5.0], [NAN]]), [0, 0], reduction="none")
    np.testing.assert_array_equal(loss, [0, NAN])
    assert dx[0, 0] == 0


# Labels


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_labels_of_every_integer_dtype(dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=(40, 100))
    t = np.arange(40).astype(dtype)
    np.testing.assert_array_equal(K.softmax_cross_entropy(x, t)[1:], K.softmax_cross_entropy(x, t.astype(np.int64))[1:])
    assert K.softmax_cross_entropy(x, t)[0] == K.softmax_cross_entropy(x, t.astype(np.int64))[0]
    bad = t.copy()
    bad[7] = np.iinfo(dtype).max
    with pytest.raises(ValueError, match=rf"t: expected labels in \[0, 100\), got {np.iinfo(dtype).max} at row 7"):
        K.softmax_cross_entropy(x, bad)


def test_the_first_bad_label_is_named_wherever_it_is() -> None:
    x = np.zeros((3, 4, 2))
    t = np.zeros((3, 4), int)
    t[1, 2] = t[2, 0] = 9
    with pytest.raises(ValueError, match=r"got 9 at row \(1, 2\)"):
        K.softmax_cross_entropy_value_and_grad(x, t)
    t = np.zeros(600_000, np.int8)
    t[[550_000, 599_999]] = -3
    x = np.zeros((600_000, 2), np.float32)
    with pytest.raises(ValueError, match=r"got -3 at row 550000"):
        K.softmax_cross_entropy_value_and_grad(x, t, out=x)
    assert not x.any()
    with pytest.raises(ValueError, match=r"t: expected labels in \[0, 2\), got 2$"):
        K.softmax_cross_entropy([0.0, 0.0], 2)


def test_a_loss_can_be_written_where_the_caller_says() -> None:
    x, t = np.ones((3, 2), np.float32), [0, 1, 0]
    loss = np.empty((), np.float32)
    got, dx = K.softmax_cross_entropy_value_and_grad(x, t, out=(loss, None))
    assert got is loss
    assert loss == pytest.approx(np.log(2))
    assert dx.shape == (3, 2)
    rows = np.empty(3, np.float32)
    assert K.softmax_cross_entropy(x, t, reduction="none", out=(rows, None))[0] is rows
    np.testing.assert_allclose(rows, np.log(2), rtol=1e-6)


def test_float16_probabilities_and_sigmoid_reach_the_smallest_numbers() -> None:
    assert K.sigmoid(np.float32(-103.9)) > 0
    np.testing.assert_array_equal(K.sigmoid(np.array([-1e4, 1e4, -INF, INF], np.float32)), [0, 1, 0, 1])
    assert K.sigmoid(np.float16(-12)) == np.float16(6.14e-06)
    x = np.linspace(-110, 90, 4001).astype(np.float32)
    exact = ORACLES["sigmoid"](x)[0]
    ulp = np.spacing(exact.astype(np.float32)).astype(float)
    assert (np.abs(K.sigmoid(x) - exact) / ulp).max() <= 3
    in_place = x.copy()
    assert (K.sigmoid(in_place, out=in_place) == K.sigmoid(x)).all()


def test_relu_keeps_nan_and_subnormals() -> None:
    for dtype in DTYPES:
        x = np.array([NAN, -0.0, -1.0, INF, -INF, 1.0]).astype(dtype)
        y = K.relu(x).astype(float)
        np.testing.assert_array_equal(y, [NAN, 0, 0, INF, 0, 1])
        dx = K.relu_backward(np.array([INF, NAN, INF, 2, NAN, 3]).astype(dtype), x)
        np.testing.assert_array_equal(dx.astype(float), [0, 0, 0, 2, 0, 3])
    assert K.relu_backward(np.float32(1), np.float32(1e-45)) == 1
