"""Golden numbers from five notebooks in which people work out backpropagation by hand, and the mistakes made there.

The notebooks are independent of this library and of each other, and they print what they compute: numbers that no code
of ours had a hand in. Where a notebook is wrong, its value stands here beside the right one: its mistake is a likely
one, and these kernels must not make it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K

BACKEND = "numpy"


@pytest.fixture(autouse=True)
def _on_one_backend() -> Iterator[None]:
    with backends.use(BACKEND):
        yield


def single(x: Any) -> Any:
    return backends.asarray(np.array(x, np.float32))


def double(x: Any) -> Any:
    return backends.asarray(np.array(x, np.float64))


def assert_printed(actual: Any, printed: Any, decimals: int = 8) -> None:
    """`actual` rounds to what was printed with so many decimals."""
    np.testing.assert_allclose(backends.to_numpy(actual), printed, rtol=0, atol=0.5001 * 10.0**-decimals)


def assert_printed_in_single(actual: Any, printed: Any) -> None:
    """`actual`, of dtype float32, is what was printed to seven digits: the eighth is up to the order of summation."""
    assert actual.dtype == np.float32
    np.testing.assert_allclose(backends.to_numpy(actual), printed, rtol=5e-7, atol=0)


def assert_far(actual: Any, wrong: Any, by: float) -> None:
    assert np.abs(backends.to_numpy(actual) - np.asarray(wrong)).max() > by


def probabilities(x: Any) -> Any:
    e = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def jacobian(y: Any) -> Any:
    return np.diag(y) - np.outer(y, y)


def slopes(f: Callable[[Any], Any], x: Any, h: float = 1e-5) -> Any:
    """Central differences of the scalar `f` at `x`."""
    x = np.asarray(x, np.float64)
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return np.reshape([(f(x + step) - f(x - step)) / (2 * h) for step in steps], x.shape)


# The notebook on Jacobians of softmax, ReLU and a matrix product, checked against PyTorch

UPSTREAM = [1.0, -4.0, 9.0]
SOFTMAX_103 = [0.1141952, 0.04201007, 0.84379473]


def test_softmax_and_its_gradient_as_a_jacobian_and_pytorch_have_them() -> None:
    y = K.softmax([1.0, 0.0, 3.0])
    assert_printed(y, SOFTMAX_103)
    assert_printed(K.softmax_backward(UPSTREAM, y), [-0.74687172, -0.48480908, 1.23168081])
    y = K.softmax(single([1.0, 0.0, 3.0]))
    assert_printed_in_single(y, [0.11419519037008286, 0.04201006516814232, 0.8437947034835815])
    dx = K.softmax_backward(single(UPSTREAM), y)
    assert_printed_in_single(dx, [-0.7468716502189636, -0.48480910062789917, 1.2316807508468628])


def test_the_input_shown_is_not_the_input_of_what_is_printed() -> None:
    """The notebook shows [1, 9, 3], of which only the gradient of ReLU is; all else was printed for [1, 0, 3]."""
    shown, meant = [1.0, 9.0, 3.0], [1.0, 0.0, 3.0]
    y = K.softmax(shown)
    assert_far(y, SOFTMAX_103, by=0.8)
    np.testing.assert_allclose(backends.to_numpy(y), probabilities(shown), rtol=1e-14)
    by_jacobian = jacobian(probabilities(shown)) @ UPSTREAM
    np.testing.assert_allclose(backends.to_numpy(K.softmax_backward(UPSTREAM, y)), by_jacobian, rtol=1e-12)
    assert_printed(K.relu(meant), [1, 0, 3])
    assert_printed(K.relu(shown), [1, 9, 3])
    assert_printed(K.relu_backward(UPSTREAM, K.relu(shown)), [1, -4, 9])
    assert_printed(K.relu_backward(UPSTREAM, K.relu(meant)), [1, 0, 9])


def test_the_notebook_shifts_its_input_in_place_and_softmax_does_not() -> None:
    """Told to normalise, it subtracts the maximum from the caller's array, which is [-2, -3, 0] after the call."""
    x = double([1.0, 0.0, 3.0])
    assert_printed(K.softmax(x), SOFTMAX_103)
    assert backends.to_numpy(x).tolist() == [1, 0, 3]
    assert_printed(K.softmax([-2.0, -3.0, 0.0]), SOFTMAX_103)


def test_unshifted_exponentials_overflow_and_softmax_does_not() -> None:
    """Three notebooks (on Jacobians, on derivations in SymPy, on finite differences) do not shift unless asked to."""
    x = np.array([1001.0, 1000.0, 1003.0])
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.isnan(np.exp(x) / np.exp(x).sum()).all()
    assert_printed(K.softmax(double(x)), SOFTMAX_103)
    loss, dx = K.softmax_cross_entropy_value_and_grad(double(x), 2)
    assert_printed(loss, 0.16984602)
    assert_printed(dx, [0.1141952, 0.04201007, -0.15620527])


def test_a_softmax_of_the_whole_array_is_no_softmax_of_its_rows() -> None:
    """The notebooks on Jacobians and in SymPy sum over all of an array, which is right for a single row.

    So does the first with the maximum, by which rows of much smaller logits become zeros.
    """
    batch = np.array([[1.0, 0.0, 3.0], [-999.0, -1000.0, -997.0]])
    whole = np.exp(batch - batch.max())
    assert_printed(whole / whole.sum(), [SOFTMAX_103, [0, 0, 0]])
    unshifted = np.exp(batch[[0, 0]])
    assert_printed(unshifted / unshifted.sum(), np.array([SOFTMAX_103, SOFTMAX_103]) / 2)
    assert_printed(K.softmax(double(batch)), [SOFTMAX_103, SOFTMAX_103])
    assert_printed(K.softmax(double(batch)), [probabilities(row) for row in batch], decimals=14)


# The notebook on vector and matrix backpropagation with graph nodes


def test_softmax_and_relu_of_integers() -> None:
    dy = [1, 2, 3, 2, 1]
    y = K.softmax([0, 1, 2, 3, 4])
    assert_printed(y, [0.01165623, 0.03168492, 0.08612854, 0.23412166, 0.63640865])
    assert_printed(K.softmax_backward(dy, y), [-0.00510617, 0.01780491, 0.1345273, 0.13156147, -0.27878751])
    y = K.relu([0, -1, 2, -1, 4])
    assert_printed(y, [0, 0, 2, 0, 4])
    assert_printed(K.relu_backward(dy, y), [0, 0, 3, 0, 1])
    y = K.relu([[0, -1, 2, -1, 4]] * 2)
    assert_printed(y, [[0, 0, 2, 0, 4]] * 2)
    assert_printed(K.relu_backward([dy] * 2, y), [[0, 0, 3, 0, 1]] * 2)


def test_the_gradient_of_the_weights_of_one_row() -> None:
    """The layer is said to be Y = XW, but its 3 inputs have 4 rows of gradients: the first is that of a bias.

    Inputs and upstream gradient were random numbers and are not printed. But the bias's row is the upstream gradient,
    and the others are its multiples by the inputs, which leaves 12 of 15 numbers to be checked.
    """
    bias = [0.39846947, 0.6232179, 0.92781628, 0.2222169, 0.52429699]
    weights = [
        [0.39761295, 0.62187827, 0.92582189, 0.22173923, 0.52316999],
        [0.34877575, 0.54549546, 0.81210692, 0.19450389, 0.45891113],
        [0.27312598, 0.42717701, 0.63596021, 0.15231583, 0.35937289],
    ]
    x = np.sum(weights, axis=1) / np.sum(bias)
    assert ((x > 0) & (x < 1)).all()
    _, dw, db = K.affine_backward([bias], double([x]), double(np.zeros((3, 5))), needs=("dw", "db"))
    assert_printed(db, bias)
    np.testing.assert_allclose(backends.to_numpy(dw), weights, rtol=0, atol=2e-8)  # the inputs are rounded as well


def test_the_jacobians_of_a_product_are_not_those_the_notebook_writes_down() -> None:
    """An output y_ij depends on row i of x and column j of w; the notebook says column j of x and row i of w.

    Its printed gradients do not come from these formulas: contracted with dy they give other gradients.
    """
    x = dy = np.array([[1.0, 2.0], [3.0, 4.0]])
    w = np.array([[5.0, 6.0], [7.0, 8.0]])
    dx, dw, _ = K.affine_backward(double(dy), double(x), double(w))
    as_written_dx, as_written_dw = dy.sum(0) * w, dy.sum(0)[:, None] * x
    assert_printed(as_written_dx, [[20, 36], [28, 48]])
    assert_printed(as_written_dw, [[4, 8], [18, 24]])
    assert_printed(dx, [[17, 23], [39, 53]])
    assert_printed(dw, [[10, 14], [14, 20]])
    assert_printed(slopes(lambda x: (dy * (x @ w)).sum(), x), backends.to_numpy(dx))
    assert_printed(slopes(lambda w: (dy * (x @ w)).sum(), w), backends.to_numpy(dw))


# The notebook on the layers of a classifier, from affine to softmax with loss

LOGITS = np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 1.0]])
LABELS = [2, 1]
ONE_HOT = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def mean_loss(x: Any) -> Any:
    return -np.log(probabilities(x)[np.arange(len(x)), LABELS]).mean()


def test_activations_over_the_grid_of_the_plots() -> None:
    x = np.arange(-10, 10, 0.01)
    total = backends.to_numpy(K.softmax(double(x))).sum()
    assert total == pytest.approx(0.9999999999999999, rel=0, abs=1e-14)
    assert_printed(K.relu_backward(double(np.full(2000, 10.0)), K.relu(double(x))), np.where(x > 0, 10, 0))
    y = K.sigmoid(double(x))
    dx = K.sigmoid_backward(double(np.ones(2000)), y)
    assert_printed(dx, np.exp(-x) / (1 + np.exp(-x)) ** 2, decimals=14)
    assert_printed(y, 1 / (1 + np.exp(-x)), decimals=14)


def test_the_notebook_normalises_over_the_batch() -> None:
    """Its softmax of a batch is over axis 0: each class sums to 1 over the rows, where each row should."""
    over_the_batch = [[0.73105858, 0.11920292, 0.88079708], [0.26894142, 0.88079708, 0.11920292]]
    assert_printed(K.softmax(double(LOGITS), axis=0), over_the_batch)
    y = K.softmax(double(LOGITS))
    assert_far(y, over_the_batch, by=0.6)
    assert_printed(y, [SOFTMAX_103, [0.09003057, 0.66524096, 0.24472847]])
    for i, row in enumerate(LOGITS):
        assert_printed(K.softmax(double(row)), backends.to_numpy(y)[i], decimals=15)


def test_the_diagonal_of_the_jacobian_is_not_the_gradient_of_softmax() -> None:
    """The notebook returns y - y * y whatever comes from upstream, even where that is zero, as in its own cells."""
    y = K.softmax(double(LOGITS[0]))
    diagonal = [0.10115466, 0.04024522, 0.13180518]
    np.testing.assert_allclose(np.diag(jacobian(probabilities(LOGITS[0]))), diagonal, atol=1e-8)
    dx = K.softmax_backward(UPSTREAM, y)
    assert_far(dx, diagonal, by=1.0)
    assert_far(dx, np.multiply(diagonal, UPSTREAM), by=0.5)  # nor is it with the upstream gradient
    assert_printed(dx, slopes(lambda x: probabilities(x) @ UPSTREAM, LOGITS[0]))
    assert_printed(K.softmax_backward([0.0, 0.0, 0.0], y), [0, 0, 0])
    grid = K.softmax(double(np.arange(-10, 10, 0.01)))
    assert_printed(backends.to_numpy(grid - grid * grid)[-1], 0.00985116)
    assert not backends.to_numpy(K.softmax_backward(double(np.zeros(2000)), grid)).any()


def test_every_row_with_every_label_is_not_the_loss() -> None:
    """`y[:, t]`, and the sum of all of t log(y)^T, pair each row with the labels of all rows."""
    y = probabilities(LOGITS)
    assert -np.log(y[:, LABELS]).sum() / 2 == pytest.approx(2.57745198)
    assert -(ONE_HOT @ np.log(y).T).sum() / 2 == pytest.approx(2.57745198)
    for labels in (LABELS, double(ONE_HOT)):
        loss, _ = K.softmax_cross_entropy(double(LOGITS), labels)
        assert_printed(loss, 0.28872599)
        assert_printed(loss, mean_loss(LOGITS), decimals=14)
        assert_printed(K.cross_entropy(double(y), labels), 0.28872599)


def test_the_loss_the_notebook_prints_is_none_of_four_classes() -> None:
    """6952.6 for 1000 rows of 4 logits in [0, 1]; with `y[:, t]` and a softmax over the rows, 1000 terms per row."""
    printed = 6952.599686519977
    least, _ = K.softmax_cross_entropy([[1.0, 0.0, 0.0, 0.0]], [0])
    most, _ = K.softmax_cross_entropy([[0.0, 1.0, 1.0, 1.0]], [0])
    assert_printed(least, 0.74366838)
    assert_printed(most, 2.2142833)
    assert printed > most
    assert not least < printed / 1000 < most
    # A class whose probabilities over the 1000 rows sum to 1 has a mean of -log(y) of log(1000) at least.
    assert np.log(1000) < printed / 1000 < np.log(1 + 999 * np.e)


def test_the_labels_of_all_rows_are_not_subtracted_from_every_row() -> None:
    """The notebook's gradient for class indices subtracts 1 from the column of every label that occurs."""
    wrong = probabilities(LOGITS)
    wrong[:, LABELS] -= 1
    assert_printed(wrong / 2, [[0.0570976, -0.47899497, -0.07810263], [0.04501529, -0.16737952, -0.37763576]])
    right = [[0.0570976, 0.02100503, -0.07810263], [0.04501529, -0.16737952, 0.12236424]]
    assert_printed(slopes(mean_loss, LOGITS), right)
    _, y = K.softmax_cross_entropy(double(LOGITS), LABELS)
    for labels in (LABELS, double(ONE_HOT)):
        assert_printed(K.softmax_cross_entropy_value_and_grad(double(LOGITS), labels)[1], right)
        assert_printed(K.softmax_cross_entropy_backward(1.0, y, labels), right)
        assert_printed(K.softmax_backward(K.cross_entropy_backward(1.0, y, labels), y), right)
        assert_printed(K.softmax_cross_entropy_backward(2.0, y, labels), 2 * np.array(right), decimals=7)


def test_a_single_row_is_a_batch_of_one() -> None:
    """The notebook divides the gradient of a single one-hot row by the number of its classes."""
    x, t = LOGITS[0], ONE_HOT[0]
    wrong = [0.03806507, 0.01400336, -0.05206842]
    assert_printed((probabilities(x) - t) / 3, wrong)
    loss, dx = K.softmax_cross_entropy_value_and_grad(double(x), double(t))
    assert_printed(loss, 0.16984602)
    assert_far(dx, wrong, by=0.1)
    assert_printed(dx, [0.1141952, 0.04201007, -0.15620527])
    assert_printed(dx, slopes(lambda x: -t @ np.log(probabilities(x)), x))


def test_a_logarithm_moved_away_from_zero_is_another_loss() -> None:
    """The notebook's log(y + 1e-7) is a negative loss where y is 1, and a finite one where y is 0."""
    np.testing.assert_allclose(-np.log(np.array([1.0, 0.0]) + 1e-7), [-9.9999995e-08, 16.11809565])
    rows = backends.to_numpy(K.cross_entropy([[1.0, 0.0], [1.0, 0.0]], [0, 1], reduction="none"))
    assert rows.tolist() == [0, np.inf]
    loss, _ = K.softmax_cross_entropy([[20.0, 0.0]], [0])
    assert float(loss) == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-14, abs=0)
    loss, _ = K.softmax_cross_entropy([[40.0, 0.0]], [1])
    assert_printed(loss, 40)


def test_the_upstream_gradient_of_relu_is_left_as_it_was() -> None:
    """The notebook writes its zeros into the caller's array, which is [0, 2, 0] after the call."""
    dy = double([1.0, 2.0, 3.0])
    assert_printed(K.relu_backward(dy, K.relu([-1.0, 5.0, 0.0])), [0, 2, 0])
    assert backends.to_numpy(dy).tolist() == [1, 2, 3]


# The notebook on derivations in SymPy, and one step of backpropagation in float32

INPUT, TARGET = np.array([[0.2, -0.3]], np.float32), np.array([[0.0, 0.0, 1.0]], np.float32)
W1, B1 = np.array([[1, 0.2], [-1, 3], [0.5, 0.5]], np.float32).T, np.array([0.1, 0.2, 0], np.float32)
W2 = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.2, -0.2, 0.1]], np.float32).T
B2 = np.array([0, 0.5, 0], np.float32)
HIDDEN = [[0.55971366, 0.2890505, 0.48750263]]
OUTPUT = [[0.23167749, 0.57033634, 0.19798611]]
DZ2 = [[0.2316775, 0.57033634, -0.8020139]]


def test_a_forward_pass_in_float32() -> None:
    net = K.affine(single(INPUT), single(W1), single(B1))
    assert_printed_in_single(net, [[0.24000001, -0.90000004, -0.05]])
    hidden = K.sigmoid(net)
    assert_printed_in_single(hidden, HIDDEN)
    net = K.affine(hidden, single(W2), single(B2))
    assert_printed_in_single(net, [[0.26003227, 1.1609123, 0.10288289]])
    loss, y = K.softmax_cross_entropy(net, single(TARGET))
    assert_printed_in_single(y, OUTPUT)
    assert_printed_in_single(loss, 1.6195585)
    assert_printed_in_single(K.cross_entropy(K.softmax(net), single(TARGET)), 1.6195585)


def test_the_jacobian_of_softmax_in_float32() -> None:
    printed = [
        [0.17800303, -0.1321341, -0.04586893],
        [-0.1321341, 0.24505278, -0.11291867],
        [-0.04586893, -0.11291867, 0.15878761],
    ]
    y = single(OUTPUT * 3)
    assert_printed_in_single(K.softmax_backward(single(np.eye(3)), y), printed)


def test_the_second_layer_backward_in_float32() -> None:
    y = single(OUTPUT)
    dy = K.cross_entropy_backward(1.0, y, single(TARGET))
    assert_printed_in_single(dy, [[0, 0, -5.0508595]])
    assert_printed_in_single(K.softmax_backward(dy, y), DZ2)
    dz = K.softmax_cross_entropy_backward(1.0, y, single(TARGET))
    assert_printed_in_single(dz, DZ2)
    _, dw, db = K.affine_backward(dz, single(HIDDEN), single(W2))
    assert_printed_in_single(db, DZ2[0])
    assert_printed_in_single(
        dw.T,
        [
            [0.12967306, 0.0669665, 0.1129434],
            [0.31922504, 0.164856, 0.27804047],
            [-0.44889814, -0.2318225, -0.39098388],
        ],
    )


def test_the_first_layer_gets_its_gradient_through_the_second() -> None:
    """The notebook multiplies the slope of sigmoid by the gradient of the logits: both layers have three units."""
    wrong = [[0.05709328, 0.1172043, -0.20037821]]
    right = [[0.02240076, 0.10108694, 0.08282416]]
    assert_printed_in_single(K.sigmoid_backward(single(DZ2), single(HIDDEN)), wrong)
    _, dw, _ = K.affine_backward(single(wrong), single(INPUT), single(W1))
    wrong_dw = [[0.01141866, -0.01712798], [0.02344086, -0.03516129], [-0.04007564, 0.06011346]]
    assert_printed_in_single(dw.T, wrong_dw)

    dhidden, _, _ = K.affine_backward(single(DZ2), single(HIDDEN), single(W2))
    dnet = K.sigmoid_backward(dhidden, single(HIDDEN))
    _, dw, db = K.affine_backward(dnet, single(INPUT), single(W1))
    assert_far(db, wrong, by=0.2)
    assert_far(dw.T, wrong_dw, by=0.08)

    def loss(w: Any, b: Any) -> Any:
        hidden = 1 / (1 + np.exp(-(INPUT @ w + b)))
        return -np.log(probabilities(hidden @ W2 + B2))[0, 2]

    np.testing.assert_allclose(slopes(lambda b: loss(W1, b), B1), right[0], rtol=1e-6)
    np.testing.assert_allclose(backends.to_numpy(db), right[0], rtol=1e-6)
    np.testing.assert_allclose(backends.to_numpy(dw), slopes(lambda w: loss(w, B1), W1), rtol=1e-6)


def test_the_output_after_the_step_is_not_the_one_the_notebook_prints() -> None:
    """Its own update, wrong gradient and a rate of 1 included, gives the target 0.659; it prints 0.443."""
    wrong = single([[0.05709328, 0.1172043, -0.20037821]])
    printed = [[0.24301268, 0.31357023, 0.4434171]]
    _, dw1, db1 = K.affine_backward(wrong, single(INPUT), single(W1))
    _, dw2, db2 = K.affine_backward(single(DZ2), single(HIDDEN), single(W2))
    hidden = K.sigmoid(K.affine(single(INPUT), single(W1) - dw1, single(B1) - db1))
    y = K.softmax(K.affine(hidden, single(W2) - dw2, single(B2) - db2))
    assert_far(y, printed, by=0.2)

    doubles = [np.asarray(a, np.float64) for a in (wrong[0].tolist(), DZ2[0], HIDDEN[0])]
    hidden = 1 / (1 + np.exp(-(INPUT @ (W1 - np.outer(INPUT, doubles[0])) + B1 - doubles[0])))
    expected = probabilities(hidden @ (W2 - np.outer(doubles[2], doubles[1])) + B2 - doubles[1])
    np.testing.assert_allclose(expected, [[0.14109787, 0.19979955, 0.65910256]], rtol=1e-6)
    np.testing.assert_allclose(backends.to_numpy(y), expected, rtol=1e-6)


# The notebook on checking a two-layer net with L2 penalty by finite differences

X, Y = np.array([[2], [-5]]), [1, 0]
NET = {
    "w1": np.array([[0.5, 0.4, 0.3]]),
    "w2": np.array([[0.8, -0.1], [1.3, 0.15], [-1.1, 0.95]]),
    "b1": np.array([-1, 3, 1]),  # integers, as there
    "b2": np.array([0.65, 0.8]),
}
ROUNDED_UPSTREAM = [[0.0, -1.78], [-0.6839, 0.0]]
MEASURED_DW2 = np.array(
    [[0.08, -0.01], [1.3618186578412406, -1.2168186458438868], [0.4652797258586361, -0.48027972709974165]]
)


def penalised_loss(**changed: Any) -> Any:
    net = {**NET, **changed}
    hidden = np.maximum(X @ net["w1"] + net["b1"], 0)
    y = probabilities(hidden @ net["w2"] + net["b2"])
    return -np.log(y[[0, 1], Y]).mean() + 0.05 * sum((p * p).sum() for p in net.values())


def forward() -> tuple[Any, Any]:
    """Hidden layer and logits."""
    net = {name: backends.asarray(p) for name, p in NET.items()}
    hidden = K.relu(K.affine(backends.asarray(X), net["w1"], net["b1"]))
    return hidden, K.affine(hidden, net["w2"], net["b2"])


def backward(dz: Any) -> dict[str, Any]:
    """Gradients of the loss and its penalty, given that of the loss with respect to the logits."""
    hidden, _ = forward()
    dhidden, dw2, db2 = K.affine_backward(dz, hidden, backends.asarray(NET["w2"]))
    _, dw1, db1 = K.affine_backward(K.relu_backward(dhidden, hidden), backends.asarray(X), backends.asarray(NET["w1"]))
    gradients = {"w1": dw1, "w2": dw2, "b1": db1, "b2": db2}
    return {"hidden": backends.to_numpy(dhidden)} | {
        name: backends.to_numpy(gradient) + 0.1 * NET[name] for name, gradient in gradients.items()
    }


def test_the_forward_pass_and_the_loss_to_fifteen_digits() -> None:
    hidden, z = forward()
    assert_printed(K.affine(hidden, backends.asarray(NET["w2"])), [[3.18, 2.09], [1.3, 0.15]], decimals=14)
    assert_printed(z, [[3.83, 2.89], [1.95, 0.95]], decimals=14)
    exponentials = np.array([[46.06253823, 17.9933096], [7.02868758, 2.58570966]])
    y = K.softmax(z)
    assert_printed(y, [[0.71909966, 0.28090034], [0.73105858, 0.26894142]])
    np.testing.assert_allclose(backends.to_numpy(y), exponentials / exponentials.sum(1, keepdims=True), rtol=2e-9)
    assert_printed(K.cross_entropy(y, Y, reduction="none"), [1.26975533, 0.31326169])
    for loss in (K.cross_entropy(y, Y), K.softmax_cross_entropy(z, Y)[0]):
        assert float(loss) == pytest.approx(0.7915085063990551, rel=0, abs=1e-15)
    assert float(loss) + 0.8518750000000002 == pytest.approx(1.6433835063990552, rel=0, abs=1e-15)
    assert penalised_loss() == pytest.approx(1.6433835063990552, rel=0, abs=1e-15)


def test_gradients_from_the_upstream_gradient_that_was_typed_in() -> None:
    dz = K.softmax_backward(ROUNDED_UPSTREAM, K.softmax(forward()[1]))
    assert_printed(dz, [[0.35955171, -0.35955171], [-0.1344629, 0.1344629]])
    gradients = backward(dz)
    assert_printed(gradients["hidden"], [[0.32359653, 0.41348446, -0.737081], [-0.12101661, -0.15463234, 0.27564895]])
    assert_printed(gradients["w1"], [[0.05, 1.6401306, -1.44416199]])
    printed_differences = [[0, 0], [-1.49215867e-05, 1.49335841e-05], [-3.00280319e-06, 3.00156208e-06]]
    assert_printed(MEASURED_DW2 - gradients["w2"], printed_differences, decimals=13)


def test_what_was_typed_in_is_rounded_and_the_differences_that_were_measured_are_right() -> None:
    """Four digits of the gradient of the probabilities were copied: the gradients are wrong from the fifth on."""
    _, z = forward()
    _, y = K.softmax_cross_entropy(z, Y)
    dp = K.cross_entropy_backward(1.0, y, Y)
    assert_far(dp, ROUNDED_UPSTREAM, by=3e-5)
    assert_printed(dp[0, 1], -1.7799906437687696, decimals=6)
    dz = K.softmax_cross_entropy_backward(1.0, y, Y)
    for gradient in (dz, K.softmax_backward(dp, y), K.softmax_cross_entropy_value_and_grad(z, Y)[1]):
        assert_printed(gradient, [[0.35954983, -0.35954983], [-0.13447071, 0.13447071]])
    assert_far(dz, [[0.35955171, -0.35955171], [-0.1344629, 0.1344629]], by=7e-6)
    for entry, measured in (((0, 1), -0.35954981214558757), ((1, 0), -0.1344707012407298)):
        assert_printed(dz[entry], measured, decimals=7)
    right = backward(dz)
    np.testing.assert_allclose(right["w2"], MEASURED_DW2, rtol=0, atol=2e-8)
    assert right["w2"][2, 1] == pytest.approx(-0.4802780395607442, abs=2e-6)
    assert right["b2"][1] == pytest.approx(-0.1450791042856281, abs=2e-8)
    assert right["hidden"][1, 2] == pytest.approx(0.2756649575275105, abs=1e-8)
    np.testing.assert_allclose(right["w2"], slopes(lambda w: penalised_loss(w2=w), NET["w2"]), atol=1e-9)
    np.testing.assert_allclose(right["b2"], slopes(lambda b: penalised_loss(b2=b), NET["b2"]), atol=1e-9)


def test_gradients_inside_softmax_multiply_up_to_its_own() -> None:
    by_hand = [[0.00780573, -0.01998252], [-0.01913058, 0.05200232]]
    measured = [[0.00780571, -0.01998242], [-0.01913167, 0.05200536]]
    _, z = forward()
    exponentials = np.exp(backends.to_numpy(z))
    y = K.softmax(z)
    for per_exponential, dz in (
        (by_hand, K.softmax_backward(ROUNDED_UPSTREAM, y)),
        (measured, K.softmax_cross_entropy_backward(1.0, y, Y)),
    ):
        np.testing.assert_allclose(backends.to_numpy(dz) / exponentials, per_exponential, rtol=0, atol=6e-8)


def test_a_one_sided_difference_at_the_kink_of_relu_is_not_its_gradient() -> None:
    """The first hidden unit is at 0 exactly: the notebook measures 0.697 to the right, against 0.05 by hand."""
    hidden, z = forward()
    assert backends.to_numpy(hidden)[0, 0] == 0
    _, dz = K.softmax_cross_entropy_value_and_grad(z, Y)
    gradients = backward(dz)
    assert_printed(gradients["w1"][0, 0], 0.05, decimals=15)
    assert gradients["hidden"][0, 0] == pytest.approx(0.323594884221734, abs=5e-8)
    assert backends.to_numpy(K.relu_backward(backends.asarray(gradients["hidden"]), hidden))[0, 0] == 0
    h = np.array([[1e-6, 0, 0]])
    to_the_right = (penalised_loss(w1=NET["w1"] + h) - penalised_loss()) / 1e-6
    to_the_left = (penalised_loss() - penalised_loss(w1=NET["w1"] - h)) / 1e-6
    assert to_the_right == pytest.approx(0.6971889732199088, abs=2e-6)
    assert to_the_left == pytest.approx(0.05, abs=1e-6)
    away_from_it = slopes(lambda w: penalised_loss(w1=w), NET["w1"])[0, 1:]
    np.testing.assert_allclose(gradients["w1"][0, 1:], away_from_it, atol=1e-8)


def test_integer_biases_cannot_be_nudged_but_have_a_gradient() -> None:
    """The notebook keeps its first biases in integers, where the nudge of its other checks would be cut off to 0."""
    nudged = NET["b1"].copy()
    nudged[1] += 1e-7
    assert penalised_loss(b1=nudged) - penalised_loss() == 0
    gradient = backward(K.softmax_cross_entropy_value_and_grad(forward()[1], Y)[1])["b1"]
    assert gradient.dtype == np.float64
    assert_printed(gradient[1:], slopes(lambda b: penalised_loss(b1=b), NET["b1"])[1:])
    assert_printed(gradient, [-0.1, 0.55884099, -0.63707715])
