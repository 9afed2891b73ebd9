"""Layers: their gradients, memory, files and errors."""

import copy
import functools
import io
import math
import os
import pickle
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim
from plugrad.kernels.gradcheck import check
from plugrad.kernels.layers._activations import Activation
from plugrad.kernels.layers._affine import _warn_of_wide_inputs

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
LOGITS = np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 1.0], [-1.0, 0.5, 0.25]])
INDICES = np.array([2, 1, 0])
ONE_HOT = np.eye(3)[INDICES]
SOFT = np.array([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0], [0.3, 0.3, 0.3]])


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    RNG.bit_generator.state = START  # so that the numbers of a test do not depend on the tests before it
    with backends.use(request.param):
        yield request.param


def network(dtype: Any = np.float64) -> layers.Sequential:
    """Return a network with a layer of each kind but the losses."""
    return layers.Sequential(
        layers.Affine.init(4, 6, rng=0, dtype=dtype),
        layers.Relu(),
        layers.Affine(RNG.normal(size=(6, 5)).astype(dtype), RNG.normal(size=5).astype(dtype)),
        layers.Sigmoid(),
        layers.MatMul.init(5, 3, rng=1, dtype=dtype),
        layers.Softmax(),
    )


LAYERS = {
    "affine": lambda: layers.Affine.init(4, 3, rng=0, dtype=np.float64),
    "affine without biases": lambda: layers.Affine(RNG.normal(size=(4, 3))),
    "matmul": lambda: layers.MatMul.init(4, 3, rng=0, dtype=np.float64),
    "relu": layers.Relu,
    "leaky relu": lambda: layers.LeakyRelu(negative_slope=0.3),
    "gelu": layers.Gelu,
    "gelu by tanh": lambda: layers.Gelu(approximate="tanh"),
    "silu": layers.Silu,
    "tanh": layers.Tanh,
    "sigmoid": layers.Sigmoid,
    "softmax": layers.Softmax,
    "softmax along axis 0": lambda: layers.Softmax(axis=0),
    "network": network,
}


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_central_differences_and_of_jacobians(name: str, shape: tuple[int, ...]) -> None:
    layer, x = LAYERS[name](), RNG.normal(size=shape)
    report = check(layer, x)
    assert report, report
    assert len(report.gradients) == 1 + len(layer.params)
    y = layer.forward(x)
    assert y.ndim == x.ndim
    dy = RNG.normal(size=y.shape)
    dx = layer.backward(dy)
    grads = [gradient.copy() for gradient in layer.grads]
    for gradient in layer.grads:
        gradient[...] = np.nan
    np.testing.assert_allclose(layer.backward(dy, use_jacobian=True), dx, rtol=1e-12, atol=1e-14)
    for by_jacobian, gradient in zip(layer.grads, grads, strict=True):
        np.testing.assert_allclose(by_jacobian, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_network_in_other_dtypes(dtype: Any) -> None:
    net, x = network(dtype), RNG.normal(size=(3, 4)).astype(dtype)
    assert net.forward(x).dtype == dtype
    report = check(net, x, INDICES, loss=layers.CrossEntropy())
    assert report, report
    assert {array.dtype for array in (*net.params, *net.grads)} == {np.dtype(dtype)}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none"},
    {"weight": np.array([0.5, 2.0, 1.0])},
    {"sample_weight": np.array([0.5, 0.0, 2.0]), "ignore_index": -1},
]


@pytest.mark.parametrize("labels", [INDICES, ONE_HOT, SOFT], ids=["indices", "one-hot", "soft"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses(options: dict[str, Any], labels: Any) -> None:
    p = K.softmax(LOGITS)
    if np.ndim(labels) > 1:
        options = {name: value for name, value in options.items() if name != "ignore_index"}
    for layer, x in ((layers.SoftmaxWithLoss(**options), LOGITS), (layers.CrossEntropy(**options), p)):
        loss = layer.forward(x, labels)
        dx = layer.backward()
        np.testing.assert_allclose(loss, K.cross_entropy(p, labels, **options), rtol=1e-13)
        summed = {**options, "reduction": "sum"} if options.get("reduction") == "none" else options
        report = check(type(layer)(**summed), x, labels)  # upstream 1 for each loss is the gradient of their sum
        assert report, report
        dx = dx.copy()
        np.testing.assert_allclose(layer.backward(use_jacobian=True), dx, rtol=1e-12, atol=1e-15)
        dloss = np.array([1.0, -2.0, 0.5]) if options.get("reduction") == "none" else 3.0
        scaled = layer.backward(dloss)
        np.testing.assert_allclose(scaled, dx * np.reshape(dloss, (-1, 1)), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(layer.backward(), dx, rtol=1e-15)
        np.testing.assert_allclose(layer.backward(dloss, use_jacobian=True), scaled, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weights_of_the_rows_of_a_batch(reduction: str) -> None:
    weights, p = np.array([0.5, 0.0, 2.0]), K.softmax(LOGITS)
    options: dict[str, Any] = {"reduction": reduction, "sample_weight": weights}
    for layer, x in (
        (layers.SoftmaxWithLoss(z_loss=0.1, reduction=reduction), LOGITS),
        (layers.CrossEntropy(reduction=reduction), p),
    ):
        loss = layer.forward(x, INDICES, sample_weight=weights)
        dx = layer.backward().copy()
        if isinstance(layer, layers.CrossEntropy):
            np.testing.assert_array_equal(loss, K.cross_entropy(p, INDICES, **options))
        else:
            given = K.softmax_cross_entropy_value_and_grad(LOGITS, INDICES, z_loss=0.1, **options)
            np.testing.assert_array_equal(loss, given[0])
            np.testing.assert_array_equal(dx, given[1])
        assert (dx[1] == 0).all()
        dloss: Any = np.array([3.0, np.inf, 3.0]) if reduction == "none" else 3.0
        np.testing.assert_allclose(layer.backward(dloss), 3 * dx, rtol=1e-12)
        assert not np.array_equal(layer.forward(x, INDICES), loss)  # they are those of one batch
    with_z = layers.SoftmaxWithLoss(z_loss=0.1)
    with_z.forward(LOGITS, INDICES)
    with pytest.raises(ValueError, match="use_jacobian: expected no z_loss"):
        with_z.backward(use_jacobian=True)
    report = check(with_z, LOGITS, INDICES)
    assert report, report


def test_softmax_and_its_loss_are_softmax_with_loss() -> None:
    softmax, loss, both = layers.Softmax(), layers.CrossEntropy(), layers.SoftmaxWithLoss()
    np.testing.assert_allclose(
        loss.forward(softmax.forward(LOGITS), INDICES), both.forward(LOGITS, INDICES), rtol=1e-14
    )
    np.testing.assert_allclose(softmax.backward(loss.backward()), both.backward(), rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_get_zeros_whatever_the_upstream_gradient(reduction: str) -> None:
    layer = layers.SoftmaxWithLoss(ignore_index=0, reduction=reduction)
    layer.forward(LOGITS, INDICES)
    dloss = np.full(3, np.inf) if reduction == "none" else np.inf
    dx = layer.backward(dloss)
    assert (dx[2] == 0).all()
    assert np.isinf(dx[:2]).all()


@pytest.mark.parametrize("kind", [layers.CrossEntropy, layers.SoftmaxWithLoss])
def test_the_upstream_gradient_of_a_loss_is_a_real_number(kind: Any) -> None:
    layer = kind()
    layer.forward(K.softmax(LOGITS), INDICES)
    for dloss, error in ((1j, TypeError), ("2", TypeError), (np.array([1.0, 2.0]), ValueError), (10**400, ValueError)):
        with pytest.raises(error, match=r"\w+: dloss: expected "):
            layer.backward(dloss)


def test_a_loss_of_one_row() -> None:
    layer = layers.SoftmaxWithLoss()
    assert float(layer.forward([1.0, 0.0, 3.0], 2)) == pytest.approx(0.16984602, abs=1e-8)
    np.testing.assert_allclose(layer.backward(), [0.1141952, 0.04201007, -0.15620527], atol=1e-8)


def test_ignored_rows_with_a_scaled_loss_in_float16() -> None:
    """Gradients of a mean underflow in float16: `backward` must compute scaled ones anew from the logits."""
    x = np.full((4096, 2), [8.0, -8.0], np.float16)
    x[0] = np.nan
    labels = np.zeros(4096, np.int64)
    labels[0] = -1
    layer = layers.SoftmaxWithLoss(ignore_index=-1)
    layer.forward(x, labels)
    exact = np.exp(-16.0) / 4095 * 2.0**20
    assert layer.backward()[1, 0] == 0
    scaled = layer.backward(2.0**20)
    assert scaled.dtype == np.float16
    np.testing.assert_allclose(scaled[1:].astype(float), np.full((4095, 2), [-exact, exact]), rtol=2e-3)
    assert (scaled[0] == 0).all()
    each = layers.SoftmaxWithLoss(ignore_index=-1, reduction="none")
    each.forward(x, labels)
    upstream = np.full(4096, 2.0**10, np.float32)
    upstream[0] = np.inf
    scaled = each.backward(upstream)
    assert (scaled[0] == 0).all()
    np.testing.assert_allclose(scaled[1:].astype(float), np.full((4095, 2), [-exact, exact]) * 4095 / 2**10, rtol=1e-3)
    for dloss in (np.ones(3), 2.0):
        with pytest.raises(
            ValueError, match=r"SoftmaxWithLoss: dloss: expected the shape of the loss .* \(4096,\), got"
        ):
            each.backward(dloss)


# Memory


@pytest.mark.parametrize("name", LAYERS)
def test_results_that_are_kept_stay_what_they_are(name: str) -> None:
    layer = LAYERS[name]()
    xs, dys = RNG.normal(size=(5, 3, 4)), RNG.normal(size=(5, 3, 4))
    results = [layer.forward(x) for x in xs]
    copies = [layer.forward(x).copy() for x in xs]
    for result, kept in zip(results, copies, strict=True):
        assert (result == kept).all()
    dys = dys[:, :, : results[0].shape[-1]]
    gradients = [layer.backward(dy)[1:] for dy in dys]  # views count as well
    copies = [layer.backward(dy).copy()[1:] for dy in dys]
    for result, kept in zip(gradients, copies, strict=True):
        assert (result == kept).all()


@pytest.mark.parametrize("kind", [layers.Relu, layers.Sigmoid, layers.Softmax])
def test_results_that_a_layer_still_needs_are_read_only(kind: Any) -> None:
    layer = kind()
    y = layer.forward(LOGITS)
    dx = layer.backward(SOFT).copy()
    with pytest.raises(ValueError, match="read-only"):
        y[...] = 7
    with pytest.raises(ValueError, match="read-only"):
        K.relu(y, out=y)
    assert (layer.backward(SOFT) == dx).all()


@pytest.mark.parametrize("kind", [layers.LeakyRelu, layers.Gelu, layers.Silu, lambda: layers.Dropout(0.5, rng=0)])
def test_results_that_a_layer_does_not_need_may_be_written_to(kind: Any) -> None:
    layer = kind()
    y = layer.forward(LOGITS)
    dx = layer.backward(SOFT).copy()
    y[...] = 7
    assert (layer.backward(SOFT) == dx).all()


def test_gradients_of_a_loss_may_be_written_to() -> None:
    for layer, x in ((layers.SoftmaxWithLoss(), LOGITS), (layers.CrossEntropy(), K.softmax(LOGITS))):
        layer.forward(x, INDICES)
        dx = layer.backward()
        before = dx.copy()
        dx *= 0
        again = layer.backward()
        assert (again == before).all()
        assert (dx == 0).all()
        assert (layer.backward() == before).all()


def test_arguments_are_not_written_to() -> None:
    net, loss = network(), layers.CrossEntropy()
    x, labels = RNG.normal(size=(3, 4)), SOFT.copy()
    w = RNG.normal(size=(4, 3))
    layer = layers.Affine(w)
    given = [array.copy() for array in (x, labels, w)]
    p = net.forward(x)
    loss.forward(p, labels)
    dp = loss.backward()
    kept = dp.copy()
    net.backward(dp)
    layer.w += 1
    layer.forward(x)
    layer.backward(RNG.normal(size=(3, 3)))
    for array, before in zip((x, labels, w, dp), (*given, kept), strict=True):
        assert (array == before).all()


def test_batches_of_changing_size_lie_in_the_same_memory() -> None:
    layer = layers.Affine.init(4, 300, rng=0, dtype=np.float64)
    places = set()
    for rows in (80, 30, 80, 28, 50):  # smaller results than these would be new arrays
        x = RNG.normal(size=(rows, 4))
        y = layer.forward(x)
        places.add(y.__array_interface__["data"][0])
        np.testing.assert_allclose(y, x @ layer.w, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(layer.backward(y), y @ layer.w.T, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.dw, x.T @ y, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(layer.db, y.sum(axis=0), rtol=1e-12, atol=1e-12)
        del y
    assert len(places) == 1


def test_views_that_a_backend_allocates_are_not_reused() -> None:
    class Aligned:
        """A backend whose arrays begin at multiples of 64 bytes, in memory of which they are views."""

        def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
            raw = np.empty(int(np.prod(shape)) * dtype.itemsize + 64, np.uint8)
            start = -raw.ctypes.data % 64
            return raw[start : raw.size - 64 + start].view(dtype).reshape(shape)

        def relu(self, x: Any, out: Any) -> None:
            out[...] = np.maximum(x, 0)

    if "aligned" not in backends.available():
        backends.register("aligned", Aligned())
    with backends.use("aligned"):
        layer, kept = layers.Relu(), []
        for i in range(5):
            y = layer.forward(np.full(3, i + 1.0))
            kept.append(y[::-1])
            del y
    assert [float(k[0]) for k in kept] == [1, 2, 3, 4, 5]


def test_a_custom_layer_cannot_write_to_results_that_the_previous_layer_needs() -> None:
    class Identity(layers.Layer):
        def forward(self, x: Any) -> Any:
            return self.keep(x)

        def backward(self, dy: Any) -> Any:
            return dy

    class InPlace(Identity):
        def forward(self, x: Any) -> Any:
            x *= 2
            return self.keep(x)

    for activation in (layers.Relu, layers.Sigmoid, layers.Softmax):
        for behind in (Identity, InPlace, lambda: layers.Sequential(Identity())):
            net = layers.Sequential(layers.Affine.init(4, 3, rng=0), activation(), behind())
            if behind is InPlace:
                with pytest.raises(ValueError, match="read-only"):
                    net.forward(RNG.normal(size=(2, 4)))
            else:
                y = net.forward(RNG.normal(size=(2, 4)))
                with pytest.raises(ValueError, match="read-only"):
                    y -= 1


def test_memory_of_results_that_the_caller_keeps_is_released() -> None:
    layer = layers.Relu()
    held = [layer.forward(np.full(100_000, float(i))) for i in range(10)]
    assert [float(y[0]) for y in held] == list(range(10))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held += [layer.forward(np.full(100_000, float(i))) for i in range(20)]
        held.clear()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 3 * 800_000


@pytest.mark.parametrize("update", ["sgd", "adam"])
def test_a_training_loop_allocates_nothing(update: str) -> None:
    rows, inputs, hidden, classes = 512, 256, 384, 10
    net = layers.Sequential(
        layers.Affine.init(inputs, hidden, rng=0), layers.Relu(), layers.Affine.init(hidden, classes, rng=1)
    )
    loss = layers.SoftmaxWithLoss()
    optimizer = optim.SGD(net.params, 0.1, momentum=0.9) if update == "sgd" else optim.Adam(net.params)
    x = RNG.normal(size=(rows, inputs)).astype(np.float32)
    t = RNG.integers(0, classes, rows)

    def step(some: int) -> Any:
        z = net.forward(x[:some])
        value = loss.forward(z, t[:some])
        net.backward(loss.backward(), needs_dx=False)
        optimizer.step(net.grads)
        return value

    first = float(step(rows))
    step(rows)
    tracemalloc.start()
    try:
        for some in (rows, rows // 3, rows):
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            step(some)
            _, peak = tracemalloc.get_traced_memory()
            # The logits are 20 kB and the hidden layer 786 kB; the pieces that NumPy's updates work in are 262 kB.
            assert peak - before < 300_000, "an array as large as the batch or the parameters was allocated"
    finally:
        tracemalloc.stop()
    assert float(step(rows)) < first


def test_layers_and_functions_give_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    x, t = rng.normal(size=(64, 20)).astype(np.float32), rng.integers(0, 5, 64)
    net = layers.Sequential(layers.Affine.init(20, 32, rng=rng), layers.Relu(), layers.Affine.init(32, 5, rng=rng))
    w1, b1, w2, b2 = (parameter.copy() for parameter in net.params)
    loss = layers.SoftmaxWithLoss()
    for _ in range(3):
        h = K.relu(K.affine(x, w1, b1))
        value, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, w2, b2), t)
        dh, dw2, db2 = K.affine_backward(dz, h, w2)
        dx, dw1, db1 = K.affine_backward(K.relu_backward(dh, h), x, w1)
        assert loss.forward(net.forward(x), t) == value
        assert (net.backward(loss.backward()) == dx).all()
        for mine, theirs in zip(net.grads, (dw1, db1, dw2, db2), strict=True):
            assert (mine == theirs).all()
        grads = net.grads
        assert net.backward(loss.backward(), needs_dx=False) is None
        assert all(a is b for a, b in zip(grads, net.grads, strict=True))
        for parameter, own, gradient in zip(net.params, (w1, b1, w2, b2), grads, strict=True):
            assert (gradient != 0).any()
            parameter -= 0.1 * gradient
            own -= 0.1 * gradient


def test_the_gradient_of_the_inputs_is_left_out_up_to_the_first_parameters() -> None:
    net = layers.Sequential(layers.Relu(), layers.Sequential(layers.MatMul.init(4, 3, rng=0)), layers.Sigmoid())
    net.forward(RNG.normal(size=(2, 4)))
    net.backward(np.ones((2, 3)))
    (dw,) = (gradient.copy() for gradient in net.grads)
    assert net.backward(np.ones((2, 3)), needs_dx=False) is None
    assert (net.grads[0] == dw).all()
    assert layers.Sequential(layers.Relu()).params == ()


def test_other_dtypes_than_the_parameters() -> None:
    layer = layers.Affine.init(4, 3, rng=0)
    x = RNG.normal(size=(5, 4))
    y = layer.forward(x)
    assert y.dtype == np.float64
    dx = layer.backward(y)
    assert dx.dtype == np.float64
    assert layer.dw.dtype == layer.db.dtype == np.float32
    np.testing.assert_allclose(layer.dw, x.T @ y, rtol=1e-6)
    relu = layers.Relu()
    relu.forward(x.astype(np.float32))
    assert relu.backward(x).dtype == np.float64
    assert layers.Affine([[1, 2], [3, 4]], np.ones(2, np.float32)).w.dtype == np.float64


def test_sequences_and_integers() -> None:
    layer = layers.Affine([[1, 2], [3, 4]], [1, 1])
    assert layer.forward([1, 1]).tolist() == [5, 7]
    assert layer.backward([1, 0]).tolist() == [1, 3]
    assert layer.dw.tolist() == [[1, 0], [1, 0]]
    assert layers.Relu().forward([[-1, 2]]).tolist() == [[0, 2]]


@pytest.mark.parametrize("use_jacobian", [False, True])
@pytest.mark.parametrize("is_nested", [False, True])
def test_images_of_bytes_take_the_dtype_of_the_weights(is_nested: bool, use_jacobian: bool) -> None:
    images = RNG.integers(0, 256, (5, 4), np.uint8)
    affine = layers.Affine.init(4, 3, rng=0)
    layer: layers.Layer = layers.Sequential(affine, layers.Relu()) if is_nested else affine
    y = layer.forward(images)
    assert y.dtype == np.float32
    expected = images @ affine.w
    np.testing.assert_allclose(y, np.maximum(expected, 0) if is_nested else expected, rtol=1e-5)
    for dy in (np.ones_like(y), np.ones(y.shape, np.uint8)):
        dx = layer.backward(dy, use_jacobian=use_jacobian)
        passed = (y > 0 if is_nested else dy).astype(np.float32)
        assert dx.dtype == affine.dw.dtype == affine.db.dtype == np.float32
        np.testing.assert_allclose(dx, passed @ affine.w.T, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(affine.dw, images.T @ passed, rtol=1e-5)


# Initial weights and files


def test_weights_are_drawn_with_the_variance_that_the_scheme_says() -> None:
    he = layers.Affine.init(400, 300, rng=np.random.default_rng(3))
    xavier = layers.Affine.init(400, 300, rng=3, scheme="xavier", dtype=np.float64)
    assert he.w.dtype == np.float32
    assert he.w.std() == pytest.approx(np.sqrt(2 / 400), rel=0.01)
    assert xavier.w.std() == pytest.approx(np.sqrt(2 / 700), rel=0.01)
    assert abs(he.w.mean()) < 1e-3
    assert not he.b.any()
    expected = np.random.default_rng(3).normal(scale=np.sqrt(2 / 400), size=(400, 300))
    assert (he.w == expected.astype(np.float32)).all(), "the same numbers on every backend"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_replaced_weights_in_fortran_order_are_stored(suffix: str, tmp_path: Path) -> None:
    layer, other = layers.MatMul(np.zeros((2, 3))), layers.MatMul(np.zeros((2, 3)))
    layer.w = np.arange(6.0).reshape(3, 2).T
    layer.save(tmp_path / f"w{suffix}")
    other.load(tmp_path / f"w{suffix}")
    assert other.w.tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_parameters_are_stored_and_read(dtype: Any, suffix: str, tmp_path: Path) -> None:
    net, other = network(dtype), network(dtype)
    for parameter in other.params:
        parameter[...] = 0
    state = net.state_dict()
    assert list(state) == ["0.w", "0.b", "2.w", "2.b", "4.w"]
    state["0.w"][...] += 1  # a copy
    path = tmp_path / f"net{suffix}"
    net.save(path)
    before = other.params
    other.load(path)
    for mine, theirs, place in zip(net.params, other.params, before, strict=True):
        assert theirs is place
        assert mine.dtype == theirs.dtype == dtype
        assert (mine == theirs).all()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    net = network(np.float32)
    before = net.state_dict()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"0.w": None}, "missing: 0.w"),
        ({"5.w": np.ones(3)}, "unknown: 5.w; expected 0.w, 0.b, 2.w, 2.b, 4.w"),
        ({"2.b": np.ones(4)}, r"2.b: expected shape \(5,\), got \(4,\)"),
        ({"4.w": np.full((5, 3), 1 / 3)}, "4.w: values of dtype float64 would lose digits in float32"),
    )
    for changed, message in cases:
        state = (
            {"0.w": before["0.w"] + 1, "0.b": before["0.b"] + 1} | {k: before[k] for k in list(before)[2:]} | changed
        )
        state = {key: value for key, value in state.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            net.load_state_dict(state)
        for key, value in net.state_dict().items():
            assert (value == before[key]).all()
    for value in (
        np.zeros((4, 6), complex),
        np.zeros((4, 6), int),
        np.zeros((4, 6), np.longdouble),
        np.full((4, 6), "1.0"),
        np.full((4, 6), None),
        np.ma.masked_array(np.zeros((4, 6))),
    ):
        with pytest.raises(TypeError, match="load_state_dict: 0.w: expected floating numbers, got "):
            net.load_state_dict({**before, "0.w": value})
    with pytest.raises(ValueError, match="unknown: 1, z; expected 0.w"):
        net.load_state_dict({**before, 1: 2, "z": 3})  # type: ignore[dict-item]
    net.load_state_dict({key: value.astype(np.float64) for key, value in before.items()})  # loses nothing
    for name in ("net.pkl", "net"):
        with pytest.raises(ValueError, match=r"path: expected a name in .npz or .safetensors"):
            net.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"path: expected a name in .npz or .safetensors"):
            net.load(tmp_path / name)
    evil = tmp_path / "evil.npz"
    with evil.open("wb") as file:
        np.savez(file, **{key: np.full(value.shape, None) for key, value in before.items()})  # pickled by NumPy
    with pytest.raises(
        ValueError, match=r"Sequential.load: .*evil.npz: cannot be read as .npz: Object arrays cannot be"
    ):
        net.load(evil)
    for suffix in (".npz", ".safetensors"):
        text = tmp_path / f"text{suffix}"
        text.write_text("no parameters")
        with pytest.raises(ValueError, match=f"Sequential.load: .*text{suffix}: cannot be read as {suffix}: "):
            net.load(text)
        with pytest.raises(FileNotFoundError, match=f"none{suffix}"):
            net.load(tmp_path / f"none{suffix}")
        with pytest.raises(FileNotFoundError, match="there is no such folder: .*nowhere'"):
            net.save(tmp_path / "nowhere" / f"net{suffix}")


def test_without_safetensors_the_error_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (network().save, network().load):
        with pytest.raises(ModuleNotFoundError, match="install it with: python -m pip install safetensors"):
            call(tmp_path / "net.safetensors")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, path = network(), tmp_path / "net.npz"
    net.save(path)
    written = path.read_bytes()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        net.save(path)
    assert path.read_bytes() == written
    assert [file.name for file in tmp_path.iterdir()] == ["net.npz"]


def npy(shape: tuple[int, ...], numbers: bytes = b"") -> bytes:
    """Return an ``.npy`` file whose header claims this shape, with these bytes as its data."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return written.getvalue() + numbers


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("w.npy", npy((10**15,)))], r"MatMul.load_state_dict: w: expected shape \(2, 3\), got \(1000000000000000,\)"),
        ([("w.npy", npy((10**25,)))], "MatMul.load: .*w.npz: cannot be read as .npz: "),
        ([("w.npy", npy((2, 3), bytes(40)))], "MatMul.load: .*w.npz: cannot be read as .npz: "),
        ([("w.npy", npy((2, 3), bytes(48))), ("c.npy", npy((10**12,)))], "MatMul.load_state_dict: unknown: c"),
        ([("w.npy", npy((2, 3), bytes(48))), ("w", npy((2, 3), bytes(48)))], "it has several arrays named 'w'"),
        ([("w.npy", b"cos\nsystem\n(S'true'\ntR.")], "MatMul.load: .*w.npz: cannot be read as .npz: "),
        ([("w.npy", b"\x93NUMPY\x09\x00" + bytes(100))], "MatMul.load: .*w.npz: cannot be read as .npz: "),
    ],
)
def test_malicious_files_are_refused(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        for name, content in members:
            file.writestr(name, content)
    layer = layers.MatMul(np.ones((2, 3)))
    with pytest.raises(ValueError, match=message):
        layer.load(tmp_path / "w.npz")
    assert (layer.w == 1).all()


def test_unknown_arrays_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, shape in (("w.npy", (2, 3)), ("c.npy", (2**24,))):
            file.writestr(name, npy(shape, bytes(8 * math.prod(shape))))
    tracemalloc.start()
    with pytest.raises(ValueError, match="unknown: c"):
        layers.MatMul(np.ones((2, 3))).load(tmp_path / "w.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22  # of 2**27


def test_several_threads_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"

    def save_and_load(number: int) -> bool:
        mine = layers.MatMul(np.full((20, 30), float(number)))
        for _ in range(30):
            mine.save(path)
            theirs = layers.MatMul(np.zeros((20, 30)))
            theirs.load(path)
            if not 0 < theirs.w[0, 0] == theirs.w.min() == theirs.w.max():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(save_and_load, range(1, 5)))
    assert [file.name for file in tmp_path.iterdir()] == ["w.npz"]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no mode here")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_has_the_usual_mode(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = tmp_path / f"w{suffix}"
    layers.MatMul(np.ones((2, 3))).save(path)
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_any_error_of_a_damaged_file_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError("Invalid argument")  # from a seek to an offset in the damaged file

    layer = layers.MatMul(np.ones((2, 3)))
    layer.save(tmp_path / "w.npz")
    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(ValueError, match="MatMul.load: .*w.npz: cannot be read as .npz: Invalid argument"):
        layer.load(tmp_path / "w.npz")


# Mistakes


@pytest.mark.parametrize("name", LAYERS)
def test_backward_before_forward(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"^\w+: backward: call forward first$"):
        LAYERS[name]().backward(np.ones((3, 3)))


@pytest.mark.parametrize("kind", [layers.CrossEntropy, layers.SoftmaxWithLoss])
def test_losses_backward_before_forward(kind: Any) -> None:
    layer = kind()
    with pytest.raises(RuntimeError, match=rf"^{kind.__name__}: backward: call forward first"):
        layer.backward()
    layer.forward(K.softmax(LOGITS), INDICES)
    with pytest.raises(TypeError, match="t: expected class indices or one number per class, got NoneType"):
        layer.forward(LOGITS)
    with pytest.raises(RuntimeError, match="call forward first"):  # the failed call does not count
        layer.backward()


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda: layers.Affine(np.ones(3)), ValueError, r"Affine: w: expected shape \(in, out\), got \(3,\)"),
    (lambda: layers.Affine(np.ones((2, 3)), np.ones(2)), ValueError, r"Affine: b: expected shape \(3,\)"),
    (lambda: layers.MatMul(np.ones((2, 3), complex)), TypeError, "MatMul: w: expected .* got dtype complex128"),
    (lambda: layers.Affine.init(2, 3, scheme="best"), ValueError, "scheme: expected one of he, xavier; got 'best'"),
    (lambda: layers.Affine.init(0, 3), ValueError, "inputs: expected a positive integer, got 0"),
    (lambda: layers.MatMul.init(2, 3.5), TypeError, "MatMul.init: outputs: expected a positive integer, got 3.5"),
    (
        lambda: layers.Affine.init(2, 3).astype(int),
        TypeError,
        "Affine.astype: dtype: expected a floating dtype, got int",
    ),
    (lambda: layers.SoftmaxWithLoss(reduction="avg"), ValueError, "SoftmaxWithLoss: reduction: expected one of mean, "),
    (
        lambda: layers.Affine.init(2, 3).load_state_dict(layers.Affine.init(2, 3).params),
        TypeError,
        "Affine.load_state_dict: state: expected a dictionary, as state_dict returns, got tuple",
    ),
    (lambda: layers.Affine.init(2, 3, dtype=int), TypeError, "dtype: expected a floating dtype, got int64"),
    (
        lambda: layers.Affine.init(2, 3).forward(np.ones((4, 3))),
        ValueError,
        r"^Affine: affine: x: expected 2 inputs along the last axis.*; if w is \(out, in\), pass w.T",
    ),
    (lambda: layers.Softmax(axis=None), TypeError, "Softmax: axis: expected one integer, got None"),
    (
        lambda: _after_forward(layers.Affine.init(3, 2)).backward(np.ones(2), use_jacobian=True),
        ValueError,
        r"^Affine: use_jacobian: dy: expected shape \(3, 2\), got \(2,\)",
    ),
    (
        lambda: _after_forward(layers.Softmax()).backward(np.ones(3), use_jacobian=True),
        ValueError,
        r"use_jacobian: dy: expected shape \(3, 3\), got \(3,\)",
    ),
    (lambda: _nested(), ValueError, r"expected each layer once, nested ones included, got Relu\(\) twice"),
    (lambda: layers.Sequential(K.relu), TypeError, "Sequential: layer 0: expected a Layer, got function"),
    (lambda: layers.Sequential(layers.Relu), TypeError, "layer 0: expected a Layer, got the class Relu; call it"),
    (lambda: layers.Affine(3, 4), ValueError, r"got \(\); Affine.init\(inputs, outputs\) draws weights of that shape"),
    (
        lambda: layers.Sequential(layers.Relu(), layers.SoftmaxWithLoss()),
        TypeError,
        r"Sequential: layer 1: expected a layer without labels, got SoftmaxWithLoss\(\); call the loss with the result",
    ),
    (
        lambda: layers.Sequential(*[layers.Relu()] * 2),
        ValueError,
        r"Sequential: expected each layer once, nested ones included, got Relu\(\) twice",
    ),
    (
        lambda: _after_forward(layers.Relu()).backward(np.ones((2, 3)), use_jacobian=True),
        ValueError,
        r"use_jacobian: dy: expected shape \(3, 3\), got \(2, 3\)",
    ),
    (
        lambda: _after_forward(layers.Relu()).backward(np.ones((2, 3))),
        ValueError,
        "^Relu: relu_backward: y: expected the shape",
    ),
]


def _nested() -> Any:
    layer = layers.Relu()
    return layers.Sequential(layer, layers.Sequential(layers.Sequential(layer)))


def _after_forward(layer: Any) -> Any:
    layer.forward(LOGITS)
    return layer


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_mistakes(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_errors_name_the_layer_and_its_position() -> None:
    net = layers.Sequential(layers.Affine.init(4, 6, rng=0), layers.Relu(), layers.MatMul.init(5, 3, rng=1))
    x = np.ones((2, 4), np.float32)
    with pytest.raises(
        ValueError, match=r"^Sequential: layer 2 \(MatMul\): affine: x: expected 5 inputs along the last"
    ):
        net.forward(x)
    nested = layers.Sequential(layers.Sigmoid(), net)
    with pytest.raises(
        ValueError, match=r"^Sequential: layer 1 \(Sequential\): layer 2 \(MatMul\): affine: x: expected"
    ):
        nested.forward(x)
    with pytest.raises(TypeError, match=r"^Sequential: layer 0 \(Affine\): affine: x: expected .* got dtype complex64"):
        net.forward(x * 1j)
    net = layers.Sequential(layers.Affine.init(4, 6, rng=0), layers.Relu(), layers.MatMul.init(6, 3, rng=1))
    net.forward(x)
    for options in ({}, {"needs_dx": False}):
        with pytest.raises(ValueError, match=r"^Sequential: layer 2 \(MatMul\): affine_backward: dy: expected shape"):
            net.backward(np.ones((2, 4)), **options)
    with pytest.raises(ValueError, match=r"^Sequential: layer 2 \(MatMul\): use_jacobian: dy: expected shape"):
        net.backward(np.ones((2, 4)), use_jacobian=True)
    with pytest.raises(TypeError, match=r"^Sequential.astype: dtype: expected a floating dtype, got int64"):
        net.astype(np.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.Sigmoid().forward([1j]), "Sigmoid: sigmoid: x: expected .*, got dtype complex128"),
        (lambda: layers.Softmax(axis=2).forward(LOGITS), "Softmax: softmax: axis: expected an axis in"),
        (
            lambda: layers.CrossEntropy().forward(ONE_HOT, [0, 1, 7]),
            "CrossEntropy: cross_entropy: t: expected labels in",
        ),
        (
            lambda: layers.SoftmaxWithLoss().forward(LOGITS, [0, 1]),
            "SoftmaxWithLoss: softmax_cross_entropy_value_and_grad: t: expected class indices",
        ),
        (
            lambda: layers.SoftmaxWithLoss(weight=[1.0]).forward(LOGITS, INDICES),
            "SoftmaxWithLoss: softmax_cross_entropy_value_and_grad: weight: expected one weight per class",
        ),
        (lambda: _after_forward(layers.Sigmoid()).backward("x"), "Sigmoid: sigmoid_backward: dy: expected"),
    ],
)
def test_errors_of_kernels_begin_with_the_layer(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_errors_of_classes_of_their_own_stay_as_they_are() -> None:
    class OwnError(ValueError):
        def __init__(self, row: int, column: int) -> None:
            super().__init__(row, column)

    class Failing(layers.Layer):
        def forward(self, x: Any) -> Any:
            raise OwnError(1, 2) if x is None else ValueError("too large")

        def backward(self, dy: Any) -> Any:
            raise TypeError

    net = layers.Sequential(Failing())
    with pytest.raises(OwnError) as caught:
        net.forward(None)
    assert caught.value.args == (1, 2)
    with pytest.raises(ValueError, match=r"^Sequential: layer 0 \(Failing\): too large$"):
        net.forward(1.0)
    with pytest.raises(TypeError, match=r"^Sequential: layer 0 \(Failing\): $"):
        net.backward(1.0)


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        layers.Softmax(0)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        layers.SoftmaxWithLoss(-1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional argument"):
        layers.Affine.init(2, 3, 0)  # type: ignore[misc]


# Layers without biases


@pytest.mark.parametrize(
    "made", [lambda w: layers.Affine(w), lambda w: layers.Affine(w, None), lambda w: layers.MatMul(w)]
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_layer_without_biases(made: Any, suffix: str, tmp_path: Path) -> None:
    w, x, dy = RNG.normal(size=(4, 3)), RNG.normal(size=(5, 4)), RNG.normal(size=(5, 3))
    layer = made(w)
    assert layer.b is None
    assert layer.db is None
    assert [name for name, _ in layer.named_params()] == ["w"]
    np.testing.assert_allclose(layer.forward(x), x @ w, rtol=1e-14)
    np.testing.assert_allclose(layer.backward(dy), dy @ w.T, rtol=1e-14)
    (dw,) = layer.grads
    np.testing.assert_allclose(dw, x.T @ dy, rtol=1e-14)
    np.testing.assert_allclose(layer.backward(dy, use_jacobian=True), dy @ w.T, rtol=1e-12)
    np.testing.assert_allclose(dw, x.T @ dy, rtol=1e-12)
    assert layer.backward(dy, needs_dx=False) is None
    assert layer.astype(np.float32).params[0].dtype == np.float32
    assert pickle.loads(pickle.dumps(layer)).names == ("w",)
    layer.save(tmp_path / f"w{suffix}")
    other = made(np.zeros((4, 3)))
    other.load(tmp_path / f"w{suffix}")
    assert (other.w == w).all()
    with pytest.raises(ValueError, match="Affine.load_state_dict: missing: b"):
        layers.Affine(w, np.zeros(3)).load(tmp_path / f"w{suffix}")
    with pytest.raises(ValueError, match="load_state_dict: unknown: b; expected w"):
        layer.load_state_dict({"w": w, "b": np.zeros(3)})
    report = check(layer, x)
    assert report, report
    assert [found.name for found in report.gradients] == ["dx", "dw"]


# Custom layers


class OfKernel(Activation):
    """The layer of a kernel by its name alone, with the Jacobian of any elementwise kernel."""

    kernel = "sigmoid"


def test_a_layer_of_an_elementwise_kernel_needs_its_name_only() -> None:
    layer, sigmoid, x, dy = OfKernel(), layers.Sigmoid(), RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    assert repr(layer) == "OfKernel()"
    assert (layer.forward(x) == sigmoid.forward(x)).all()
    assert (layer.backward(dy) == sigmoid.backward(dy)).all()
    np.testing.assert_allclose(layer.backward(dy, use_jacobian=True), sigmoid.backward(dy), rtol=1e-12)
    with pytest.raises(ValueError, match="^OfKernel: sigmoid_backward: y: expected the shape of dy"):
        layer.backward(np.ones(3))
    layer.forward(1.0)
    with pytest.raises(ValueError, match="^OfKernel: use_jacobian: expected an array of at least one dimension"):
        layer.backward(1.0, use_jacobian=True)


def test_pickles_name_the_public_module() -> None:
    for name in layers.__all__:
        assert getattr(layers, name).__module__ == "plugrad.kernels.layers"
    net = network()
    net.forward(RNG.normal(size=(3, 4)))
    stored = pickle.dumps(net)
    assert b"plugrad.kernels.layers" in stored
    assert b"plugrad.kernels.layers." not in stored


class Tanh(layers.Layer):
    """A layer as the docstring of `Layer` describes it."""

    def forward(self, x: Any) -> Any:
        return self.keep(np.tanh(x))

    def backward(self, dy: Any) -> Any:
        return dy * (1 - self.saved() ** 2)


class Scale(layers.Layer):
    names = ("g",)

    def __init__(self, size: int) -> None:
        self.g, self.dg = np.ones(size), np.zeros(size)

    def forward(self, x: Any) -> Any:
        return self.keep(x) * self.g

    def backward(self, dy: Any) -> Any:
        self.dg[...] = (dy * self.saved()).sum(axis=0)
        return dy * self.g


class Perceptron(layers.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            layers.Affine.init(inputs, 6, rng=0, dtype=np.float64),
            Tanh(),
            Scale(6),
            layers.Relu(),
            layers.Sigmoid(),
            layers.Affine.init(6, outputs, rng=1, dtype=np.float64),
        )


def test_custom_layers() -> None:
    net = Perceptron(4, 3)
    report = check(net, RNG.normal(size=(5, 4)), [0, 1, 2, 0, 1], loss=layers.SoftmaxWithLoss())
    assert report, report
    assert [found.name for found in report.gradients] == ["dx", "d0.w", "d0.b", "d2.g", "d5.w", "d5.b"]
    net.forward(RNG.normal(size=(5, 4)))
    assert net.backward(np.ones((5, 3)), needs_dx=False) is None
    assert isinstance(net.astype(np.float32), Perceptron)
    assert repr(Tanh()) == "Tanh()"
    with pytest.raises(RuntimeError, match="Tanh: backward: call forward first"):
        Tanh().backward(1.0)


def test_a_residual_is_a_sequential_that_adds_its_input() -> None:
    class Residual(layers.Sequential):
        def forward(self, x: Any) -> Any:
            return x + super().forward(x)

        def backward(self, dy: Any) -> Any:
            return dy + super().backward(dy)

    net = layers.Sequential(
        Residual(layers.Affine.init(4, 4, rng=0, dtype=np.float64), layers.Sigmoid()),
        layers.Affine.init(4, 3, rng=0, dtype=np.float64),
    )
    report = check(net, RNG.normal(size=(5, 4)), [0, 1, 2, 0, 1], loss=layers.SoftmaxWithLoss())
    assert report, report
    assert len(report.gradients) == 5
    net.forward(RNG.normal(size=(5, 4)))
    assert net.backward(np.ones((5, 3)), needs_dx=False) is None


def test_a_network_without_layers_changes_nothing() -> None:
    net = layers.Sequential()
    assert net.forward(LOGITS) is LOGITS
    assert net.backward(SOFT) is SOFT
    assert net.backward(SOFT, needs_dx=False) is None
    assert net.params == net.grads == ()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
def test_copies_are_networks_of_their_own(copied: Any) -> None:
    net, x = network(), RNG.normal(size=(3, 4))
    y = net.forward(x)
    other = copied(net)
    before = y.copy()
    dx = net.backward(SOFT).copy()
    if copied is copy.deepcopy:
        assert (other.backward(SOFT) == dx).all(), "a copy includes the saved results"
        assert (copied(net).grads[0] == net.grads[0]).all()
    else:
        with pytest.raises(RuntimeError, match="call forward first"):
            other.backward(SOFT)
        assert not any(gradient.any() for gradient in copied(net).grads)
    for parameter in other.params:
        parameter += 1
    assert not np.allclose(other.forward(x), before)
    assert (net.forward(x) == before).all()
    assert (net.backward(SOFT) == dx).all()


def test_a_stored_network_has_the_size_of_its_parameters() -> None:
    net = layers.Sequential(
        layers.Affine.init(50, 40, rng=0), layers.Relu(), Norm(40), layers.Affine.init(40, 9, rng=1)
    )
    loss = layers.SoftmaxWithLoss()
    fresh, alone = pickle.dumps(net), pickle.dumps(loss)
    assert len(fresh) < sum(p.nbytes for p in net.params) + 3000
    net.backward(loss.backward(loss.forward(net.forward(np.ones((700, 50), np.float32)), np.zeros(700, int))))
    assert len(pickle.dumps(net)) < len(fresh) + 100
    assert len(pickle.dumps(loss)) == len(alone)


class Norm(layers.Layer):
    """Batch normalisation as people write it: gradients are bound anew, running means are numbers of the layer."""

    names = ("g",)
    buffers = ("mean", "count", "rate")

    def __init__(self, size: int) -> None:
        self.g = np.ones(size, np.float32)
        self.dg = np.zeros(size, np.float32)
        self.mean = np.zeros(size, np.float32)
        self.count = np.array(0)
        self.rate = 0.9

    def forward(self, x: Any) -> Any:
        self.mean = self.rate * self.mean + (1 - self.rate) * x.mean(axis=0)
        self.count = self.count + 1  # NumPy makes a number of an array without dimensions
        return self.keep(x) * self.g

    def backward(self, dy: Any) -> Any:
        self.dg = (dy * self.saved()).sum(axis=0)
        return dy * self.g


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_a_layer_of_ones_own_may_be_bound_anew(dtype: Any) -> None:
    net = layers.Sequential(Norm(3), layers.MatMul(np.ones((3, 2), np.float32)))
    grads, gradient, layer = net.grads, net.grads[0], cast(Norm, net[0])
    optimizer, x = optim.SGD(net.params, lr=1.0), RNG.normal(size=(4, 3)).astype(dtype)
    for _ in range(2):
        net.forward(x)
        net.backward(np.ones((4, 2), dtype))
        expected = 2 * x.sum(axis=0)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5)
        assert layer.dg is gradient
        assert gradient.dtype == np.float32
        optimizer.step(grads)
        net[1].w[...] = 1
    np.testing.assert_allclose(layer.g, 1 - 2 * expected, rtol=1e-4)
    layer.g, layer.dg = np.ones(5), np.ones(5)  # another parameter has another gradient
    assert net.grads[0].shape == (5,)
    for copied in (copy.copy, copy.deepcopy, lambda x: x.astype(np.float16)):
        other = copied(layer)
        before = layer.dg.copy()
        other.dg = np.full(5, 7.0)
        assert (layer.dg == before).all()
        assert other.dg.dtype == other.g.dtype
        assert (other.dg == 7).all()


class Normed(Norm):
    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def test_a_layer_may_set_its_attributes_as_it_likes() -> None:
    layer = Normed(2)
    gradient = layer.dg
    layer.dg = np.ones(2, np.float32)
    assert layer.dg is not gradient


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_buffers_are_stored(suffix: str, tmp_path: Path) -> None:
    net = layers.Sequential(layers.Relu(), layers.Sequential(Norm(3)))
    for _ in range(3):
        net.forward(RNG.normal(size=(4, 3)).astype(np.float32))
    layer = net[1][0]
    layer.rate = 0.5
    net.save(tmp_path / f"net{suffix}")
    other = layers.Sequential(layers.Relu(), layers.Sequential(Norm(3)))
    other.load(tmp_path / f"net{suffix}")
    loaded = other[1][0]
    np.testing.assert_array_equal(loaded.mean, layer.mean)
    assert (int(loaded.count), loaded.rate, type(loaded.rate)) == (3, 0.5, float)
    assert list(net.state_dict()) == ["1.0.g", "1.0.mean", "1.0.count", "1.0.rate"]
    assert other.astype(np.float64)[1][0].mean.dtype == np.float64
    state = net.state_dict()
    for key, value, error, message in (
        ("1.0.count", 1.5, TypeError, "1.0.count: expected integers, got dtype float64"),
        ("1.0.mean", np.ones(3, int), TypeError, "1.0.mean: expected floating numbers, got dtype int64"),
        ("1.0.mean", np.ones(2), ValueError, r"1.0.mean: expected shape \(3,\), got \(2,\)"),
        ("1.0.z", np.ones(2), ValueError, "unknown: 1.0.z; expected 1.0.g, 1.0.mean"),
    ):
        with pytest.raises(error, match=f"Sequential.load_state_dict: {message}"):
            other.load_state_dict({**state, key: value})
    layer.mean = None
    with pytest.raises(TypeError, match="Norm: buffers: mean: expected an array or a number, got NoneType"):
        net.state_dict()


def test_a_file_of_another_network_is_named(tmp_path: Path) -> None:
    layers.Affine(np.ones((2, 3)), np.ones(3)).save(tmp_path / "w.npz")
    layer = layers.MatMul(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"w.npz: MatMul.load_state_dict: unknown: b; expected w"):
        layer.load(tmp_path / "w.npz")
    assert not layer.w.any()


def test_wide_data_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_wide_inputs.cache_clear()
    net = layers.Sequential(layers.Affine.init(3, 2, rng=0), layers.Affine.init(2, 2, rng=0))
    net.forward(np.ones((2, 3), np.float32))
    net.astype(np.float64).forward(np.ones((2, 3), np.float32))
    assert not caplog.records
    for _ in range(2):
        net.forward(np.ones((2, 3)))
    assert [record.message for record in caplog.records] == [
        "float64 data and float32 parameters: all layers compute in float64, which takes longer; "
        "pass x.astype('float32') to avoid it"
    ]
    assert caplog.records[0].name == "plugrad"


def test_representations() -> None:
    assert repr(network()) == ("Sequential(Affine(4, 6), Relu(), Affine(6, 5), Sigmoid(), MatMul(5, 3), Softmax())")
    assert repr(layers.Affine(np.ones((2, 3)))) == "Affine(2, 3, no bias)"
    assert repr(layers.Softmax()) == "Softmax()"
    assert repr(layers.Softmax(axis=0)) == "Softmax(axis=0)"
    assert repr(layers.SoftmaxWithLoss(reduction="sum")) == "SoftmaxWithLoss(reduction='sum')"
    net = network()
    assert len(net) == 6
    assert net[1] is list(net)[1]


def test_a_network_may_be_called_and_made_of_a_list() -> None:
    stack = [layers.Affine([[1.0, 2.0]]), layers.Relu()]
    net, x = layers.Sequential(stack), np.array([[3.0], [-1.0]])
    np.testing.assert_array_equal(net(x), layers.Sequential(*stack).forward(x))
    assert net.layers == tuple(stack)
    assert layers.SoftmaxWithLoss()([[0.0, 0.0]], [1]) == pytest.approx(np.log(2))
    with pytest.raises(TypeError, match="Sequential: layer 1: expected a Layer, got int"):
        layers.Sequential([stack[0], 3])  # type: ignore[list-item]


@pytest.mark.parametrize("batches", [None, 0, 1, 3], ids=["before", "unused", "used", "captured"])
@pytest.mark.parametrize("place", ["instance", "class"])
@pytest.mark.parametrize("name", ["forward", "backward"])
def test_methods_that_a_user_replaces_are_called(
    place: str, name: str, batches: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the network is made of the layers, or after some batches; and no longer once they are put back."""
    stack = [layers.Affine(np.ones((3, 2)), np.zeros(2)), layers.Relu(), layers.Affine(np.ones((2, 2)))]
    calls: list[str] = []

    def counted(layer: Any) -> Any:
        target = layer if place == "instance" else type(layer)
        method = getattr(target, name)
        return target, functools.wraps(method)(lambda *args, **kwargs: (calls.append(name), method(*args, **kwargs))[1])

    def pass_through() -> None:
        net.backward(np.ones_like(net.forward(np.ones((4, 3)))))

    net = layers.Sequential(*stack)
    for _ in range(batches or 0):
        pass_through()
    for target, method in [counted(layer) for layer in stack[:2]]:
        monkeypatch.setattr(target, name, method)
    if batches is None:
        net = layers.Sequential(*stack)
    for number in range(1, 4):
        pass_through()
        assert len(calls) == number * (3 if place == "class" else 2)  # the class of two layers
    monkeypatch.undo()
    pass_through()
    assert len(calls) == 3 * (3 if place == "class" else 2)


def test_layers_that_are_replaced_compute() -> None:
    net = layers.Sequential(layers.Affine.init(3, 2, rng=0), layers.Relu())
    x = np.ones((4, 3), np.float32)
    for _ in range(3):
        net.forward(x)
    net.layers = (layers.Affine.init(3, 5, rng=1),)
    np.testing.assert_array_equal(net.forward(x), net.layers[0].forward(x))
    assert net.backward(np.ones((4, 5), np.float32)).shape == (4, 3)


def test_results_without_dimensions_are_arrays() -> None:
    for layer in (layers.Relu(), layers.Sequential(layers.Relu(), layers.Sigmoid())):
        assert isinstance(layer.forward(1.0), np.ndarray)
        assert isinstance(layer.backward(1.0), np.ndarray)


def test_weights_of_another_shape_are_refused() -> None:
    layer = layers.Affine(np.ones((3, 2)))
    layer.w = np.ones(3)
    with pytest.raises(ValueError, match=r"Affine: affine: w: expected shape \(in, out\), got \(3,\)"):
        layer.forward(np.ones((1, 3)))
