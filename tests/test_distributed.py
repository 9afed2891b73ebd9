"""Several ranks, in threads of one process: gradients, losses with classes spread over ranks, and their errors.

`test_mpi.py` has what needs several processes.
"""

import argparse
import contextlib
import sys
from typing import Any

import numpy as np
import pytest

from plugrad import backends, distributed, kernels as K
from plugrad.kernels import optim
from plugrad.tests.conformance.subject import DTYPES
from plugrad.tests.ranks import on_ranks, results

SOFTMAX = distributed.softmax_cross_entropy_value_and_grad
LINEAR = distributed.linear_cross_entropy_value_and_grad


@pytest.fixture(autouse=True)
def _on_numpy() -> Any:
    with backends.use("numpy"):
        yield


def split(array: Any, sizes: tuple[int, ...], axis: int = -1) -> list[Any]:
    """The parts of the classes, as many as `sizes` says on each rank."""
    return np.split(array, np.cumsum(sizes)[:-1], axis=axis)


def exact(
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
) -> tuple[Any, Any]:
    """Loss and gradient by the definition, in float64 (longdouble where the platform has it), for rows of logits.

    `t` are class indices, or one label per class.
    """
    x = np.asarray(x).astype(np.longdouble)
    rows, classes = x.shape
    w = np.ones(classes) if weight is None else np.asarray(weight, np.longdouble)
    counts = np.ones(rows, bool) if ignore_index is None else t != ignore_index
    s = np.ones(rows) if sample_weight is None else np.asarray(sample_weight, np.longdouble)
    counts &= s != 0
    label = np.where(counts, t, 0) if t.ndim == 1 else x.argmax(axis=1)
    is_label = np.zeros(x.shape, bool)
    is_label[np.arange(rows), label] = True
    q = (1 - label_smoothing) * (is_label if t.ndim == 1 else t.astype(np.longdouble)) + label_smoothing / classes
    with np.errstate(all="ignore"):
        top = x.max(axis=1, keepdims=True)
        e = np.exp(x - top)
        y = e / e.sum(axis=1, keepdims=True)
        rest = np.where(is_label, 0, e).sum(axis=1)
        single = e[np.arange(rows), label]
        log = np.log1p(rest + (single - 1))
        lse = top[:, 0] + log
        main = (np.where(w * q == 0, 0, w * q * (log[:, None] - (x - top)))).sum(axis=1)
        whole = (w * q).sum(axis=1)
        slope = y * whole[:, None] - w * q
        of_others = np.where(is_label, 0, w * q).sum(axis=1)
        slope[np.arange(rows), label] = of_others - whole * rest / (rest + single)  # y - 1 would be rounded
        main, square = np.where(counts, s * main, 0), np.where(counts, s * z_loss * lse**2, 0)
        slope = np.where(counts[:, None], s[:, None] * slope, 0)
        slope_z = np.where(counts[:, None], (s * 2 * z_loss * lse)[:, None] * y, 0)
    if reduction == "none":
        return main + square, slope + slope_z
    divisor = divisor_z = np.longdouble(1)
    if reduction == "mean":
        of_label = w[label] if t.ndim == 1 else 1
        divisor, divisor_z = (np.where(counts, s * of_label, 0)).sum(), np.where(counts, s, 0).sum()
        if divisor_z == 0:
            return 0.0, np.zeros_like(x)
    return main.sum() / divisor + square.sum() / divisor_z, slope / divisor + slope_z / divisor_z


def close(got: Any, expected: Any, ulps: float = 16.0) -> None:
    """Compare with the exact result, relative to the largest magnitude."""
    eps = 2.0**-7 if got.dtype.name == "bfloat16" else float(np.finfo(got.dtype).eps)
    scale = max(float(np.abs(np.asarray(expected, float)).max(initial=0.0)), 1e-30)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(expected, float), rtol=0, atol=ulps * eps * scale
    )


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "ignore_index": 2},
    {"weight": True},
    {"weight": True, "label_smoothing": 0.1, "ignore_index": -100},
    {"label_smoothing": 0.3, "reduction": "none"},
    {"sample_weight": True, "weight": True},
    {"z_loss": 0.01, "sample_weight": True, "label_smoothing": 0.1},
    {"z_loss": 0.01, "weight": True, "ignore_index": 2},
]


PER_CLASS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"reduction": "none", "sample_weight": True},
    {"weight": True},
    {"label_smoothing": 0.3},
    {"sample_weight": True, "weight": True, "label_smoothing": 0.1},
    {"z_loss": 0.01, "sample_weight": True},
    {"z_loss": 0.01, "weight": True, "label_smoothing": 0.1, "reduction": "sum"},
]


def labels_per_class(rng: Any, rows: int, classes: int, dtype: Any) -> Any:
    """Soft labels, one-hot labels, a row whose labels do not sum to one, and one of zeros."""
    t = rng.dirichlet(np.ones(classes), rows)
    t[1::3] = np.eye(classes)[rng.integers(0, classes, len(t[1::3]))]
    t[2] *= 3
    t[4] = 0
    return t.astype(dtype)


def options_of(options: dict[str, Any], rng: Any, rows: int, classes: int) -> dict[str, Any]:
    found = dict(options)
    if "weight" in found:
        found["weight"] = rng.random(classes).astype(np.float32) + 0.5
        found["weight"][1] = 0
    if "sample_weight" in found:
        found["sample_weight"] = rng.random(rows).astype(np.float32)
        found["sample_weight"][0] = 0
    return found


def mine(options: dict[str, Any], sizes: tuple[int, ...], rank: int) -> dict[str, Any]:
    """The options of a rank: its part of the weights."""
    return options | {"weight": split(options["weight"], sizes)[rank]} if "weight" in options else options


@pytest.mark.parametrize("sizes", [(4, 3), (7, 0), (0, 2, 5)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_softmax_with_spread_classes_is_the_formula(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        x = (rng.normal(size=(9, 7)) * 3).astype(dtype)
        t = rng.integers(0, 7, 9)
        if "ignore_index" in options:
            t[3] = options["ignore_index"]
        given = options_of(options, rng, 9, 7)
        parts = split(x, sizes)
        found = results(
            len(sizes), lambda c, p=parts, t=t, g=given: SOFTMAX(p[c.rank], t, comm=c, **mine(g, sizes, c.rank))
        )
        loss, dx = exact(x, t, **given)
        for got, _ in found:
            close(np.asarray(got), loss)
            assert np.asarray(got).tobytes() == np.asarray(found[0][0]).tobytes()
        whole = np.concatenate([d for _, d in found], axis=-1)
        assert whole.dtype == dtype
        close(whole, dx)


@pytest.mark.parametrize("sizes", [(4, 3), (7, 0), (0, 2, 5)])
@pytest.mark.parametrize("options", PER_CLASS, ids=str)
def test_softmax_with_one_label_per_class_is_the_formula(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    for dtype in DTYPES:
        x = (rng.normal(size=(9, 7)) * 3).astype(dtype)
        t = labels_per_class(rng, 9, 7, np.float64 if dtype == np.float32 else dtype)
        given = options_of(options, rng, 9, 7)
        parts, labels = split(x, sizes), split(t, sizes)

        def work(c: Any, parts: Any = parts, labels: Any = labels, given: Any = given) -> Any:
            return SOFTMAX(parts[c.rank], labels[c.rank], comm=c, **mine(given, sizes, c.rank))

        found = results(len(sizes), work)
        loss, dx = exact(x, t, **given)
        for got, _ in found:
            close(np.asarray(got), loss)
            assert np.asarray(got).tobytes() == np.asarray(found[0][0]).tobytes()
        whole = np.concatenate([d for _, d in found], axis=-1)
        assert whole.dtype == dtype
        close(whole, dx)


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64, np.float16])
def test_one_hot_labels_are_class_indices(kind: Any) -> None:
    rng = np.random.default_rng(9)
    x, t = rng.normal(size=(9, 7)), rng.integers(0, 7, 9)
    one_hot = np.eye(7).astype(kind)[t]
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t)
    for sizes in ((4, 3), (0, 2, 5)):
        found = results(len(sizes), lambda c, s=sizes: SOFTMAX(split(x, s)[c.rank], split(one_hot, s)[c.rank], comm=c))
        np.testing.assert_allclose(found[0][0], loss, rtol=1e-15)
        np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=-1), dx, rtol=0, atol=1e-16)


@pytest.mark.parametrize("per_class", [False, True])
def test_one_rank_is_the_plain_kernel_bit_for_bit(per_class: bool) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(5, 4)).astype(np.float32), rng.integers(0, 4, 5)
    w, b = rng.normal(size=(4, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.1, "sample_weight": rng.random(5)}
    if per_class:
        t = labels_per_class(rng, 5, 4, np.float32)
    else:
        options["ignore_index"] = 2
    (got,) = results(1, lambda c: SOFTMAX(x, t, comm=c, **options))
    expected = K.softmax_cross_entropy_value_and_grad(x, t, **options)
    options["softcap"] = 2.0
    (layer,) = results(1, lambda c: LINEAR(x, w, b, t, comm=c, needs=("dx", "db"), **options))
    plain = K.linear_cross_entropy_value_and_grad(x, w, b, t, needs=("dx", "db"), **options)
    assert layer[2] is None
    for one, other in zip((*got, layer[0], layer[1], layer[3]), (*expected, plain[0], plain[1], plain[3]), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confident_rows_keep_their_relative_accuracy(dtype: Any) -> None:
    x = np.array([[20, 0, 0], [0, 35.3, 0.1], [0.3, 0.1, 15.7], [12.3, -9.1, -3.3]], dtype)
    t = np.array([0, 1, 2, 0])
    loss, dx = exact(x, t, reduction="none")
    one_hot = np.eye(3, dtype=int)[t]
    for sizes in ((1, 2), (2, 1), (1, 1, 1), (0, 3)):
        for labels in ([t] * len(sizes), split(one_hot, sizes)):
            found = results(
                len(sizes),
                lambda c, s=sizes, t=labels: SOFTMAX(split(x, s)[c.rank], t[c.rank], comm=c, reduction="none"),
            )
            np.testing.assert_allclose(found[0][0], loss.astype(float), rtol=8 * np.finfo(dtype).eps)
            whole = np.concatenate([d for _, d in found], axis=-1)
            np.testing.assert_allclose(whole, dx.astype(float), rtol=64 * np.finfo(dtype).eps)


def test_two_largest_logits_on_two_ranks() -> None:
    """Their exponentials are summed apart on both."""
    x = np.array([[30.0, 0.0, 30.0, -3.0], [7.0, 7.0, 7.0, 7.0]])
    t = np.array([[0.5, 0, 0.5, 0], [0.1, 0.2, 0.3, 0.4]])
    loss, dx = exact(x, t, reduction="none")
    found = results(2, lambda c: SOFTMAX(split(x, (2, 2))[c.rank], split(t, (2, 2))[c.rank], comm=c, reduction="none"))
    np.testing.assert_allclose(found[0][0], loss.astype(float), rtol=1e-15)
    np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=-1), dx.astype(float), rtol=1e-15, atol=1e-16)


def test_special_values_stay_in_their_rows() -> None:
    inf, nan = np.inf, np.nan
    x = np.array(
        [
            [1, 2, 3, 4],
            [nan, 0, 0, 0],
            [0, 0, inf, 0],
            [-inf] * 4,
            [-inf, -inf, 0, 1],
            [nan, inf, 0, 1],
            [0, 1, -inf, 0],
        ],
        np.float32,
    )
    t = np.array([3, 1, 0, 0, 3, 2, 2])
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, reduction="none", ignore_index=2)
    for sizes in ((2, 2), (1, 0, 3), (4, 0)):
        found = results(
            len(sizes),
            lambda c, s=sizes: SOFTMAX(split(x, s)[c.rank], t, comm=c, reduction="none", ignore_index=2),
        )
        for each, _ in found:
            np.testing.assert_allclose(each, loss, rtol=1e-6)
        np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=-1), dx, rtol=1e-6, atol=1e-7)


def test_special_values_stay_in_their_rows_with_one_label_per_class() -> None:
    inf, nan = np.inf, np.nan
    x = np.array(
        [
            [1, 2, 3, 4],
            [nan, 0, 0, 0],
            [0, 0, inf, 0],
            [-inf] * 4,
            [-inf, -inf, 0, 1],
            [-inf, -inf, 0, 1],
            [nan, inf, 0, 1],
            [0, 1, -inf, 0],
            [0, 0, 0, 0],
        ],
        np.float32,
    )
    t = np.full(x.shape, 0.25)
    t[4] = 0, 0, 0.5, 0.5  # a label of 0 on -inf
    t[6], t[7] = nan, nan
    t[8, 3] = nan
    rows = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1])
    for smoothing in (0.0, 0.1):
        options: dict[str, Any] = {"sample_weight": rows, "reduction": "none", "label_smoothing": smoothing}
        loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, **options)
        for sizes in ((2, 2), (1, 0, 3), (4, 0)):

            def work(c: Any, s: tuple[int, ...] = sizes, options: Any = options) -> Any:
                return SOFTMAX(split(x, s)[c.rank], split(t, s)[c.rank], comm=c, **options)

            found = results(len(sizes), work)
            for each, _ in found:
                np.testing.assert_allclose(each, loss, rtol=1e-6)
            np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=-1), dx, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 2.0**-149, 1e-41, 1e36, 2.0**127])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_any_magnitude(weight: float, smoothing: float) -> None:
    """Where all are 0, nothing counts, whatever the logits are; others are relative to their sum."""
    rng = np.random.default_rng(11)
    x, t = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 6, 30)
    if not weight:
        x[3], x[4, 1] = np.nan, np.inf
    of_classes, of_rows = np.full(6, weight, np.float32), np.full(30, weight, np.float32)
    loss, dx = (0.0, np.zeros_like(x)) if not weight else exact(x, t, label_smoothing=smoothing)

    def work(c: Any) -> Any:
        part, one_hot = split(x, (2, 4))[c.rank], split(np.eye(6)[t], (2, 4))[c.rank]
        options: dict[str, Any] = {"comm": c, "label_smoothing": smoothing}
        return (
            SOFTMAX(part, t, weight=of_classes[: part.shape[1]], **options),
            SOFTMAX(part, t, sample_weight=of_rows, **options),
            SOFTMAX(part, one_hot, sample_weight=of_rows, **options),
            LINEAR(np.eye(6, dtype=np.float32)[t], part[:6], None, t, weight=of_classes[: part.shape[1]], **options),
        )

    found = results(2, work)
    for kind in range(3):
        close(np.asarray(found[0][kind][0]), loss)
        close(np.concatenate([f[kind][1] for f in found], axis=1), dx)
    assert all(np.isfinite(array).all() for f in found for array in f[3])
    if not weight:
        assert float(found[0][3][0]) == 0
        assert not any(a.any() for f in found for a in f[3][1:])


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "of_classes", "of_rows", "logit"),
    [
        (np.float32, 1e38, 1e-30, 1e3),
        (np.float32, 1e-38, 1e38, 1e3),
        (np.float64, 1e200, 1e-200, 1e150),
        (np.float64, 1e-200, 1e200, 1e150),
        (np.float64, 1e305, 1e-305, 1e3),
    ],
)
def test_products_that_the_dtype_cannot_hold(
    per_class: bool, smoothing: float, dtype: Any, of_classes: float, of_rows: float, logit: float
) -> None:
    """The loss is finite, and the product of a weight and a logit, or a sum of weights, is not."""
    rng = np.random.default_rng(12)
    x, t = (rng.normal(size=(9, 6)) * logit).astype(dtype), rng.integers(0, 6, 9)
    weight, rows = ((rng.random(n) + 0.5).astype(dtype) * dtype(size) for n, size in ((6, of_classes), (9, of_rows)))
    labels = labels_per_class(rng, 9, 6, dtype) if per_class else t
    for reduction in ("sum",) if per_class else ("mean", "sum"):
        options: dict[str, Any] = {"sample_weight": rows, "label_smoothing": smoothing, "reduction": reduction}
        loss, dx = exact(x, labels, weight=weight, **options)

        def work(c: Any, options: Any = options) -> Any:
            own, of_labels = (split(a, (2, 4))[c.rank] if a.ndim == 2 else a for a in (x, labels))
            return SOFTMAX(own, of_labels, comm=c, weight=split(weight, (2, 4))[c.rank], **options)

        found = results(2, work)
        close(np.asarray(found[0][0]), loss)
        close(np.concatenate([d for _, d in found], axis=1), dx)


def test_smoothing_over_logits_that_mask_classes() -> None:
    """The sum of masked logits exceeds float32."""
    x = np.full((3, 8), np.finfo(np.float32).min)
    x[:, :3] = [[1, 2, 3], [0, 0, 5], [4, 2, 1]]
    t = np.array([0, 2, 1])
    loss, dx = exact(x, t, label_smoothing=0.1)
    found = results(2, lambda c: SOFTMAX(split(x, (2, 6))[c.rank], t, comm=c, label_smoothing=0.1))
    close(np.asarray(found[0][0]), loss)
    close(np.concatenate([d for _, d in found], axis=1), dx)


def test_layouts_and_results_given_with_one_label_per_class() -> None:
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(3, 6, 5)), rng.dirichlet(np.ones(6), (3, 5)).transpose(0, 2, 1)
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, axis=1)

    def work(c: Any) -> Any:
        part, labels = split(x, (2, 4), 1)[c.rank], split(t, (2, 4), 1)[c.rank]
        out = np.full(part.shape[::-1], np.nan).T  # not C-contiguous
        got = SOFTMAX(part, labels, comm=c, axis=1, out=out)
        assert got[1] is out
        for own in (part.copy(), labels.copy("F"), labels.copy()):  # in place, over the logits or the labels
            over_labels = own.tobytes() == labels.copy().tobytes()
            again = SOFTMAX(*((part, own) if over_labels else (own, labels)), comm=c, axis=1, out=own)
            assert again[1] is own
            np.testing.assert_array_equal(own, out)
        return got

    found = results(2, work)
    np.testing.assert_allclose(found[0][0], loss, rtol=1e-14)
    np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=1), dx, atol=1e-15)


def test_layouts_and_results_given() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 6, 5))
    t = rng.integers(0, 6, (3, 5)).astype(np.uint8)
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, axis=1)

    def work(c: Any) -> Any:
        part = split(x, (2, 4), 1)[c.rank]
        out = np.full(part.shape[::-1], np.nan).T  # not C-contiguous
        got = SOFTMAX(part, t, comm=c, axis=1, out=out)
        assert got[1] is out
        own = part.copy()
        again = SOFTMAX(own, t, comm=c, axis=1, out=(np.empty(()), own))  # in place
        assert again[1] is own
        np.testing.assert_array_equal(own, out)
        return got

    found = results(2, work)
    np.testing.assert_allclose(found[0][0], loss, rtol=1e-14)
    np.testing.assert_allclose(np.concatenate([d for _, d in found], axis=1), dx, atol=1e-15)


def test_results_written_over_weights() -> None:
    rng = np.random.default_rng(4)
    x, t = rng.normal(size=(3, 6)), np.array([0, 5, 2])
    weight, sample_weight = rng.random(6), np.array([0.5, 0.0, 3.0])
    options: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.2, "reduction": "none"}
    loss, dx = K.softmax_cross_entropy_value_and_grad(x, t, weight=weight, sample_weight=sample_weight, **options)

    def work(c: Any) -> Any:
        part, classes = split(x, (3, 3))[c.rank], split(weight, (3, 3))[c.rank].copy()
        rows = sample_weight.copy()
        over_rows = SOFTMAX(part, t, comm=c, weight=classes, sample_weight=rows, out=(rows, None), **options)
        assert over_rows[0] is rows
        over_classes = SOFTMAX(
            part, t, comm=c, weight=classes, sample_weight=sample_weight, out=(classes, None), **options
        )
        assert over_classes[0] is classes
        return over_rows, over_classes

    for pair in zip(*results(2, work), strict=True):
        for found, _ in pair:
            np.testing.assert_allclose(found, loss, rtol=1e-14)
        np.testing.assert_allclose(np.concatenate([d for _, d in pair], axis=1), dx, atol=1e-15)


def test_messages_are_of_the_size_of_the_rows_only() -> None:
    x, t = np.zeros((11, 400)), np.zeros(11, int)
    _, ranks = on_ranks(2, lambda c: SOFTMAX(x, t, comm=c))
    assert ranks.sent == [("max", 3 + 2 * 2), ("max", 11), ("sum", 2 * 11 + 1)]
    _, ranks = on_ranks(2, lambda c: SOFTMAX(x, t, comm=c), check=False)
    assert ranks.sent == [("max", 11 + 2 * 2), ("sum", 2 * 11 + 1)]
    _, ranks = on_ranks(2, lambda c: SOFTMAX(x, t, comm=c, weight=np.ones(400)))
    assert ranks.sent == [("max", 3 + 2 * 2), ("max", 11), ("sum", 3 * 11 + 1)]
    _, ranks = on_ranks(2, lambda c: SOFTMAX(x, t, comm=c, label_smoothing=0.1))
    assert ranks.sent == [("max", 3 + 2 * 2), ("max", 11), ("sum", 3 * 11 + 1)]
    _, ranks = on_ranks(2, lambda c: SOFTMAX(x, x, comm=c, label_smoothing=0.1))
    assert ranks.sent == [("max", 3 + 2 * 2), ("max", 11), ("sum", 4 * 11 + 1)]
    for labels in (t, x):  # and the largest weight
        _, ranks = on_ranks(2, lambda c, t=labels: SOFTMAX(x, t, comm=c, weight=np.ones(400), label_smoothing=0.1))
        assert ranks.sent == [("max", 3 + 2 * 2), ("max", 12), ("sum", 4 * 11 + 1)]
    w, h = np.zeros((3, 400)), np.zeros((11, 3))
    _, ranks = on_ranks(2, lambda c: LINEAR(h, w, None, x, comm=c, needs=("dw",), weight=np.ones(400)))
    assert ranks.sent == [("max", 7), ("max", 12), ("sum", 45)]
    _, ranks = on_ranks(2, lambda c: LINEAR(h, w, None, t, comm=c, needs=("dx",)))
    assert ranks.sent == [("max", 7), ("max", 11), ("sum", 23), ("sum", 33)]


@pytest.mark.parametrize("compare", [True, False])
def test_no_rows(compare: bool) -> None:
    empty, none = np.zeros((0, 3)), np.zeros(0, int)
    for loss, dx in results(2, lambda c: SOFTMAX(empty, none, comm=c), check=compare):
        assert (float(loss), dx.shape) == (0.0, (0, 3))
    for loss, dx, dw, db in results(2, lambda c: LINEAR(np.zeros((0, 4)), np.ones((4, 3)), None, none, comm=c)):
        assert (float(loss), dx.shape) == (0.0, (0, 4))
        assert not dw.any()
        assert not db.any()


LAYERS: list[dict[str, Any]] = [*OPTIONS, {"softcap": 2.0, "z_loss": 0.01}]


@pytest.mark.parametrize("sizes", [(4, 3), (0, 2, 5)])
@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_the_last_layer_with_spread_classes_is_the_formula(options: dict[str, Any], sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    cap = options.get("softcap")
    for dtype in DTYPES:
        x, w, b = ((rng.normal(size=shape)).astype(dtype) for shape in ((23, 5), (5, 7), (7,)))
        t = rng.integers(0, 7, 23)
        if "ignore_index" in options:
            t[3] = options["ignore_index"]
        given = options_of({k: v for k, v in options.items() if k != "softcap"}, rng, 23, 7)
        ws, bs = split(w, sizes), split(b, sizes)

        def work(c: Any, x: Any = x, t: Any = t, ws: Any = ws, bs: Any = bs, given: Any = given) -> Any:
            space = 1500 if c.rank else "1MB"  # the least decides
            softcap = {} if cap is None else {"softcap": cap}
            named = mine(given, sizes, c.rank) | softcap
            return LINEAR(x, ws[c.rank], bs[c.rank], t, comm=c, max_workspace=space, **named)

        found = results(len(sizes), work)
        x64, w64, b64 = (a.astype(np.float64) for a in (x, w, b))
        z = x64 @ w64 + b64
        capped = z if cap is None else cap * np.tanh(z / cap)
        loss, dz = exact(capped, t, **given)
        if cap is not None:
            dz = dz * (1 - np.tanh(z / cap) ** 2)
        for got, dx, _, _ in found:
            close(np.asarray(got), loss)
            close(dx, dz @ w64.T)
        close(np.concatenate([dw for _, _, dw, _ in found], axis=1), x64.T @ dz)
        close(np.concatenate([db for _, _, _, db in found]), dz.sum(axis=0))


@pytest.mark.parametrize("sizes", [(4, 3), (0, 2, 5)])
@pytest.mark.parametrize("options", [*PER_CLASS, {"softcap": 2.0, "z_loss": 0.01, "sample_weight": True}], ids=str)
def test_the_last_layer_with_one_label_per_class_is_the_formula(
    options: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(10)
    cap = options.get("softcap")
    for dtype in DTYPES:
        x, w, b = ((rng.normal(size=shape)).astype(dtype) for shape in ((23, 5), (5, 7), (7,)))
        t = labels_per_class(rng, 23, 7, np.float32)
        given = options_of({k: v for k, v in options.items() if k != "softcap"}, rng, 23, 7)
        if "sample_weight" in given:
            given["sample_weight"][5:11] = 0
        parts = [split(each, sizes) for each in (w, b, t)]

        def work(c: Any, x: Any = x, parts: Any = parts, given: Any = given) -> Any:
            w, b, t = (part[c.rank] for part in parts)
            space = 1500 if c.rank else "1MB"  # the least decides
            return LINEAR(x, w, b, t, comm=c, max_workspace=space, softcap=cap, **mine(given, sizes, c.rank))

        found = results(len(sizes), work)
        x64, w64, b64 = (a.astype(np.float64) for a in (x, w, b))
        z = x64 @ w64 + b64
        loss, dz = exact(z if cap is None else cap * np.tanh(z / cap), t, **given)
        if cap is not None:
            dz = dz * (1 - np.tanh(z / cap) ** 2)
        for got, dx, _, _ in found:
            close(np.asarray(got), loss)
            close(dx, dz @ w64.T)
        close(np.concatenate([dw for _, _, dw, _ in found], axis=1), x64.T @ dz)
        close(np.concatenate([db for _, _, _, db in found]), dz.sum(axis=0))


def test_chunks_are_as_the_smallest_workspace_says_and_nothing_is_read_of_rows_that_do_not_count() -> None:
    rng = np.random.default_rng(4)
    x, w, t = rng.normal(size=(40, 3)), rng.normal(size=(3, 6)), rng.integers(0, 6, 40)
    t[::2] = -1
    x[::2] = np.inf
    expected = K.linear_cross_entropy_value_and_grad(x, w, None, t, ignore_index=-1)

    def work(c: Any) -> Any:
        space = K.Workspace(1500) if c.rank else K.Workspace("1MB")
        out = (np.empty(()), x.copy(), np.empty((3, 3)), None)
        call = LINEAR(out[1], split(w, (3, 3))[c.rank], None, t, comm=c, ignore_index=-1, max_workspace=space, out=out)
        assert call[1] is out[1]
        return call

    found, ranks = on_ranks(2, work)
    assert 3 < sum(op == "max" for op, _ in ranks.sent) <= 21
    for loss, dx, _, _ in found:
        np.testing.assert_allclose(loss, expected[0], rtol=1e-14)
        np.testing.assert_allclose(dx, expected[1], atol=1e-15)
    np.testing.assert_allclose(np.concatenate([f[2] for f in found], axis=1), expected[2], atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_classes_are_worked_on_in_blocks_of_rows(dtype: Any) -> None:
    rng = np.random.default_rng(6)
    x, t = rng.normal(size=(11, 50_000)).astype(dtype), rng.integers(0, 50_000, 11)
    loss, dx = exact(x, t, label_smoothing=0.1)
    sizes = (20_000, 30_000)

    def work(c: Any) -> Any:
        own = np.ascontiguousarray(split(x, sizes)[c.rank])
        return SOFTMAX(own, t, comm=c, label_smoothing=0.1, out=own)

    found = results(2, work)
    close(np.asarray(found[0][0]), loss)
    close(np.concatenate([d for _, d in found], axis=1), dx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_many_chunks_and_parts_of_the_weights_in_a_small_workspace(dtype: Any, softcap: float | None) -> None:
    rng = np.random.default_rng(7)
    x, w, b = ((rng.normal(size=shape) / 2).astype(dtype) for shape in ((500, 6), (6, 150), (150,)))
    t = rng.integers(0, 150, 500)
    t[::7] = -1
    sizes = (100, 50)
    kept = w.copy()

    def work(c: Any) -> Any:
        own = np.ascontiguousarray(split(w, sizes)[c.rank])
        out = (None, None, own, None)  # over the weights
        biases = split(b, sizes)[c.rank]
        return LINEAR(
            x, own, biases, t, comm=c, softcap=softcap, ignore_index=-1, reduction="sum", max_workspace=5000, out=out
        )

    found, ranks = on_ranks(2, work)
    assert sum(op == "max" for op, _ in ranks.sent) > 65
    x64, w64 = x.astype(np.float64), kept.astype(np.float64)
    z = x64 @ w64 + b.astype(np.float64)
    cap = softcap or np.inf
    capped = cap * np.tanh(z / cap) if softcap else z
    loss, dz = exact(capped, t, ignore_index=-1, reduction="sum")
    if softcap:
        dz = dz / np.cosh(z / cap) ** 2
    close(np.asarray(found[0][0]), loss)
    close(found[0][1], dz @ w64.T)
    close(np.concatenate([f[2] for f in found], axis=1), x64.T @ dz)
    close(np.concatenate([f[3] for f in found]), dz.sum(axis=0))


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------


def test_sums_of_gradients_are_one_message_for_each_dtype() -> None:
    rng = np.random.default_rng(0)
    shapes = [((3, 4), d) for d in DTYPES] + [((5,), d) for d in DTYPES]
    given = [[rng.normal(size=s).astype(d) for s, d in shapes] for _ in range(3)]

    def work(c: Any) -> Any:
        own = [a.copy("F") for a in given[c.rank]]
        distributed.sum_gradients(own, c)
        return own

    found, ranks = on_ranks(3, work)
    assert len(ranks.sent) == 1 + len(DTYPES)
    for own in found:
        for i, got in enumerate(own):
            total = sum(given[r][i].astype(np.float64) for r in range(3))
            np.testing.assert_array_equal(got, found[0][i])
            close(got, total, 1.0)


def test_16_bits_are_summed_in_float32() -> None:
    big, small = np.array([2048.0], np.float16), np.array([1.0], np.float16)
    given = [big, small, small]  # 2048 + 1 is 2048 in float16

    def work(c: Any) -> Any:
        own = given[c.rank].copy()
        distributed.sum_gradients([own], c)
        return float(own[0])

    assert results(3, work) == [2050.0] * 3


def test_broadcast_takes_those_of_the_root() -> None:
    def work(c: Any) -> Any:
        own = [np.full((2, 2), c.rank, d) for d in (np.float16, np.float32)] + [np.full(3, c.rank)]
        distributed.broadcast(own, c, root=1)
        return own

    for own in results(3, work):
        assert all((a == 1).all() for a in own)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_on_ranks_is_training_on_one(size: int, dtype: Any, weighted: bool) -> None:
    """Any split of the rows, a rank without rows, rows that do not count, and gradients of two batches added up."""
    rng = np.random.default_rng(5)
    x, t = rng.normal(size=(24, 5)).astype(dtype), rng.integers(-1, 4, 24)
    weights = rng.random(24) if weighted else np.ones(24)
    start = [rng.normal(size=(5, 4)).astype(dtype), rng.normal(size=4).astype(dtype)]
    bounds = {1: (0, 24), 2: (0, 17, 24), 3: (0, 17, 17, 24)}[size]

    def work(c: Any) -> Any:
        w, b = (a.copy() if c.rank == 0 else np.zeros_like(a) for a in start)
        trainer = distributed.DataParallel(optim.SGD([w, b], lr=0.5, momentum=0.5), c)
        for _ in range(3):
            sums, count = [np.zeros_like(w), np.zeros_like(b)], 0.0
            rows = np.arange(bounds[c.rank], bounds[c.rank + 1])
            for half in np.array_split(rows, 2):
                z = K.affine(x[half], w, b)
                _, dz = K.softmax_cross_entropy_value_and_grad(
                    z, t[half], sample_weight=weights[half], ignore_index=-1, reduction="sum"
                )
                _, dw, db = K.affine_backward(dz, x[half], w)
                sums[0] += dw
                sums[1] += db
                count += weights[half][t[half] != -1].sum()
            before = [a.copy() for a in sums]
            trainer.step(sums, count)
            assert all((a == b).all() for a, b in zip(sums, before, strict=True))
        return w, b

    found = results(size, work)
    w, b = (a.astype(np.float64) for a in start)
    optimizer = optim.SGD([w, b], lr=0.5, momentum=0.5)
    for _ in range(3):
        z = K.affine(x.astype(np.float64), w, b)
        _, dz = K.softmax_cross_entropy_value_and_grad(z, t, sample_weight=weights, ignore_index=-1)
        optimizer.step(K.affine_backward(dz, x.astype(np.float64), w)[1:])
    for got in found:
        close(got[0], w, 8.0)
        close(got[1], b, 8.0)
        assert [a.tobytes() for a in got] == [a.tobytes() for a in found[0]]


def test_where_nothing_counts_gradients_are_0() -> None:
    def work(c: Any) -> Any:
        w = np.ones(3)
        distributed.DataParallel(optim.SGD([w], lr=1.0), c).step([np.full(3, 7.0)], 0)
        return w

    assert all((w == 1).all() for w in results(2, work))


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def softmax(c: Any, wrong: dict[str, Any]) -> Any:
    """A call in which the rank 1 has something else."""
    given = {"x": np.zeros((4, 3), np.float32), "t": np.array([0, 1, 2, 5]), "axis": -1, "reduction": "mean"}
    given |= wrong if c.rank == 1 else {}
    x, t = given.pop("x"), given.pop("t")
    return SOFTMAX(x, t, comm=c, **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x": np.zeros((5, 3), np.float32)}, "rank 1: t: expected class indices of shape (5,)"),
        (
            {"x": np.zeros((4, 3))},
            "dtype: .* rank 0 has float32 and rank 1 has float64",
        ),
        ({"t": np.array([0, 1, 2, 4])}, "values of t: .* but rank 0 has values from 0 to 5"),
        ({"t": np.array([0, 1, 2, 6])}, "values of t: .* rank 1 has values from 0 to 6"),
        ({"t": np.array([0, 1, 2, 5], np.int32)}, "rank 1 has int32"),
        ({"t": np.array([0.5] * 4)}, "rank 1: t: expected class indices of an integer dtype"),
        ({"t": np.zeros((4, 3))}, "t: .* rank 0 has int64, class indices and rank 1 has float64, one label per class"),
        ({"t": [[0, 0, 1]] * 4}, "t: .* rank 0 has int64, class indices and rank 1 has int64, one label per class"),
        ({"t": np.zeros((4, 9))}, r"rank 1: t: .* or one label per class of shape (4, 3), got shape (4, 9)"),
        ({"t": np.zeros((4, 3)), "ignore_index": 5}, "rank 1: ignore_index: expected None with one label per class"),
        ({"reduction": "sum"}, "reduction: expected the same on all ranks, but rank 0 has mean and rank 1 has sum"),
        ({"reduction": "avg"}, "rank 1: reduction: expected one of mean, sum, none; got 'avg'"),
        ({"label_smoothing": 0.1}, "label_smoothing: .* rank 0 has 0.0 and rank 1 has 0.1"),
        ({"ignore_index": 5}, "ignore_index: .* rank 0 has None and rank 1 has 5"),
        ({"z_loss": 0.1}, "z_loss: .* rank 1 has 0.1"),
        ({"z_loss": -1}, "rank 1: z_loss: expected a finite number of at least 0, got -1"),
        ({"sample_weight": np.ones(4)}, "sample_weight: .* rank 0 has None and rank 1 has values from 1.0"),
        ({"sample_weight": np.ones(3)}, "rank 1: sample_weight: expected one weight for each row"),
        ({"weight": np.ones(3)}, "weight: .* rank 0 has None and rank 1 has given"),
        ({"weight": np.ones(6)}, "rank 1: weight: expected one weight for each class of this rank"),
        ({"axis": 0}, "rank 1: t: expected class indices of shape (3,)"),
        ({"out": np.zeros((4, 3))}, "rank 1: out: dx: expected dtype float32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_differs_is_an_error_on_every_rank(wrong: dict[str, Any], message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    found, _ = on_ranks(3, lambda c: softmax(c, wrong))
    assert len({str(error) for error in found}) == 1
    for error in found:
        assert type(error) is ValueError
        with pytest.raises(ValueError, match=pattern):
            raise error


def test_what_is_wrong_alike_is_the_error_of_one_process() -> None:
    found, _ = on_ranks(2, lambda c: SOFTMAX(np.zeros((4, 3), complex), np.zeros(4, int), comm=c))
    assert [type(error) for error in found] == [TypeError] * 2
    assert "x: expected float16" in str(found[0])


@pytest.mark.parametrize("compare", [True, False])
def test_labels_out_of_range_are_errors_on_every_rank_before_anything_is_written(compare: bool) -> None:
    def work(c: Any) -> Any:
        out = np.full((4, 3), 7.0)
        t = np.array([0, 5, 6, -1])
        with pytest.raises(ValueError, match=r"t: expected labels in \[0, 6\), got 6 at row 2"):
            SOFTMAX(np.zeros((4, 3)), t, comm=c, out=out)
        with pytest.raises(ValueError, match=r"t: expected labels in \[0, 6\) or the ignored label 6, got -1 at row 3"):
            LINEAR(np.zeros((4, 2)), np.zeros((2, 3)), None, t, comm=c, ignore_index=6, out=(None, None, None, None))
        assert (out == 7).all()

    results(2, work, check=compare)


def test_no_classes_at_all() -> None:
    found, _ = on_ranks(2, lambda c: SOFTMAX(np.zeros((4, 0)), np.zeros(4, int), comm=c))
    assert all("expected at least one class on some rank, got none on any" in str(error) for error in found)


def linear(c: Any, wrong: dict[str, Any]) -> Any:
    given: dict[str, Any] = {"x": np.zeros((4, 3)), "w": np.zeros((3, 2)), "b": np.zeros(2), "t": np.zeros(4, int)}
    given |= wrong if c.rank == 1 else {}
    return LINEAR(given.pop("x"), given.pop("w"), given.pop("b"), given.pop("t"), comm=c, **given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"w": np.zeros((2, 2))}, "rank 1: x: expected 2 inputs along the last axis"),
        (
            {"x": np.zeros((4, 2)), "w": np.zeros((2, 2))},
            r"x: .* rank 0 .* \(4, 3\) and rank 1 .* \(4, 2\)",
        ),
        ({"b": None}, "b: .* rank 0 has given and rank 1 has None"),
        ({"b": np.zeros(3)}, "rank 1: b: expected shape"),
        ({"needs": ("dx",)}, "needs: .* rank 1 has \\('dx',\\)"),
        ({"max_workspace": 100}, "rank 1: max_workspace: expected at least [0-9]+ bytes, for one row, got 100"),
        ({"softcap": 3.0}, "softcap: .* rank 1 has 3.0"),
        ({"softcap": 0.0}, "rank 1: softcap: expected a finite number greater than 0, got 0.0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_differs_in_the_last_layer_is_an_error_on_every_rank(wrong: dict[str, Any], message: str) -> None:
    found, _ = on_ranks(2, lambda c: linear(c, wrong))
    for error in found:
        with pytest.raises(ValueError, match=message):
            raise error


def test_gradients_that_differ_are_an_error_on_every_rank() -> None:
    def sums(c: Any) -> None:
        distributed.sum_gradients([np.zeros(3 + c.rank)], c)

    def one_more(c: Any) -> None:
        distributed.sum_gradients([np.zeros(3)] * (1 + c.rank), c)

    def read_only(c: Any) -> None:
        array = np.zeros(3)
        array.flags.writeable = c.rank == 0
        distributed.sum_gradients([array], c)

    def another_call(c: Any) -> None:
        if c.rank:
            distributed.broadcast([np.zeros(3)], c)
        else:
            distributed.sum_gradients([np.zeros(3)], c)

    def steps(c: Any) -> None:
        w = np.zeros(3)
        optimizer = optim.SGD([w], lr=0.1 * (1 + c.rank))
        distributed.DataParallel(optimizer, c)

    def betas(c: Any) -> None:
        distributed.DataParallel(optim.AdamW([np.zeros(3)], betas=(0.9, 0.99 + 0.009 * c.rank)), c)

    def centered(c: Any) -> None:
        distributed.DataParallel(optim.RMSprop([np.zeros(3)], centered=c.rank == 1), c)

    def states(c: Any) -> None:
        optimizer = optim.SGD([np.zeros(3)], momentum=0.9)
        optimizer.step([np.full(3, 1.0 + c.rank)])
        distributed.DataParallel(optimizer, c)

    def loaded_alone(c: Any) -> None:
        trainer = distributed.DataParallel(optim.SGD([np.zeros(3)], momentum=0.9), c)
        stored = optim.SGD([np.zeros(3)], momentum=0.9)
        stored.step([np.full(3, 1.0 + 2 * c.rank)])
        trainer.optimizer.load_state_dict(stored.state_dict())
        trainer.step([np.zeros(3)], 1)

    def loaded_on_one_rank(c: Any) -> None:
        trainer = distributed.DataParallel(optim.SGD([np.zeros(3)], momentum=0.9), c)
        trainer.step([np.zeros(3)], 1)
        if c.rank:
            trainer.optimizer.load_state_dict(trainer.optimizer.state_dict())
        trainer.step([np.zeros(3)], 1)

    def counts(c: Any) -> None:
        w = np.zeros(3)
        trainer = distributed.DataParallel(optim.SGD([w]), c)
        trainer.step([np.zeros(3)], -1 if c.rank else 2)

    for work, message in (
        (sums, r"grads 0: .* rank 0 has shape \(3,\), float64 and rank 1 has shape \(4,\), float64"),
        (one_more, "number of grads: .* rank 0 has 1 and rank 1 has 2"),
        (read_only, "rank 1: grads: 0: expected an array that can be written"),
        (another_call, "call: .* rank 0 has sum_gradients and rank 1 has broadcast"),
        (steps, "lr: .* rank 0 has 0.1 and rank 1 has 0.2"),
        (betas, r"betas: .* rank 0 has \(0.9, 0.99\) and rank 1 has \(0.9, 0.999\)"),
        (centered, "arrays of the optimizer: .* rank 0 has squares and rank 1 has squares, means"),
        (states, "the optimizer's velocities.0: .* rank 0 has values from 1.0 to 1.0 .* rank 1 has values from 2.0 to"),
        (loaded_alone, "the optimizer's velocities.0: .* rank 0 has .* from 1.0 to 1.0 .* rank 1 has .* from 3.0 to"),
        (loaded_on_one_rank, "the optimizer's velocities.0: expected the same on all ranks, but rank 0 has none"),
        (counts, "rank 1: count: expected a finite number of at least 0, got -1"),
    ):
        found, _ = on_ranks(2, work)
        for error in found:
            with pytest.raises(ValueError, match=message):
                raise error


def ending(c: Any) -> Any:
    """A rank of an engine that can end the job, as MPI can."""
    c.abort = lambda status: None
    return c


@pytest.mark.parametrize("first", [0, 1])
def test_the_end_of_guard_meets_a_call_of_another_rank(first: int) -> None:
    """A rank with fewer batches ends all of them, where they would wait for it for ever."""

    def work(c: Any) -> None:
        with distributed.guard(ending(c)):
            for _ in range(1 if c.rank == first else 2):
                distributed.sum_gradients([np.ones(3)], c)

    found, _ = on_ranks(2, work)
    calls = ["sum_gradients", "sum_gradients"]
    calls[first] = "the end of guard"
    message = f"call: expected the same on all ranks, but rank 0 has {calls[0]} and rank 1 has {calls[1]}"
    assert [str(error) for error in found] == [f"{call}: {message}" for call in calls]


def test_ranks_end_guard_together() -> None:
    def work(c: Any) -> None:
        with distributed.guard(ending(c)):
            distributed.sum_gradients([np.ones(3)], c)

    found, ranks = on_ranks(2, work)
    assert found == [None, None]
    assert [operation for operation, _ in ranks.sent] == ["max", "sum", "max"]


def test_an_engine_that_cannot_end_the_job_does_not_wait_at_the_end_of_guard() -> None:
    """One rank may have left the block by an exception, which its program goes on with."""

    def work(c: Any) -> None:
        with contextlib.suppress(ArithmeticError), distributed.guard(c):
            if c.rank:
                raise ArithmeticError

    assert on_ranks(2, work)[0] == [None, None]


def test_guard_does_not_meet_over_a_communicator_that_has_ended() -> None:
    def work(c: Any) -> None:
        with distributed.guard(ending(c)):
            c.is_over = True

    found, ranks = on_ranks(2, work)
    assert (found, ranks.sent) == ([None, None], [])


@pytest.mark.parametrize("status", [None, 0])
def test_an_exit_without_an_error_in_guard_meets_the_others(status: int | None) -> None:
    def work(c: Any) -> None:
        with distributed.guard(ending(c)):
            if c.rank:
                sys.exit(status)
            distributed.sum_gradients([np.ones(3)], c)

    found, _ = on_ranks(2, work)
    assert all("rank 0 has sum_gradients and rank 1 has the end of guard" in str(error) for error in found)

    def all_exit(c: Any) -> None:
        with pytest.raises(SystemExit), distributed.guard(ending(c)):
            sys.exit(status)

    found, _ = on_ranks(2, all_exit)
    assert found == [None, None]


def test_wrong_arguments_are_errors() -> None:
    found, _ = on_ranks(2, lambda c: distributed.sum_gradients(np.zeros(3), c))
    assert "grads: expected a sequence of arrays, got one array; pass [array]" in str(found[0])
    found, _ = on_ranks(2, lambda c: distributed.sum_gradients(None, c))  # type: ignore[arg-type]
    assert "sum_gradients: grads: expected a sequence of arrays, got NoneType" in str(found[0])
    found, _ = on_ranks(2, lambda c: distributed.broadcast([np.zeros(3)], c, root=2))
    assert "root: expected a rank in [0, 2), got 2" in str(found[0])
    found, _ = on_ranks(2, lambda c: distributed.DataParallel("SGD", c))  # type: ignore[arg-type]
    assert "optimizer: expected one of plugrad.kernels.optim, got str" in str(found[0])
    with (
        K.capture(),
        pytest.raises(RuntimeError, match="a capture does not record messages; call it outside of the block"),
    ):
        distributed.sum_gradients([], None)  # type: ignore[arg-type]


@pytest.mark.parametrize("comm", [None, argparse.Namespace(rank=0, size=1, allreduce=len, barrier=len, bcast=len)])
def test_what_is_no_communicator_is_refused(comm: Any) -> None:
    """mpi4py's own have other methods of these names."""
    x, t, w = np.zeros((4, 3)), np.zeros(4, int), np.zeros((3, 2))
    for call in (
        lambda: SOFTMAX(x, t, comm=comm),
        lambda: LINEAR(x, w, None, t, comm=comm),
        lambda: distributed.broadcast([x], comm),
        lambda: distributed.sum_gradients([x], comm),
        lambda: distributed.DataParallel(optim.SGD([x]), comm),
        lambda: distributed.guard(comm).__enter__(),
    ):
        with pytest.raises(TypeError, match=r"comm: expected a plugrad.distributed.Communicator, got .*mpi\(comm\)"):
            call()
