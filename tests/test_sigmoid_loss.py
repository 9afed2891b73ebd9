"""Sigmoid and binary cross-entropy: numbers worked out apart, the layer, and what a user meets first."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends.options import BinaryLossOptions
from plugrad.kernels import layers, optim
from plugrad.kernels.gradcheck import check

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4))
LABELS = np.array([[0, 1, 1, 0], [1, 1, -1, 0], [0, 0, 1, 0]])


@pytest.fixture(autouse=True, params=["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Any:
    """The backends that compute on the host."""
    with backends.use(request.param):
        yield request.param


def test_numbers_worked_out_by_hand() -> None:
    """With 2 log(2) = 1.386294 for a label of 1 of pos_weight 2 at a logit of 0, and log(1 + e) = 1.313262 at 1."""
    loss, y = K.sigmoid_cross_entropy([0.0, 1.0], [1, 0], pos_weight=2.0, reduction="none")
    np.testing.assert_allclose(loss, [2 * math.log(2), math.log(1 + math.e)], rtol=1e-15)
    np.testing.assert_allclose(y, [0.5, math.e / (1 + math.e)], rtol=1e-15)
    loss, dx = K.sigmoid_cross_entropy_value_and_grad(
        [0.0, 0.0, 0.0], [1, 0, -1], weight=[1.0, 3.0, 5.0], ignore_index=-1
    )
    assert loss == pytest.approx(2 * math.log(2))
    np.testing.assert_allclose(dx, [-0.25, 0.75, 0.0], rtol=1e-15)


def test_confident_elements() -> None:
    loss, dx = K.sigmoid_cross_entropy_value_and_grad(np.array([40.0, -40.0], np.float32), [1, 0], reduction="none")
    np.testing.assert_allclose(loss, 4.248354e-18, rtol=1e-6)
    np.testing.assert_allclose(dx, [-4.248354e-18, 4.248354e-18], rtol=1e-6)


def test_two_classes_by_one_logit_are_those_of_softmax() -> None:
    t = RNG.integers(0, 2, 9)
    x = RNG.normal(size=9)
    loss, dx = K.sigmoid_cross_entropy_value_and_grad(x, t)
    expected, dz = K.softmax_cross_entropy_value_and_grad(np.stack([np.zeros(9), x], axis=1), t)
    assert loss == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(dx, dz[:, 1], rtol=1e-13)


# The options


@pytest.mark.parametrize(
    ("dtype", "index", "expected"),
    [
        (np.int8, -1, -1),
        (np.int8, 200, None),
        (np.uint64, 2**64 - 1, 2**64 - 1),
        (bool, 1, 1),
        (bool, -1, None),
        (np.float32, -1, -1.0),
        (np.float16, 2**20, None),
        (np.float16, 2049, None),
        (ml_dtypes.bfloat16, 2**70, 2.0**70),
        (np.float64, 10**400, None),
        (np.float64, None, None),
    ],
)
def test_the_label_that_ignored_elements_have(dtype: Any, index: int | None, expected: float | None) -> None:
    options = BinaryLossOptions("kernel", None, None, index, 0.0, "mean")
    found = options.ignored_label(np.dtype(dtype))
    assert found == expected
    assert type(found) is type(expected)


def test_a_label_of_a_single_number() -> None:
    assert K.sigmoid_cross_entropy(0.0, True)[0] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match=r"t: expected labels in \[0, 1\], got 2; give one label in \[0, 1\] for each"):
        K.sigmoid_cross_entropy(0.0, 2)
    with pytest.raises(ValueError, match=r"got -3 at 1; give one label in \[0, 1\] for each logit$"):
        K.sigmoid_cross_entropy([0.0, 1.0], [-1, -3], ignore_index=-1)


# The layer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none"},
    {"weight": [[1.0], [2.0], [0.5]], "pos_weight": [3.0, 1.0, 0.5, 2.0]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_layer(options: dict[str, Any]) -> None:
    options = {**options, "ignore_index": -1}
    layer = layers.SigmoidWithLoss(**options)
    loss, dx = K.sigmoid_cross_entropy_value_and_grad(LOGITS, LABELS, **options)
    np.testing.assert_array_equal(layer.forward(LOGITS, LABELS), loss)
    np.testing.assert_array_equal(layer.backward(), dx)
    dloss = RNG.normal(size=LOGITS.shape) if options.get("reduction") == "none" else 3.0
    scaled = layer.backward(dloss)
    np.testing.assert_allclose(scaled, dx * dloss, rtol=1e-14)
    np.testing.assert_allclose(layer.backward(), dx, rtol=1e-15)
    np.testing.assert_allclose(layer.backward(dloss, use_jacobian=True), scaled, rtol=1e-12, atol=1e-16)
    summed = {**options, "reduction": "sum"} if options.get("reduction") == "none" else options
    assert check(layers.SigmoidWithLoss(**summed), LOGITS, LABELS)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_elements_get_zeros_whatever_the_upstream_gradient(reduction: str) -> None:
    layer = layers.SigmoidWithLoss(ignore_index=-1, reduction=reduction)
    layer.forward(LOGITS, LABELS)
    dx = layer.backward(np.full(LOGITS.shape, np.inf) if reduction == "none" else np.inf)
    assert (dx[LABELS == -1] == 0).all()
    assert np.isinf(dx[LABELS != -1]).all()


def test_options_and_errors_of_the_layer() -> None:
    assert repr(layers.SigmoidWithLoss()) == "SigmoidWithLoss()"
    assert (
        repr(layers.SigmoidWithLoss(pos_weight=2.0, reduction="sum"))
        == "SigmoidWithLoss(reduction='sum', pos_weight=2.0)"
    )
    layer = layers.SigmoidWithLoss()
    with pytest.raises(
        ValueError, match=r"^SigmoidWithLoss: sigmoid_cross_entropy_value_and_grad: t: expected the shape"
    ):
        layer.forward(LOGITS, [0, 1, 1])
    layer.forward(LOGITS, LABELS == 1)
    for dloss, error in ((1j, TypeError), ("2", TypeError), (np.ones(2), ValueError), (10**400, ValueError)):
        with pytest.raises(error, match="SigmoidWithLoss: dloss: expected "):
            layer.backward(dloss)


def _problem(pos_weight: Any) -> tuple[layers.Sequential, layers.SigmoidWithLoss, optim.Adam]:
    net = layers.Sequential(layers.Affine.init(6, 8, rng=0), layers.Relu(), layers.Affine.init(8, 3, rng=1))
    return net, layers.SigmoidWithLoss(pos_weight=pos_weight), optim.Adam(net.params, 0.05)


@pytest.mark.parametrize("pos_weight", [np.array([1, 2, 0.5], np.float32), 2.0])
def test_a_network_learns_several_labels_by_captured_steps(pos_weight: Any) -> None:
    """Each label is the sign of a feature; the captured steps have the bits of plain ones."""
    x = RNG.normal(size=(64, 6)).astype(np.float32)
    t = x[:, :3] > 0
    plain, loss, optimizer = _problem(pos_weight)
    net, *others = _problem(pos_weight)
    training = layers.TrainingStep(net, *others)
    for _ in range(60):
        value = loss.forward(plain.forward(x), t)
        plain.backward(loss.backward())
        optimizer.step(plain.grads)
        assert training.step(x, t) == value
    for mine, theirs in zip(net.params, plain.params, strict=True):
        assert mine.tobytes() == theirs.tobytes()
    assert ((net.forward(x) > 0) == t).mean() > 0.97


def test_a_wrong_label_at_a_replay_changes_nothing() -> None:
    x, t = LOGITS.copy(), (LABELS == 1).astype(np.int32)
    weight = np.ones(4)
    with K.capture() as graph:
        loss, dx = K.sigmoid_cross_entropy_value_and_grad(x, t, weight=weight)
    before = float(loss), dx.copy()
    t[1, 2] = 7
    with pytest.raises(
        ValueError, match=r"^sigmoid_cross_entropy_value_and_grad: t: expected labels .* got 7 at \(1, 2\)"
    ):
        graph.replay()
    assert float(loss) == before[0]
    np.testing.assert_array_equal(dx, before[1])
    t[1, 2] = 1
    weight[...] = 2.0
    graph.replay()
    expected, gradient = K.sigmoid_cross_entropy_value_and_grad(x, t, weight=weight)
    assert float(loss) == expected
    np.testing.assert_array_equal(dx, gradient)


def test_arguments_that_a_capture_would_have_to_convert_are_refused() -> None:
    with K.capture():
        for t, options in (
            (LABELS.astype(">i4"), {"ignore_index": -1}),
            (LABELS.tolist(), {"ignore_index": -1}),
            (LABELS == 1, {"pos_weight": np.ones(4, np.float32)}),
        ):
            with pytest.raises(TypeError, match="convert it before the block"):
                K.sigmoid_cross_entropy(LOGITS, t, **options)
