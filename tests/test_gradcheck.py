"""Central differences, the check of gradients by them, and explicit Jacobians."""

import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.kernels import layers, optim
from plugrad.kernels.gradcheck import check, gradient, gradient_descent, jacobian
from plugrad.kernels.jacobians import affine_jacobian, relu_jacobian, sigmoid_jacobian, softmax_jacobian
from plugrad.tests.conformance.cases import sample
from plugrad.tests.records import RECORDS

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    RNG.bit_generator.state = START  # so that the numbers of a test do not depend on the tests before it
    with backends.use(request.param):
        yield request.param


# Derivatives


def test_slopes_that_the_third_notebook_prints() -> None:
    """It prints 2.0000000000131024 for x^2 + 5 at 1, with a step of 1e-5."""
    assert gradient(lambda x: x**2 + 5, 1, step=1e-5) == pytest.approx(2.0000000000131024, rel=0, abs=1e-10)
    assert gradient(lambda x: x**2 + 5, 1) == pytest.approx(2, rel=0, abs=1e-10)
    start = np.array([2, 3])  # in integers, in which its own code could not step
    found = gradient(lambda x: x[0] ** 2 + x[1] ** 3 + 1, start)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [4, 27], rtol=1e-9)
    assert start.tolist() == [2, 3]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_step_goes_by_the_magnitude(scale: float) -> None:
    assert gradient(np.sin, scale) == pytest.approx(np.cos(scale), rel=1e-9 * max(1, scale))
    assert gradient(lambda x: (x / max(1, scale)) ** 3, scale) == pytest.approx(3 * min(scale**2, 1 / scale), rel=1e-4)


def test_a_function_that_computes_in_float32_gets_a_larger_step() -> None:
    def f(x: Any) -> Any:
        return np.float32(np.sin(np.float32(x)))

    assert gradient(f, 0.5) == pytest.approx(np.cos(0.5), rel=2e-4)
    assert abs(gradient(f, 0.5, step=6e-6) - np.cos(0.5)) > 1e-3  # float64's step is too small


@pytest.mark.parametrize(
    "shapes", [((), ()), ((3,), ()), ((), (2,)), ((2, 3), (4,)), ((0,), (2,)), ((2,), (0,))], ids=str
)
def test_jacobians_have_the_shape_of_result_and_argument(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    inputs, outputs = shapes
    weights = RNG.normal(size=outputs + inputs)

    def f(x: Any) -> Any:
        return np.tensordot(weights, np.asarray(x), axes=np.ndim(x))

    found = jacobian(f, RNG.normal(size=inputs))
    assert found.shape == weights.shape
    np.testing.assert_allclose(found, weights, atol=1e-9)


def test_the_function_gets_a_copy_of_its_argument() -> None:
    x = RNG.normal(size=3)
    before = x.copy()

    def f(v: Any) -> Any:
        v -= v.max()
        return np.exp(v).sum()

    np.testing.assert_allclose(gradient(f, x), gradient(lambda v: np.exp(v - v.max()).sum(), x), rtol=1e-12)
    assert (x == before).all()


def test_gradient_descent() -> None:
    x0, seen = np.array([2, 3]), []
    found = gradient_descent(
        lambda x: (x[0] - 1) ** 2 + 3 * (x[1] + 2) ** 2,
        x0,
        lr=0.1,
        steps=100,
        callback=lambda step, x, value: seen.append((step, x, value)),
    )
    np.testing.assert_allclose(found, [1, -2], atol=1e-8)
    assert x0.tolist() == [2, 3]
    assert [step for step, _, _ in seen] == list(range(101))
    assert seen[0][1].tolist() == [2, 3]
    assert seen[0][2] == 76
    assert all(a[2] > b[2] for a, b in itertools.pairwise(seen[:20]))
    exact = gradient_descent(lambda x: x**2, 1.0, lr=0.25, steps=3, df=lambda x: 2 * x)
    assert exact == 0.125
    with pytest.raises(
        FloatingPointError, match=r"gradient_descent: step \d+: from .* it leads to .*; take a smaller lr than 10"
    ):
        gradient_descent(lambda x: x**4, 3.0, lr=10)
    with pytest.raises(ValueError, match="expected no negative numbers"):
        gradient_descent(lambda x: x**2, 3.0, lr=-1)


# The check


@pytest.mark.parametrize(
    "dtype",
    [np.float64, *(pytest.param(t, marks=pytest.mark.slow) for t in (np.float32, np.float16, ml_dtypes.bfloat16))],
)
@pytest.mark.parametrize(
    "name", [kernel.name for kernel in RECORDS.values() if kernel.backward or "dx" in kernel.results]
)
def test_every_kernel_that_has_a_gradient(name: str, dtype: Any) -> None:
    kernel = RECORDS[name]
    if name.endswith("_backward"):
        with pytest.raises(TypeError, match="check its forward kernel"):
            check(kernel.function, *sample(kernel, 3, 4, np.dtype(dtype)).inputs.values())
        return
    inputs = sample(kernel, 3, 4, np.dtype(dtype)).inputs
    first = next(iter(inputs))
    inputs[first] = (inputs[first].astype(float) / 8 if first == "x" else inputs[first]).astype(dtype)  # no outliers
    report = check(kernel.function, *inputs.values(), **kernel.given)
    assert report, report
    wanted = [f"d{argument}" for argument in kernel.arguments if argument != "t"]
    assert [found.name for found in report.gradients] == wanted


@pytest.mark.parametrize(
    "options",
    [{"reduction": "none"}, {"reduction": "sum", "label_smoothing": 0.2}, {"weight": [1.0, 2.0, 3.0]}],
    ids=str,
)
def test_options_reach_both_kernels(options: dict[str, Any]) -> None:
    x = RNG.normal(size=(4, 3))
    for kernel, first in ((K.softmax_cross_entropy, x), (K.cross_entropy, K.softmax(x))):
        assert check(kernel, first, [0, 1, 2, 1], **options)
    assert check(K.softmax, x, axis=0)
    assert check(K.affine, x, RNG.normal(size=(3, 2)))


def test_a_wrong_gradient_is_found_and_shown() -> None:
    w = RNG.normal(size=(3, 4))
    wrong = 2 * w
    wrong[1, 2] += 1
    wrong[2, 0] *= 1.001
    report = check(lambda w: (w**2).sum(), w, gradients=wrong)
    assert not report
    (found,) = report.gradients
    assert [entry.index for entry in found.wrong] == [(1, 2), (2, 0)]
    assert found.checked == 12
    assert found.largest == found.wrong[0].error
    assert found.wrong[1].error == pytest.approx(0.001, rel=0.01)
    assert found.wrong[0].numeric == pytest.approx(2 * w[1, 2], rel=1e-8)
    lines = str(report).splitlines()
    assert lines[0] == "<lambda>: THE GRADIENTS ARE WRONG"
    assert lines[1].startswith("  dw (3, 4): 12 entries, 2 wrong, largest error ")
    assert lines[2].split() == ["index", "analytic", "numeric", "error"]
    assert lines[3].split()[:2] == ["[1,", "2]"]


@pytest.mark.parametrize("planted", [np.nan, np.inf, 0.0])
def test_entries_that_are_not_finite_or_zero_are_wrong(planted: float) -> None:
    x = np.array([1.0, 2.0, 3.0])
    dx = 2 * x
    dx[1] = planted
    report = check(lambda x: (x**2).sum(), x, gradients=dx)
    assert [entry.index for entry in report.gradients[0].wrong] == [(1,)]
    assert "[1]" in str(report)


def test_a_function_that_is_nan_is_not_right() -> None:
    report = check(lambda x: np.float64(np.nan), np.ones(2), gradients=np.ones(2))
    assert not report
    assert len(report.gradients[0].wrong) == 2


def test_a_layer_with_a_wrong_backward_is_found() -> None:
    class Broken(layers.Sigmoid):
        def backward(self, dy: Any, *, use_jacobian: bool = False) -> Any:
            return 1.01 * super().backward(dy, use_jacobian=use_jacobian)

    net = layers.Sequential(
        layers.Affine.init(3, 4, rng=0, dtype=np.float64), Broken(), layers.Affine.init(4, 2, rng=1, dtype=np.float64)
    )
    report = check(net, RNG.normal(size=(5, 3)), [0, 1, 0, 1, 1], loss=layers.SoftmaxWithLoss())
    right = {found.name: not found.wrong for found in report.gradients}
    assert right == {"dx": False, "d0.w": False, "d0.b": False, "d2.w": True, "d2.b": True}


def test_checking_does_not_change_a_network() -> None:
    net = layers.Sequential(layers.Affine.init(3, 4, rng=0), layers.Relu(), layers.Affine.init(4, 2, rng=1))
    before = net.state_dict()
    assert check(net, RNG.normal(size=(5, 3)).astype(np.float32), [0, 1, 0, 1, 1], loss=layers.SoftmaxWithLoss())
    for name, parameter in net.state_dict().items():
        assert (parameter == before[name]).all()
        assert parameter.dtype == np.float32


def test_kinks_are_reported_and_values_between_the_slopes_pass() -> None:
    def f(x: Any) -> Any:
        return np.maximum(x, 0.0).sum() + 0.1 * (x**2).sum()

    x = np.array([0.0, 2.0, -1.0])
    for at_0, right in ((0.0, True), (1.0, True), (0.3, True), (1.2, False), (-0.2, False)):
        report = check(f, x, gradients=np.array([at_0, 1.4, -0.2]))
        assert bool(report) is right, report
        entries = report.gradients[0].kinks if right else report.gradients[0].wrong
        assert [entry.index for entry in entries] == [(0,)]
        if right:
            assert entries[0].slopes == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
            assert "a kink: " in str(report)
    near = np.array([1e-6, 2.0, -1e-6])  # nearer to the kink than the step, but not at it
    assert check(f, near, gradients=np.array([1 + 2e-7, 1.4, -2e-7]))
    assert check(K.relu, [0.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("f", "x", "dx"),
    [
        (lambda x: np.floor(x).sum(), 2.0, 5.0),
        (lambda x: np.where(x > 2, 10.0, 0.0).sum(), 2.0, 1e5),
        (lambda x: np.sin(1e7 * x).sum(), 1.0, 12.0),
        (lambda x: (1e-3 * np.sin(1e9 * x) + x).sum(), 1.0, 40.0),
    ],
)
def test_jumps_and_noise_are_not_kinks(f: Any, x: float, dx: float) -> None:
    report = check(f, np.array([x]), gradients=np.array([dx]))
    assert not report, report
    assert not report.gradients[0].kinks


def test_a_function_that_draws_random_numbers_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        ValueError,
        match=r"check: dw: expected the same result for the same argument, got .*seed its random numbers anew",
    ):
        check(lambda w: (w**2).sum() + 1e-3 * rng.normal(), [1.0, 2.0], gradients=[[50.0, -70.0]])


def test_rounding_is_allowed_for_but_hides_no_error() -> None:
    x, t = RNG.normal(size=(20_000, 4)), np.arange(20_000) % 4
    report = check(K.softmax_cross_entropy_value_and_grad, x, t, entries=50)
    assert report, report
    assert "(allowed: 1e-06, and rounding)" in str(report)
    w = np.array([1.0, 2.0])
    for constant in (1e6, 1e10):
        report = check(lambda w, c=constant: (w**2).sum() + c, w, gradients=np.array([2.0, 4.5]))
        assert (1,) in [entry.index for entry in report.gradients[0].wrong]
    assert check(lambda w: (w**2).sum() + 1e10, w, gradients=np.array([2.0, 4.0]), step=100.0)


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("f", "x", "dx"),
    [
        (lambda x: 1e10 + x.sum(), [1.0, 2.0], [0.0, 0.0]),
        (lambda x: 1e10 + x[0] + 100 * x[1], [1.0, 2.0], [0.0, 100.0]),
        (lambda x: np.float32(2) + np.float32(1e-5) * x.astype(np.float32).sum(), ONES, 0 * ONES),
        (lambda x: 1e15 + np.sin(x).sum(), [1.0], [0.3]),
        (lambda x: 1e-9 * np.abs(x).sum(), [0.0], [9e-7]),
        (lambda x: 1e-6 * np.abs(x).sum(), [0.0], np.float32([9e-5])),
        (lambda x: 1e-4 * np.maximum(x, 0).sum(), [0.0], np.float16([-1.9e-2])),
        (lambda x: np.nan, [0.0], [0.0]),
        (lambda x: np.inf * x.sum(), [1.0], [0.0]),
        (lambda x: np.log(x).sum(), [1e-8], [0.99e8]),
        (lambda x: (x**3).sum(), [1e-4], [4e-8]),
    ],
)
def test_wrong_gradients_do_not_hide(f: Any, x: Any, dx: Any) -> None:
    with np.errstate(all="ignore"):
        assert not check(f, np.array(x), gradients=[np.array(dx)])


def test_unclear_entries_are_neither_right_nor_wrong() -> None:
    report = check(lambda x: 1e15 + np.sin(x).sum(), np.array([1.0]), gradients=np.array([np.cos(1.0)]))
    assert not report
    (found,) = report.gradients
    assert not found.wrong
    assert [entry.index for entry in found.unclear] == [(0,)]
    assert str(report).startswith("<lambda>: UNCLEAR\n  dx (1,): 1 entries, 0 wrong, 1 unclear")
    assert "pass a step" in str(report)


@pytest.mark.parametrize(
    ("f", "x", "dx"),
    [
        (lambda x: (x + np.maximum(0, x - 4e-8)).sum(), [0.0], [1.0]),
        (lambda x: (x + np.maximum(0, x - 1.1e-7)).sum(), [0.0], [1.0]),
        (lambda x: (x + np.maximum(0, x - 2.65e-7)).sum(), [0.0], [1.0]),
        (lambda x: np.log(x).sum(), [1e-8, 1e-3, 0.5], [1e8, 1e3, 2.0]),
        (lambda x: np.sqrt(x).sum(), [1e-7], [0.5 / np.sqrt(1e-7)]),
        (lambda x: (1 / x).sum(), [1e-4], [-1e8]),
        (lambda x: np.float16((x**2).sum()), [1.0, 2.0], np.float16([2.0, 4.0])),
        (lambda x: (1e-9 * x).sum(), [1.0], [1e-9]),
        (lambda x: (1e12 * x).sum(), [1.0], [1e12]),
        (lambda x: 3.0, [1.0, 2.0], [0.0, 0.0]),
    ],
)
def test_right_gradients_are_not_refused(f: Any, x: Any, dx: Any) -> None:
    with np.errstate(all="ignore"):
        report = check(f, np.array(x), gradients=[np.array(dx)])
    assert report, report


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_kernels_are_right_where_rows_are_confident(dtype: Any) -> None:
    x = np.array([[30.0, 0.0, -30.0], [80.0, 0.0, -80.0]]).astype(dtype)
    for report in (
        check(K.softmax, x),
        check(K.log_softmax, x),
        check(K.sigmoid, x),
        check(K.softmax_cross_entropy, x, [0, 0]),
        check(K.softmax_cross_entropy_value_and_grad, x, [0, 1]),
        check(K.cross_entropy, np.array([[1e-4, 1 - 2e-4, 1e-4]]).astype(dtype), [0]),
    ):
        assert report, report


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_a_network_that_has_learnt(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(dtype)
    t = (x[:, 0] > 0).astype(np.int64)
    net = layers.Sequential(
        layers.Affine.init(4, 16, rng=rng, dtype=np.float64),
        layers.Relu(),
        layers.Affine.init(16, 2, rng=rng, dtype=np.float64),
    )
    loss, optimizer = layers.SoftmaxWithLoss(), optim.Adam(net.params, 0.05)
    for _ in range(150):
        loss.forward(net.forward(x.astype(np.float64)), t)
        net.backward(loss.backward(), needs_dx=False)
        optimizer.step(net.grads)
    report = check(net.astype(dtype), x, t, loss=layers.SoftmaxWithLoss(), entries=60)
    assert report, report


def test_dropout_drops_the_same_elements_in_each_call() -> None:
    x, t = RNG.normal(size=(4, 3)), [0, 1, 1, 0]
    net = layers.Sequential(
        layers.Affine.init(3, 6, rng=0), layers.Dropout(0.5, rng=1), layers.Affine.init(6, 2, rng=2)
    )
    seed = net.state_dict()["1.seed"]
    assert check(net, x, t, loss=layers.SoftmaxWithLoss())
    assert check(net, x)
    assert net.state_dict()["1.seed"] == seed
    net.training = False
    assert check(net, x)
    for seed in (0, 2**64 - 1):
        assert check(K.dropout, x, p=0.3, seed=seed)


def test_layers_that_write_to_what_they_are_given_are_not_taken_in() -> None:
    class Nothing(layers.Sigmoid):
        def backward(self, dy: Any, *, use_jacobian: bool = False) -> Any:
            dy *= 0
            return dy

    class Careless(layers.Layer):
        def forward(self, x: Any) -> Any:
            x += 1
            return x

        def backward(self, dy: Any) -> Any:
            dy *= 1
            return dy

    x = RNG.normal(size=(4, 3))
    before = x.copy()
    assert not check(Nothing(), x)
    assert check(Careless(), x)
    assert (x == before).all()


def test_a_steep_function_has_no_kink() -> None:
    report = check(lambda x: np.exp(12 * x).sum(), np.array([1.0]), gradients=np.array([12 * np.exp(12.0)]))
    assert report, report
    assert not report.gradients[0].kinks


def test_of_a_large_gradient_some_entries_are_drawn() -> None:
    x = RNG.normal(size=(50, 60))
    report = check(lambda x: (x**2).sum(), x, gradients=2 * x, entries=20, seed=3)
    assert report
    assert report.gradients[0].checked == 20
    assert "20 of 3000 entries, drawn at random" in str(report)


def test_a_whole_network_with_a_penalty() -> None:
    x, t = RNG.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    w1, b1, w2, b2 = (RNG.normal(size=shape) for shape in ((4, 5), (5,), (5, 3), (3,)))

    def loss(w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        z = K.affine(K.sigmoid(K.affine(x, w1, b1)), w2, b2)
        return K.softmax_cross_entropy(z, t)[0] + optim.l2_penalty((w1, b1, w2, b2), 0.05)

    h = K.sigmoid(K.affine(x, w1, b1))
    _, dz = K.softmax_cross_entropy_value_and_grad(K.affine(h, w2, b2), t)
    dh, dw2, db2 = K.affine_backward(dz, h, w2)
    _, dw1, db1 = K.affine_backward(K.sigmoid_backward(dh, h), x, w1)
    gradients = (dw1, db1, dw2, db2)
    assert not check(loss, w1, b1, w2, b2, gradients=gradients)
    optim.l2_penalty((w1, b1, w2, b2), 0.05, grads=gradients)
    report = check(loss, w1, b1, w2, b2, gradients=gradients)
    assert report, report
    assert [found.name for found in report.gradients] == ["dw1", "db1", "dw2", "db2"]
    assert check(loss, w1, b1, w2, b2, gradients=(None, db1, None, None))


MISTAKES: list[tuple[Any, type[Exception], str]] = [
    (lambda: gradient(lambda x: x, [1.0, 2.0]), ValueError, r"gradient: f: expected one number, got shape \(2,\)"),
    (lambda: gradient(np.sin, 1j), TypeError, "gradcheck: x: expected real numbers, got dtype complex128"),
    (lambda: gradient(np.sin, "x"), TypeError, "gradcheck: x: expected real numbers"),
    (lambda: gradient(np.sin, 1.0, step=0.0), ValueError, "gradcheck: step: expected a positive number, got 0.0"),
    (lambda: check(np.sin, [1.0]), TypeError, "check: gradients: expected one for each argument"),
    (lambda: check(np.sin, [1.0], gradients=([1.0], [1.0])), TypeError, "expected one for each of 1 arguments, got 2"),
    (lambda: check(lambda x: x.sum(), [1.0], gradients=[[1.0, 2.0]]), ValueError, r"check: dx: expected the shape of"),
    (
        lambda: check(lambda x: x, np.ones(2), gradients=np.ones(2)),
        ValueError,
        "check: dx: expected a scalar function",
    ),
    (lambda: check(K.relu, 1.0, 2.0), TypeError, "check: relu: expected x; got 2 arguments"),
    (lambda: check(layers.Relu(), [1.0], axis=0), TypeError, r"check: unknown options for Relu\(\): axis"),
    (lambda: check(K.softmax, [1.0], gradients=[[7.0]]), TypeError, "check: gradients: expected none for a kernel or"),
    (lambda: check(layers.Relu(), [1.0], gradients=[[7.0]]), TypeError, "check: gradients: expected none for a kernel"),
    (lambda: check(layers.Relu(), [1.0], [0], loss=K.softmax), TypeError, "check: loss: expected a loss such as Soft"),
    (lambda: check(np.sin, 1.0, loss=layers.SoftmaxWithLoss()), TypeError, "check: loss: expected a loss such as Sof"),
    (lambda: check(K.linear_cross_entropy, 1, 2, 3, 4), TypeError, "check linear_cross_entropy_value_and_grad"),
    (lambda: check(layers.Relu(), [1.0], [0]), TypeError, r"expected inputs, and labels with a loss \(loss=...\)"),
    (lambda: check(K.relu, [1.0], entries=0), ValueError, "check: entries: expected a positive integer, got 0"),
    (
        lambda: check(K.relu, [1.0], tolerance=-1.0),
        ValueError,
        "check: tolerance: expected a positive number, got -1.0",
    ),
    (
        lambda: gradient(lambda x: x * 1j, 1.0),
        TypeError,
        "gradcheck: expected a function with real numbers for results",
    ),
    (lambda: check(layers.Relu()), TypeError, r"check: Relu\(\): expected inputs"),
]


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES, ids=[message for _, _, message in MISTAKES])
def test_mistakes(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Explicit Jacobians


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 4), (2, 3, 4), (0, 4)], ids=str)
def test_jacobians_are_those_of_central_differences_and_of_the_kernels(shape: tuple[int, ...]) -> None:
    x, n = RNG.normal(size=shape), shape[-1]
    for kernel, backward, explicit in (
        (K.softmax, K.softmax_backward, softmax_jacobian),
        (K.relu, K.relu_backward, relu_jacobian),
        (K.sigmoid, K.sigmoid_backward, sigmoid_jacobian),
    ):
        y = kernel(x)
        found = explicit(y)
        assert found.shape == (*shape, n)
        rows = [jacobian(kernel, row) for row in x.reshape(-1, n)]
        np.testing.assert_allclose(found.reshape(-1, n, n), np.reshape(rows, (-1, n, n)), atol=1e-9)
        dy = RNG.normal(size=shape)
        np.testing.assert_allclose(np.einsum("...i,...ij->...j", dy, found), backward(dy, y), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_jacobians_of_the_affine_layer(shape: tuple[int, ...]) -> None:
    x, w, b = RNG.normal(size=(*shape, 2)), RNG.normal(size=(2, 4)), RNG.normal(size=4)
    dy_dx, dy_dw, dy_db = affine_jacobian(x, w)
    assert dy_dx.shape == (*shape, 4, 2)
    assert dy_dw.shape == (*shape, 4, 2, 4)
    assert dy_db.shape == (*shape, 4, 4)
    np.testing.assert_allclose(dy_dw, jacobian(lambda w: K.affine(x, w, b), w), atol=1e-9)
    np.testing.assert_allclose(dy_db, jacobian(lambda b: K.affine(x, w, b), b), atol=1e-9)
    for row, found in zip(x.reshape(-1, 2), dy_dx.reshape(-1, 4, 2), strict=True):
        np.testing.assert_allclose(found, jacobian(lambda v: K.affine(v, w, b), row), atol=1e-9)
    dy = RNG.normal(size=(*shape, 4))
    dx, dw, db = K.affine_backward(dy, x, w)
    np.testing.assert_allclose(np.einsum("...j,...ji->...i", dy, dy_dx), dx, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.tensordot(dy, dy_dw, axes=dy.ndim), dw, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(np.tensordot(dy, dy_db, axes=dy.ndim), db, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_jacobians_keep_the_dtype(dtype: Any) -> None:
    x = RNG.normal(size=(2, 5)).astype(dtype)
    for kernel, explicit in ((K.softmax, softmax_jacobian), (K.relu, relu_jacobian), (K.sigmoid, sigmoid_jacobian)):
        y = kernel(x)
        found, exact = explicit(y), explicit(y.astype(np.float64))
        assert found.dtype == dtype
        epsilon = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(found.astype(np.float64), exact, rtol=4 * epsilon, atol=0)
    assert {array.dtype for array in affine_jacobian(x, x.T)} == {np.dtype(dtype)}


def test_mistakes_with_jacobians() -> None:
    for explicit in (softmax_jacobian, relu_jacobian, sigmoid_jacobian):
        with pytest.raises(
            ValueError, match=rf"{explicit.__name__}: y: expected shape \(..., n\), got a single number"
        ):
            explicit(1.0)
        with pytest.raises(TypeError, match=f"{explicit.__name__}: y: expected .* got dtype complex128"):
            explicit([1j])
    with pytest.raises(ValueError, match="affine_jacobian: x: expected 3 inputs"):
        affine_jacobian(np.ones(2), np.ones((3, 2)))
