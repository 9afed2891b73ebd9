"""Captured calls against the same calls without a capture: the same bits, and the errors of a capture."""

import asyncio
import contextvars
import copy
import math
import os
import pickle
import signal
import sys
import threading
import tracemalloc
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import selection, threads
from plugrad.backends.contract import PreparedCall
from plugrad.kernels import gradcheck, jacobians, layers, optim
from plugrad.tests.processes import PATIENCE, forked

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


class Inputs:
    """The arguments of calls, by name, filled with new values for each step."""

    def __init__(self, dtype: Any, rows: int = 6, classes: int = 5, inside: int = 4) -> None:
        shapes = {
            "x": (rows, inside),
            "w": (inside, classes),
            "b": (classes,),
            "z": (rows, classes),
            "dz": (rows, classes),
            "p": (rows, classes),
            "q": (rows, classes),
            "h": (2, rows, inside),
        }
        for name, shape in shapes.items():
            setattr(self, name, np.empty(shape, dtype))
        wide = np.float64 if dtype is np.float64 else np.float32
        self.weight, self.each = np.empty(classes, wide), np.empty(rows, wide)
        self.of_rows = np.empty(2 * rows, wide)[::-2]
        self.t = np.empty(rows, np.int64)
        self.small = np.empty(rows, np.uint8)
        self.strided = np.empty((2 * rows, 3 * classes), dtype)[::-2, ::3]

    def __getattr__(self, name: str) -> Any:  # for mypy: the arrays are set by name
        raise AttributeError(name)

    def fill(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for name, array in vars(self).items():
            if array.dtype.kind in "iu":
                array[...] = rng.integers(0, self.b.size, array.shape)
            elif name in ("p", "q", "weight", "each"):
                array[...] = rng.uniform(0.1, 0.2, array.shape)
            elif name == "of_rows":  # other rows count in each replay
                array[...] = rng.integers(0, 3, array.shape)
            else:
                array[...] = rng.normal(size=array.shape)


CALLS: dict[str, Callable[[Inputs], Any]] = {
    "relu": lambda i: K.relu(i.x),
    "relu in place": lambda i: K.relu(i.x, out=i.x),
    "relu of strided": lambda i: K.relu(i.strided),
    "relu of a number": lambda i: K.relu(i.b[1:2].reshape(())),
    "relu_backward": lambda i: K.relu_backward(i.dz, i.z, out=i.dz),
    "sigmoid": lambda i: K.sigmoid_backward(i.dz, K.sigmoid(i.z)),
    "tanh": lambda i: K.tanh_backward(i.dz, K.tanh(i.z)),
    "leaky_relu": lambda i: K.leaky_relu_backward(i.dz, K.leaky_relu(i.z, negative_slope=0.3), negative_slope=0.3),
    "silu": lambda i: K.silu_backward(i.dz, i.z, out=i.dz),
    "gelu": lambda i: K.gelu_backward(K.gelu(i.strided), i.strided, approximate="tanh"),
    "dropout": lambda i: K.dropout_backward(K.dropout(i.z, p=0.3, seed=5), seed=2**63),
    "softmax": lambda i: K.softmax_backward(i.dz, K.softmax(i.z, axis=0), axis=0),
    "log_softmax": lambda i: K.log_softmax_backward(i.dz, K.log_softmax(i.strided)),
    "affine": lambda i: K.affine(i.x, i.w, i.b),
    "affine without biases": lambda i: K.affine(i.x, i.w),
    "affine of a stack": lambda i: K.affine(i.h, i.w, i.b),
    "affine of a row": lambda i: K.affine(i.x[0], i.w, i.b),
    "affine of transposed": lambda i: K.affine(i.z, i.w.T),
    "affine to strided": lambda i: K.affine(i.x, i.w, i.b, out=i.strided),
    "affine_backward": lambda i: K.affine_backward(i.dz, i.x, i.w),
    "affine_backward of some": lambda i: K.affine_backward(i.dz, i.x, i.w, needs=("dw",), out=(None, i.w, None)),
    "affine_backward of strided": lambda i: K.affine_backward(i.strided, i.x, i.w, out=(i.x, None, i.b)),
    "cross_entropy": lambda i: K.cross_entropy(i.p, i.t),
    "cross_entropy_backward": lambda i: K.cross_entropy_backward(2.0, i.p, i.small, label_smoothing=0.1),
    "softmax_cross_entropy": lambda i: K.softmax_cross_entropy(i.z, i.t),
    "softmax_cross_entropy of each": lambda i: K.softmax_cross_entropy(i.z, i.small, reduction="none"),
    "softmax_cross_entropy_backward": lambda i: K.softmax_cross_entropy_backward(i.each, i.p, i.t, reduction="none"),
    "loss and gradient": lambda i: K.softmax_cross_entropy_value_and_grad(i.z, i.t, out=i.z),
    "loss of small labels": lambda i: K.softmax_cross_entropy_value_and_grad(i.z, i.small),
    "loss with weights": lambda i: K.softmax_cross_entropy_value_and_grad(
        i.z, i.t, weight=i.weight, ignore_index=2, reduction="sum"
    ),
    "loss with weights of rows": lambda i: K.softmax_cross_entropy_value_and_grad(
        i.z, i.t, sample_weight=i.of_rows, weight=i.weight, z_loss=0.1, out=i.z
    ),
    "losses with weights of rows": lambda i: K.softmax_cross_entropy(
        i.z, i.q, sample_weight=i.each, z_loss=0.1, reduction="none", out=(i.each, None)
    ),
    "loss with z loss": lambda i: K.softmax_cross_entropy_value_and_grad(i.z, i.small, z_loss=0.1, reduction="sum"),
    "cross_entropy with weights of rows": lambda i: K.cross_entropy_backward(
        1.0, i.p, i.t, sample_weight=i.of_rows, ignore_index=1, out=i.p
    ),
    "last layer with weights of rows": lambda i: K.linear_cross_entropy_value_and_grad(
        i.x, i.w, i.b, i.t, sample_weight=i.of_rows, z_loss=0.1, softcap=2.0, max_workspace="1kB"
    ),
    "last layer with softcap": lambda i: K.linear_cross_entropy(
        i.x, i.w, None, i.q, softcap=2.0, ignore_index=None, max_workspace="1kB"
    ),
    "loss of labels per class": lambda i: K.softmax_cross_entropy_value_and_grad(i.z, i.q, label_smoothing=0.1),
    "loss of strided": lambda i: K.softmax_cross_entropy_value_and_grad(i.strided, i.t, out=(None, i.z)),
    "sigmoid_cross_entropy": lambda i: K.sigmoid_cross_entropy(i.z, i.q, pos_weight=i.weight),
    "sigmoid_cross_entropy_backward": lambda i: K.sigmoid_cross_entropy_backward(i.dz, i.p, i.q, reduction="none"),
    "sigmoid_cross_entropy_value_and_grad": lambda i: K.sigmoid_cross_entropy_value_and_grad(
        i.strided, i.q, weight=i.weight, label_smoothing=0.1, out=(None, i.z)
    ),
    "top_k_accuracy": lambda i: K.top_k_accuracy(i.z, i.small, 2, ignore_index=3),
    "linear_top_k": lambda i: K.linear_top_k(i.x, i.w, i.b, 3, max_workspace=600),
    "linear_cross_entropy": lambda i: K.linear_cross_entropy(i.x, i.w, i.b, i.t, max_workspace=500),
    "linear_cross_entropy_value_and_grad": lambda i: K.linear_cross_entropy_value_and_grad(
        i.x, i.w, i.b, i.t, weight=i.weight, ignore_index=1, max_workspace=K.Workspace("1kB")
    ),
    "l2_penalty": lambda i: optim.l2_penalty([i.w, i.b], 0.1, grads=[i.w, i.b]),
    "l2_penalty without gradients": lambda i: optim.l2_penalty([i.w], 0.1),
}


def arrays(results: Any) -> list[Any]:
    """The arrays of a result, by bytes."""
    return [
        None if r is None else np.asarray(r).tobytes() for r in (results if isinstance(results, tuple) else [results])
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_a_replay_has_the_bits_of_a_call(call: str, dtype: Any) -> None:
    plain, captured = Inputs(dtype), Inputs(dtype)
    plain.fill(0)
    captured.fill(0)
    expected = CALLS[call](plain)
    with K.capture() as graph:
        results = CALLS[call](captured)
    assert arrays(results) == arrays(expected)
    for seed in (1, 2):
        plain.fill(seed)
        captured.fill(seed)
        expected = CALLS[call](plain)
        graph.replay()
        assert arrays(results) == arrays(expected)
        for name, array in vars(plain).items():
            assert array.tobytes() == getattr(captured, name).tobytes(), name
    assert graph.kernels[-1] in K.KERNELS or graph.kernels == ("l2_penalty",)


@pytest.mark.parametrize("call", [name for name in CALLS if name not in ("relu of a number", "affine of a row")])
def test_empty_batches(call: str) -> None:
    inputs = Inputs(np.float32, rows=0)
    inputs.fill(0)
    expected = CALLS[call](inputs)
    with K.capture() as graph:
        results = CALLS[call](inputs)
    losses = [r for r in (results if isinstance(results, tuple) else (results,)) if r is not None and not r.ndim]
    for loss in losses:
        loss[...] = 7
    graph.replay()
    assert graph.kernels
    if "penalty" not in call:
        assert arrays(results) == arrays(expected)


def test_no_inputs() -> None:
    x, w, b, dy = np.empty((3, 0)), np.empty((0, 2)), np.array([1.0, 2.0]), np.ones((3, 2))
    with K.capture() as graph:
        y = K.affine(x, w, b)
        _, _, db = K.affine_backward(dy, x, w)
    b += 1
    dy *= 2
    graph.replay()
    assert y.tolist() == [[2.0, 3.0]] * 3
    assert db.tolist() == [6.0, 6.0]
    assert graph.kernels == ("affine", "affine_backward")


class Problem:
    """A network, its loss and its optimizer, and batches."""

    def __init__(self, make_optimizer: Callable[[Any], Any], dtype: Any = np.float32, **options: Any) -> None:
        rng = np.random.default_rng(0)
        affine = layers.Affine.init
        stack = affine(8, 6, rng=rng, dtype=dtype), layers.Relu(), affine(6, 6, rng=rng, dtype=dtype), layers.Sigmoid()
        self.net = layers.Sequential(*stack, affine(6, 5, rng=rng, dtype=dtype))
        self.loss = layers.SoftmaxWithLoss(**options)
        self.optimizer = make_optimizer(self.net.params)
        self.batches = [(rng.normal(size=(7, 8)).astype(dtype), rng.integers(0, 5, 7)) for _ in range(6)]

    def step(self, x: Any, t: Any) -> Any:
        loss = self.loss.forward(self.net.forward(x), t)
        self.net.backward(self.loss.backward(), needs_dx=False)
        self.optimizer.step(self.net.grads)
        return loss

    def state(self) -> list[bytes]:
        return [p.tobytes() for p in self.net.params]


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda params: optim.SGD(params, lr=0.1),
    "momentum": lambda params: optim.SGD(params, optim.step_decay(0.1, every=2), momentum=0.9, weight_decay=0.01),
    "Nesterov": lambda params: optim.SGD(params, optim.exponential_decay(0.1, rate=0.1), momentum=0.9, nesterov=True),
    "Adam": lambda params: optim.Adam(params, optim.cosine(0.01, steps=5, warmup=2), weight_decay=0.01),
    "AdamW": lambda params: optim.AdamW(params, optim.cosine(0.01, steps=5, warmup=2), weight_decay=0.1),
    "RMSprop": lambda params: optim.RMSprop(params, optim.step_decay(0.01, every=2), momentum=0.9, centered=True),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loop_of_layers(optimizer: str, dtype: Any) -> None:
    plain, captured = Problem(OPTIMIZERS[optimizer], dtype), Problem(OPTIMIZERS[optimizer], dtype)
    x, t = (array.copy() for array in captured.batches[0])
    for step, batch in enumerate(plain.batches):
        if step == 4:
            plain.optimizer.lr = captured.optimizer.lr = 0.05
            plain.optimizer.weight_decay = captured.optimizer.weight_decay = 0.1
        expected = plain.step(*batch)
        x[...], t[...] = batch
        if step == 0:
            with K.capture() as graph:
                loss = captured.step(x, t)
        else:
            graph.replay()
        assert float(loss) == float(expected)
        assert captured.state() == plain.state()
    assert captured.optimizer.steps == plain.optimizer.steps == 6
    assert graph.kernels[-1] == type(captured.optimizer).__name__.lower()
    assert captured.step(*plain.batches[0]) == plain.step(*plain.batches[0]), "plain steps go on"


def test_a_loop_with_clipped_gradients() -> None:
    plain, captured = Problem(OPTIMIZERS["AdamW"]), Problem(OPTIMIZERS["AdamW"])
    x, t = (array.copy() for array in captured.batches[0])

    def step(problem: Problem, x: Any, t: Any) -> Any:
        problem.net.backward((problem.loss.forward(problem.net.forward(x), t), problem.loss.backward())[1])
        norm = optim.clip_by_global_norm(problem.net.grads, 0.3)
        problem.optimizer.step(problem.net.grads)
        return norm

    for number, batch in enumerate(plain.batches):
        expected = step(plain, *batch)
        x[...], t[...] = batch
        if number == 0:
            with K.capture() as graph:
                norm = step(captured, x, t)
        else:
            graph.replay()
        assert float(norm) == float(expected) > 0.3
        assert captured.state() == plain.state()
    assert graph.kernels[-2:] == ("clip_by_global_norm", "adamw")


@pytest.mark.parametrize("optimizer", ["AdamW", "RMSprop"])
def test_training_steps_by_any_optimizer(optimizer: str) -> None:
    plain, problem = Problem(OPTIMIZERS[optimizer]), Problem(OPTIMIZERS[optimizer])
    training = layers.TrainingStep(problem.net, problem.loss, problem.optimizer)
    for batch in plain.batches:
        assert training.step(*batch) == plain.step(*batch)
    assert problem.state() == plain.state()


def test_layers_compute_other_things_after_a_capture() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    x, t = problem.batches[0]
    with K.capture() as graph:
        loss = problem.step(x, t)
    rows = np.ones((9, 8), np.float32)
    kept = problem.net.forward(rows)
    before, value = kept.copy(), float(loss)
    problem.loss.forward(kept, np.zeros(9, int))
    assert float(loss) == value
    graph.replay()
    np.testing.assert_array_equal(kept, before)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_of_a_loss_that_is_scaled(reduction: str) -> None:
    def step(z: Any, t: Any, dloss: Any) -> Any:
        loss = layers.SoftmaxWithLoss(reduction=reduction)
        loss.forward(z, t)
        return loss.backward(dloss)

    rng = np.random.default_rng(0)
    z, t = rng.normal(size=(4, 3)), np.array([0, 1, 2, 0])
    dloss: Any = 128.0 if reduction == "mean" else rng.normal(size=4)
    with K.capture() as graph:
        dz = step(z, t, dloss)
    z[...] = rng.normal(size=(4, 3))
    graph.replay()
    np.testing.assert_array_equal(dz, step(z, t, dloss))


def test_the_layer_of_cross_entropy() -> None:
    layer, p, t = layers.CrossEntropy(), np.full((2, 2), 0.5), np.array([0, 1])
    with K.capture() as graph:
        loss = layer.forward(p, t)
        dp = layer.backward()
    p[...] = [[0.25, 0.75], [0.5, 0.5]]
    graph.replay()
    expected = layers.CrossEntropy()
    assert float(loss) == float(expected.forward(p, t))
    np.testing.assert_array_equal(dp, expected.backward())


def test_losses_are_arrays_that_a_replay_overwrites() -> None:
    z, t = np.zeros((2, 3), np.float32), np.array([0, 1])
    with K.capture() as graph:
        loss, _ = K.softmax_cross_entropy(z, t)
        out = np.empty((), np.float32)
        given, _ = K.softmax_cross_entropy(z, t, out=(out, None))
    assert isinstance(loss, np.ndarray)
    assert (loss.shape, loss.dtype) == ((), np.float32)
    assert given is out
    before = loss[()]
    z[0, 0] = 5
    graph.replay()
    assert loss < before
    assert loss == out


def test_a_graph_holds_its_arrays() -> None:
    def captured() -> tuple[Any, Any, Any]:
        x = np.ones((3, 4))
        with K.capture() as graph:
            y = K.relu(K.affine(x, np.eye(4)))
        return graph, x, y

    graph, x, y = captured()
    x[...] = -1
    x[0] = 2
    graph.replay()
    assert y.tolist() == [[2.0] * 4, [0.0] * 4, [0.0] * 4]


def test_numpy_code_runs_once() -> None:
    x, seen = np.ones(3), []
    with K.capture() as graph:
        seen.append(1)
        y = K.relu(x + 1)
    x[...] = 5
    graph.replay()
    assert y.tolist() == [2.0] * 3
    assert len(seen) == 1
    assert repr(graph) == "<graph of relu>"


# ---------------------------------------------------------------------------------------------------------------------
# Calls that a capture refuses
# ---------------------------------------------------------------------------------------------------------------------

X, W, T = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32), np.array([0, 1])
Z = np.ones((2, 2), np.float32)

CONVERTED: dict[str, tuple[Callable[[], Any], str]] = {
    "list": (lambda: K.relu([1.0, 2.0]), "relu: x: expected an array of backend '(numpy|numba)', got list"),
    "number": (lambda: K.relu(1.0), "relu: x: .* got float"),
    "scalar": (lambda: K.relu(np.float32(1)), "relu: x: .* got numpy.float32"),
    "integers": (lambda: K.relu(np.array([1])), "relu: x: expected a floating dtype.*int64"),
    "byte order": (lambda: K.relu(X.astype(">f4")), "relu: x: expected a floating dtype in native byte order.*>f4"),
    "other dtype": (lambda: K.affine(X, W.astype(float)), "affine: x: expected dtype float64.*got dtype float32"),
    "biases": (lambda: K.affine(X, W, np.ones(2, np.float16)), "affine: b: expected dtype float32.*got dtype float16"),
    "gradient": (lambda: K.relu_backward(X, X.astype(np.float16)), "relu_backward: y: .*float16"),
    "layer": (lambda: layers.Affine(W).forward(X.astype(float)), "Affine: affine: w: .*float64"),
    "list of labels": (lambda: K.softmax_cross_entropy(Z, [0, 1]), "softmax_cross_entropy: t: .* got list"),
    "labels' byte order": (lambda: K.softmax_cross_entropy(Z, T.astype(">i8")), "t: expected labels in native byte"),
    "labels per class": (lambda: K.softmax_cross_entropy(Z, Z.astype(float)), "t: expected dtype float32.*float64"),
    "weight": (lambda: K.softmax_cross_entropy(Z, T, weight=np.ones(2)), "weight: expected dtype float32.*float64"),
    "weights of rows": (
        lambda: K.linear_cross_entropy(Z, Z.T, None, T, sample_weight=np.ones(len(T))),
        "sample_weight: expected dtype float32.*float64",
    ),
    "list of weights": (lambda: K.softmax_cross_entropy(Z, T, weight=[1.0, 2.0]), "weight: .* got list"),
    "upstream": (lambda: K.softmax_cross_entropy_backward([1.0, 1.0], Z, T, reduction="none"), "dloss: .* got list"),
    "last layer": (
        lambda: K.linear_cross_entropy(X, W.astype(np.float16), None, T),
        "linear_cross_entropy: w: expected dtype float32",
    ),
    "penalty": (lambda: optim.l2_penalty([[1.0]], 0.1), "l2_penalty: params: .* got list"),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_would_be_converted_is_refused(name: str) -> None:
    call, message = CONVERTED[name]
    call()
    with pytest.raises(TypeError, match=message) as raised, K.capture() as graph:
        call()
    assert "before the block" in str(raised.value)
    with pytest.raises(RuntimeError, match="expected a graph that has been captured, but an exception has ended its"):
        graph.replay()
    assert graph.kernels == ()


def test_what_a_kernel_refuses_is_refused_as_outside() -> None:
    with pytest.raises(TypeError, match="expected float16.*got dtype object"), K.capture():
        K.relu([None])
    with pytest.raises(TypeError, match="t: expected class indices.*NoneType"), K.capture():
        K.softmax_cross_entropy(Z, None)  # type: ignore[arg-type]


def test_views_and_mapped_files_are_read_where_they_are(tmp_path: Any) -> None:
    class Kind(np.ndarray):
        pass

    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(2, 3))
    view = X.copy().view(Kind)
    with K.capture() as graph:
        y, z = K.relu(mapped), K.relu(view)
    mapped[...] = 3
    view[...] = 4
    graph.replay()
    assert y.tolist() == [[3.0] * 3] * 2
    assert z.tolist() == [[4.0] * 3] * 2


REFUSED: dict[str, Callable[[], Any]] = {
    "use": lambda: backends.use("numpy").__enter__(),
    "decorated": backends.use("numpy")(lambda: None),
    "set_default": lambda: backends.set_default("numpy"),
    "capture": lambda: K.capture().__enter__(),
    "softmax_jacobian": lambda: jacobians.softmax_jacobian(Z),
    "affine_jacobian": lambda: jacobians.affine_jacobian(X, W),
    "gradcheck": lambda: gradcheck.check(K.softmax, Z),
    "gradient": lambda: gradcheck.gradient(lambda x: x, 1.0),
    "descent": lambda: gradcheck.gradient_descent(lambda x: x, 1.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_recorded_is_refused(name: str) -> None:
    with K.capture() as graph:
        y = K.relu(X)
        with pytest.raises(RuntimeError, match=r"in a block of plugrad\.kernels\.capture"):
            REFUSED[name]()
    graph.replay()
    assert graph.kernels == ("relu",)
    assert y.shape == X.shape


@pytest.mark.parametrize(
    "make", [layers.Relu, layers.Sigmoid, layers.Softmax, lambda: layers.Affine(np.eye(3, 2, dtype="f"))]
)
def test_jacobians_of_layers_are_refused(make: Callable[[], Any]) -> None:
    layer = make()
    with K.capture():
        y = layer.forward(X)
        with pytest.raises(RuntimeError, match="does not record it"):
            layer.backward(np.ones_like(y), use_jacobian=True)


def test_replays_in_a_block_are_refused() -> None:
    with K.capture() as other:
        K.relu(X)
    with K.capture() as graph:
        K.relu(X)
        for replayed in (other, graph):
            with pytest.raises(RuntimeError, match="does not record replays"):
                replayed.replay()
    graph.replay()


def test_the_backend_after_a_block_is_that_before(backend: str) -> None:
    with pytest.raises(ZeroDivisionError), K.capture():
        raise ZeroDivisionError
    assert backends.current() == backend
    assert type(K.relu(np.float32(1))) is np.float32
    with K.capture():
        assert backends.current() is backends.get(backend)
        assert backends.explain("relu", X).backend == backend
    with backends.use("numpy"):
        pass


def test_the_backend_of_a_replay_is_that_of_the_capture() -> None:
    seen = []

    def relu(x: Any, out: Any) -> None:
        seen.append(dict(selection.options()))
        np.maximum(x, 0, out=out)

    module = types.SimpleNamespace(relu=relu, OPTIONS={"level": 1}, sgd=lambda *arguments: seen.append(arguments[3]))
    backends.register("of_the_test", module, replace=True)
    p = np.ones(3)
    with backends.use("of_the_test", level=5):
        optimizer = optim.SGD([p], lr=0.5)
        with K.capture() as graph:
            K.relu(p)
            optimizer.step([np.ones(3)])
    graph.replay()
    assert seen == [{"level": 5}, 0.5] * 2
    assert p.tolist() == [1.0] * 3


def test_the_checking_mode_of_a_gpu_is_refused() -> None:
    """A backend over CuPy's arrays would wait for the device."""
    module = types.SimpleNamespace(ARRAYS="cupy", relu=lambda x, out: None)
    backends.register("waits", module, replace=True)
    with backends.use("waits", check=True), pytest.raises(RuntimeError, match="the checking mode waits for the GPU"):
        K.capture().__enter__()
    with backends.use("waits"), K.capture():
        pass


def test_a_backend_prepares_its_calls() -> None:
    asked = []

    def relu(x: Any, out: Any) -> None:
        np.maximum(x, 0, out=out)

    def prepare(kernel: str, *arguments: Any) -> Any:
        asked.append((kernel, *map(type, arguments)))
        x, out = arguments
        return (lambda: np.copyto(out, x + 1)) if x.ndim == 2 else None

    backends.register("prepares", types.SimpleNamespace(relu=relu, prepare=prepare), replace=True)
    x, flat = X.copy(), np.ones(3)
    with backends.use("prepares"), K.capture() as graph:
        y, z = K.relu(x), K.relu(flat)
    graph.replay()
    assert (y == 2).all()
    assert (z == 1).all()
    assert asked == [("relu", np.ndarray, np.ndarray)] * 2


def test_a_backend_fuses_neighbouring_calls() -> None:
    seen: list[tuple[PreparedCall, ...]] = []

    def fuse(calls: Sequence[PreparedCall]) -> Sequence[PreparedCall]:
        seen.append(tuple(calls))
        return [PreparedCall(lambda: [call.run() for call in calls], (), "", False, None)]

    module = types.SimpleNamespace(
        relu=lambda x, out: np.maximum(x, 0, out=out), fuse=fuse, STAND_INS={"tanh": "numpy"}
    )
    backends.register("fuses", module, replace=True)
    x, empty = X.copy(), np.empty((0, 3), np.float32)
    with backends.use("fuses"):
        optimizer = optim.SGD([x], lr=0.5, momentum=0.5)
        with K.capture() as graph:
            y = K.tanh(K.relu(x))
            K.relu(empty)
            optim.clip_by_global_norm([y], math.inf)
            optimizer.step([y])
    (calls,) = seen
    assert [call.is_fixed for call in calls] == [True, False, True, False, False], "tanh is another backend's"
    assert calls[0].arrays[0] is x
    assert [call.update is not None for call in calls] == [False] * 4 + [True]
    before = x.copy()
    graph.replay()
    np.testing.assert_array_equal(y, np.tanh(before))
    assert optimizer.steps == 2
    assert calls[-1].update
    name, (params, grads, velocities), numbers = calls[-1].update()
    assert (name, numbers) == ("sgd", (0.5, 0.5, False, 0.0))
    assert (params[0] is x, grads[0] is y, velocities[0] is optimizer.velocities[0]) == (True, True, True)
    assert optimizer.steps == 3


def test_an_error_of_fused_calls_is_that_of_the_kernel() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    x, t = problem.batches[0]
    hosted = backends.get("numpy").module
    names = (*K.KERNELS, "sgd")
    module = types.SimpleNamespace(**{name: getattr(hosted, name) for name in names}, fuse=list)
    backends.register("fuses_nothing", module, replace=True)
    with backends.use("fuses_nothing"), K.capture() as graph:
        problem.step(x, t)
    t[0] = -1
    with pytest.raises(ValueError, match=r"^SoftmaxWithLoss: softmax_cross_entropy_value_and_grad: t: expected labels"):
        graph.replay()


def test_arrays_of_another_library() -> None:
    """Their shapes are compared, and they have no flags to compare."""

    class Ours:
        def __init__(self, values: Any) -> None:
            self.values = values

        def __getattr__(self, name: str) -> Any:
            return getattr(self.values, name)

    Ours.__module__ = "ours"
    module = types.SimpleNamespace(
        ARRAYS="ours",
        relu=lambda x, out: np.maximum(x.values, 0, out=out.values),
        take=lambda what, x: x,
        empty=lambda shape, dtype: Ours(np.empty(shape, dtype)),
        overlap=lambda a, b: "none",
    )
    backends.register("ours", module, replace=True)
    x: Any = Ours(X.copy())
    with backends.use("ours"), K.capture() as graph:
        y: Any = K.relu(x)
    x.values[...] = 5
    graph.replay()
    assert (y.values == 5).all()
    x.values = x.values.reshape(3, 2)
    with pytest.raises(ValueError, match=r"relu: x: expected an array of shape \(2, 3\).*got shape \(3, 2\)"):
        graph.replay()


def test_graphs_cannot_be_copied() -> None:
    with K.capture() as graph:
        K.relu(X)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(graph)


# ---------------------------------------------------------------------------------------------------------------------
# Between replays
# ---------------------------------------------------------------------------------------------------------------------


def test_a_wrong_label_is_the_error_of_a_call() -> None:
    z, t, h = np.ones((4, 3)), np.zeros(4, int), np.ones(5)
    with K.capture() as graph:
        K.relu(h, out=h)
        loss, dz = K.softmax_cross_entropy_value_and_grad(z, t)
        later = K.relu(dz)
    t[2] = 3
    z *= 2
    h[...] = -1
    before = [array.copy() for array in (loss, dz, later)]
    with pytest.raises(ValueError, match="got 3 at row 2") as expected:
        K.softmax_cross_entropy_value_and_grad(z, t)
    for _ in range(2):
        with pytest.raises(ValueError, match="got 3 at row 2") as raised:
            graph.replay()
        assert str(raised.value) == str(expected.value)
    for array, old in zip((loss, dz, later), before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert h.tolist() == [0.0] * 5
    t[2] = 1
    graph.replay()
    np.testing.assert_array_equal(dz, K.softmax_cross_entropy_value_and_grad(z, t)[1])


def test_the_error_names_the_layer_as_in_the_block() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    x, t = problem.batches[0]
    with K.capture() as graph:
        problem.step(x, t)
    before = problem.state()
    t[0] = -1
    with pytest.raises(ValueError, match=r"^SoftmaxWithLoss: softmax_cross_entropy_value_and_grad: t: expected labels"):
        graph.replay()
    assert problem.state() == before


def change(name: str, value: Any) -> Callable[[Any], None]:
    """A function that sets an attribute of an array, which NumPy advises against since 2.5."""

    def changed(array: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            setattr(array, name, value)

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            change("shape", (3, 2)),
            r"affine: x: expected an array of shape \(2, 3\), as it was captured, got shape \(3, 2\)",
        ),
        (lambda x: x.resize((1, 3), refcheck=False), r"affine: x: expected an array of shape \(2, 3\).*\(1, 3\)"),
        (change("dtype", np.int32), "affine: x: expected an array of dtype float32.*int32"),
    ],
)
def test_arrays_that_have_changed(changed: Callable[[Any], None], message: str) -> None:
    x = X.copy()
    with K.capture() as graph:
        y = K.affine(x, W)
    y[...] = 7
    changed(x)
    with pytest.raises(ValueError, match=message):
        graph.replay()
    assert (y == 7).all(), "nothing has been written"


def test_weights_of_rows_that_have_changed_their_dtype() -> None:
    weights = np.ones(2, np.float32)
    with K.capture() as graph:
        K.softmax_cross_entropy_value_and_grad(Z, T, sample_weight=weights)
    change("dtype", np.int32)(weights)
    with pytest.raises(ValueError, match=r"sample_weight: expected an array of dtype float32.*int32"):
        graph.replay()


def test_a_layer_is_given_the_weights_of_the_rows_of_a_batch() -> None:
    loss, weights, x = layers.SoftmaxWithLoss(z_loss=0.1), np.ones(2, np.float32), np.eye(2, dtype=np.float32)
    with K.capture() as graph:
        value = loss.forward(x, T, sample_weight=weights)
        dx = loss.backward(2.0)
    weights[...] = 0, 3
    graph.replay()
    options: Any = {"sample_weight": weights, "z_loss": 0.1}
    expected, slope = K.softmax_cross_entropy_value_and_grad(x, T, **options)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(dx, 2 * slope)
    assert (dx[0] == 0).all()


def test_a_number_that_is_no_probability_is_the_error_of_a_call() -> None:
    p = np.full((2, 2), 0.5, np.float32)
    with K.capture() as graph:
        K.cross_entropy(p, T)
        dp = K.cross_entropy_backward(1.0, p, T, out=p)
    assert dp is p
    p[...] = 0.5
    graph.replay()
    p[...] = [[0.5, 0.5], [0.5, 3.0]]
    with pytest.raises(ValueError, match=r"^cross_entropy: p: expected probabilities in \[0, 1\], got 3 at row 1; "):
        graph.replay()


def test_a_result_that_has_become_read_only() -> None:
    y, w = np.empty((2, 2), np.float32), W.copy()
    optimizer = optim.SGD([w], lr=0.1)
    with K.capture() as graph:
        K.affine(X, w, out=y)
        optimizer.step([np.ones_like(w)])
    y.flags.writeable = False
    with pytest.raises(ValueError, match="affine: out: expected an array that can be written, got a read-only one"):
        graph.replay()
    y.flags.writeable = True
    w.flags.writeable = False
    with pytest.raises(ValueError, match="sgd: .*read-only"):
        graph.replay()
    assert optimizer.steps == 1
    w.flags.writeable = True
    graph.replay()


def test_an_argument_may_become_read_only() -> None:
    x = X.copy()
    with K.capture() as graph:
        K.relu(x)
    x.flags.writeable = False
    graph.replay()


def test_replays_claim_the_workspace() -> None:
    workspace, failed = K.Workspace("1MB"), []
    with K.capture() as graph:
        first = K.relu(X)
        K.linear_cross_entropy(X, W, None, T, max_workspace=workspace)
    first[...] = 7

    def replay() -> None:
        try:
            graph.replay()
        except ValueError as error:
            failed.append(str(error))

    thread = threading.Thread(target=replay)
    thread.start()
    thread.join()
    (message,) = failed
    assert message.startswith("linear_cross_entropy: max_workspace: expected a Workspace of this thread")
    assert (first == 7).all()
    graph.replay()


def in_thread(function: Callable[[], Any]) -> None:
    """Run a function in a thread, and raise its error here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def test_a_thread_without_the_context_of_the_capture_replays_on_its_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python 3.14 the scope of a thread may be a variable of its own."""
    module = types.SimpleNamespace(relu=lambda x, out: np.multiply(x, 7, out=out))
    backends.register("sevenfold", module, replace=True)
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(selection, "scope", selection._ScopeOfThread())
        with backends.use("sevenfold"), K.capture() as graph:
            K.relu(X)
        graph._calls = (lambda: seen.append(backends.current().name),)
        in_thread(graph.replay)
    assert seen == ["sevenfold"]


def test_another_thread_replays() -> None:
    x = X.copy()
    with K.capture() as graph:
        y = K.relu(x)
        loss = K.linear_cross_entropy(x, W, None, T)
    x[...] = 9
    in_thread(graph.replay)
    assert (y == 9).all()
    assert float(loss) == float(K.linear_cross_entropy(x, W, None, T))


class Waiting:
    """A backend whose relu waits in a replay."""

    def __init__(self) -> None:
        self.entered, self.go_on, self.waits = threading.Event(), threading.Event(), False

    def relu(self, x: Any, out: Any) -> None:
        np.maximum(x, 0, out=out)
        if self.waits:
            self.entered.set()
            assert self.go_on.wait(PATIENCE)


@pytest.fixture
def waiting() -> Waiting:
    module = Waiting()
    backends.register("waiting", module, replace=True)
    with backends.use("waiting"), K.capture() as graph:
        K.relu(X)
    module.graph = graph  # type: ignore[attr-defined]
    module.waits = True
    return module


def test_two_threads_do_not_replay_at_once(waiting: Any) -> None:
    thread = threading.Thread(target=waiting.graph.replay, name="the first")
    thread.start()
    assert waiting.entered.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="is being replayed by another thread, 'the first'"):
        waiting.graph.replay()
    if hasattr(os, "fork"):
        assert forked(lambda: setattr(waiting, "waits", False) or waiting.graph.replay())
    waiting.go_on.set()
    thread.join()
    waiting.graph.replay()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_replays() -> None:
    x = X.copy()
    with K.capture() as graph:
        y = K.relu(K.affine(x, W))

    def replay() -> None:
        x[...] = 2
        graph.replay()
        assert (y == 6).all()

    assert forked(replay)
    assert (y == 3).all()


def test_a_signal_handler_does_not_replay_within_a_replay(waiting: Any) -> None:
    errors = []

    def handler(*_: Any) -> None:
        try:
            waiting.graph.replay()
        except RuntimeError as error:
            errors.append(str(error))

    before = signal.signal(signal.SIGUSR1, handler)
    waiting.entered.set = lambda: (signal.raise_signal(signal.SIGUSR1), waiting.go_on.set())
    try:
        waiting.graph.replay()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert errors == ["graph.replay: the graph is being replayed by this thread already"]


def test_ctrl_c_in_a_replay_locks_nothing(backend: str) -> None:
    x = np.ones((50, 60), np.float32)
    with K.capture() as graph:
        y = K.softmax(K.relu(x))
        for _ in range(20):
            y = K.softmax(y)
    main, stop, interrupts = threading.main_thread().ident, threading.Event(), 0
    assert main

    def interrupt() -> None:
        rng = np.random.default_rng(0)
        while not stop.wait(float(rng.uniform(0.0002, 0.002))):
            signal.pthread_kill(main, signal.SIGINT)

    def raise_in_replay(_: int, frame: Any) -> None:
        while frame is not None:  # elsewhere it would end the test
            if frame.f_code is type(graph).replay.__code__:
                raise KeyboardInterrupt
            frame = frame.f_back

    thread, before = threading.Thread(target=interrupt), signal.signal(signal.SIGINT, raise_in_replay)
    thread.start()
    try:
        while interrupts < 200:
            try:
                graph.replay()
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGINT, before)
    x[...] = np.random.default_rng(1).normal(size=x.shape)
    graph.replay()
    expected = K.softmax(K.relu(x))
    for _ in range(20):
        expected = K.softmax(expected)
    np.testing.assert_array_equal(y, expected)
    assert backends.current() == backend


def test_other_threads_and_tasks_are_not_recorded() -> None:
    async def later() -> None:
        await asyncio.sleep(0)
        assert isinstance(K.relu(np.float32(2)), np.float32)

    async def capture() -> Any:
        with K.capture() as graph:
            K.relu(X)
            in_thread(lambda: K.softmax([1.0, 2.0]))
            context = contextvars.copy_context()
            in_thread(lambda: context.run(K.softmax, [1.0, 2.0]))
            task = asyncio.get_running_loop().create_task(later())
        await task
        return graph

    assert asyncio.run(capture()).kernels == ("relu",)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def peak_of_replay(rows: int) -> int:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, 30)).astype(np.float32), rng.normal(size=(30, 20)).astype(np.float32)
    t, b = rng.integers(0, 20, rows), np.zeros(20, np.float32)
    optimizer = optim.SGD([w, b], lr=0.1, momentum=0.9)
    with K.capture() as graph:
        h = K.relu(K.affine(x, w, b))
        _, dz = K.softmax_cross_entropy_value_and_grad(h, t, out=h)
        _, dw, db = K.affine_backward(K.relu_backward(dz, h, out=dz), x, w)
        optimizer.step([dw, db])
        K.linear_cross_entropy(x, w, b, t, max_workspace="1MB")
    graph.replay()
    tracemalloc.start()
    graph.replay()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_replay_allocates_nothing_that_grows_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine another thread may first help in the replay that is measured, and makes its scratch memory then.
    monkeypatch.setattr(threads, "count", lambda: 1)
    assert peak_of_replay(32) < 2**16
    # In blocks of 2**19 elements and less, whose scratch memory does not grow with the batch.
    small, large = peak_of_replay(60_000), peak_of_replay(180_000)
    assert large < small + 2**18


# ---------------------------------------------------------------------------------------------------------------------
# TrainingStep
# ---------------------------------------------------------------------------------------------------------------------


def test_training_steps_over_batches_of_any_size() -> None:
    plain, captured = Problem(OPTIMIZERS["Adam"]), Problem(OPTIMIZERS["Adam"])
    training = layers.TrainingStep(captured.net, captured.loss, captured.optimizer)
    losses = []
    for rows in (7, 7, 3, 7, 0, 3, 1, 7):
        for x, t in plain.batches[:2]:
            losses.append((plain.step(x[:rows], t[:rows]), training.step(x[:rows], t[:rows])))
    assert all(expected == got for expected, got in losses), "and none is overwritten later"
    assert all(type(got) is np.float32 for _, got in losses)
    assert plain.state() == captured.state()
    assert len(training._captured) == 4


@pytest.mark.parametrize(
    "options",
    [{"reduction": "none"}, {"label_smoothing": 0.1, "ignore_index": 2}, {"z_loss": 0.1, "ignore_index": 2}],
    ids=str,
)
def test_training_steps_with_options(options: Any) -> None:
    plain, captured = Problem(OPTIMIZERS["SGD"], **options), Problem(OPTIMIZERS["SGD"], **options)
    training = layers.TrainingStep(captured.net, captured.loss, captured.optimizer)
    losses = [(plain.step(x, t).copy(), training.step(x, t)) for x, t in plain.batches]
    for expected, got in losses:
        np.testing.assert_array_equal(expected, got)
    assert plain.state() == captured.state()


@pytest.mark.parametrize(
    "converted",
    [
        lambda x, t: ((x > 0).astype(np.uint8), t),
        lambda x, t: (x > 0, t.astype(np.int8)),
        lambda x, t: (x.astype(">f4"), t.astype(">i4")),
        lambda x, t: (np.asfortranarray(x)[::-1], t.tolist()),
        lambda x, t: (x, np.eye(5)[t]),
        lambda x, t: (x, np.eye(5, dtype=int)[t]),
    ],
)
def test_training_steps_convert_as_layers_do(converted: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    plain, captured = Problem(OPTIMIZERS["SGD"]), Problem(OPTIMIZERS["SGD"])
    training = layers.TrainingStep(captured.net, captured.loss, captured.optimizer)
    for batch in plain.batches:
        x, t = converted(*batch)
        assert plain.step(x, t) == training.step(x, t)
    assert plain.state() == captured.state()


def test_training_steps_do_not_keep_the_batch() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    training = layers.TrainingStep(problem.net, problem.loss, problem.optimizer)
    x, t = problem.batches[0]
    references = sys.getrefcount(x), sys.getrefcount(t)
    x.flags.writeable = False
    training.step(x, t)
    training.step(x, t)
    assert (sys.getrefcount(x), sys.getrefcount(t)) == references


def test_a_wrong_batch_changes_nothing() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    training = layers.TrainingStep(problem.net, problem.loss, problem.optimizer)
    x, t = problem.batches[0]
    wrong = t.copy()
    wrong[3] = 5
    before = problem.state()
    message = "SoftmaxWithLoss: softmax_cross_entropy_value_and_grad: t: expected labels in .* got 5 at row 3"
    with pytest.raises(ValueError, match=message):
        training.step(x, wrong)
    assert problem.state() == before
    training.step(x, t)
    before = problem.state()
    with pytest.raises(ValueError, match=message):
        training.step(x, wrong)
    assert problem.state() == before
    with pytest.raises(TypeError, match="t: expected class indices or one number per class, got NoneType"):
        training.step(x, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="t: expected class indices of an integer dtype, got dtype <U1"):
        training.step(x, ["a"] * 7)
    message = r"x: expected dtype float32, that of the parameters, got float64; convert .* x.astype\('float32'\)"
    with pytest.raises(TypeError, match=f"TrainingStep: {message}"):
        training.step(x.astype(float), t)
    with pytest.raises(ValueError, match=r"Sequential: layer 0 \(Affine\): affine: x: expected 8 inputs"):
        training.step(x[:, 1:], t)
    assert problem.state() == before


class ByNumPy(layers.Layer):
    """A layer that no replay would compute."""

    def forward(self, x: Any) -> Any:
        return self.keep(np.tanh(x))

    def backward(self, dy: Any) -> Any:
        return dy * (1 - self.saved() ** 2)


class ByKernels(layers.Layer):
    """A layer with a constant of its own, and another layer inside."""

    def __init__(self) -> None:
        self.constant, self.inner = [np.eye(6, dtype=np.float32)], layers.Relu()

    def forward(self, x: Any) -> Any:
        return K.affine(self.inner.forward(x), self.constant[0])

    def backward(self, dy: Any) -> Any:
        return self.inner.backward(K.affine(dy, self.constant[0].T))


class ScaledLoss(layers.SoftmaxWithLoss):
    """A loss that NumPy scales."""

    def forward(self, x: Any, t: Any = None) -> Any:
        return super().forward(x, t) * 2


class OwnGradient(layers.Affine):
    """An affine layer whose gradient NumPy computes."""

    def backward(self, dy: Any, **_: Any) -> Any:
        self.dw[...] = self.saved().T @ dy
        self.db[...] = dy.sum(axis=0)
        return K.affine(dy, self.w.T)


@pytest.mark.parametrize(
    ("position", "layer", "loss", "message"),
    [
        (1, ByNumPy(), layers.SoftmaxWithLoss(), "affine: x: expected an array that a kernel has computed"),
        (0, ByNumPy(), layers.SoftmaxWithLoss(), "affine: x: "),
        (2, ByNumPy(), layers.SoftmaxWithLoss(), "softmax_cross_entropy_value_and_grad: x: "),
        (1, layers.Relu(), ScaledLoss(), "the loss: "),
        (0, OwnGradient(np.eye(8, dtype="f"), np.zeros(8, "f")), layers.SoftmaxWithLoss(), "a gradient: "),
    ],
)
def test_training_steps_refuse_what_they_would_not_record(position: int, layer: Any, loss: Any, message: str) -> None:
    parts = [layers.Affine.init(8, 6, rng=0), layers.Affine.init(6, 5, rng=1)]
    net = layers.Sequential(*parts[:position], layer, *parts[position:])
    optimizer = optim.SGD(net.params, lr=0.1)
    before = [p.copy() for p in net.params]
    x, t = Problem(OPTIMIZERS["SGD"]).batches[0]
    with pytest.raises(RuntimeError, match=f"TrainingStep: {message}"):
        layers.TrainingStep(net, loss, optimizer).step(x, t)
    for p, old in zip(net.params, before, strict=True):
        np.testing.assert_array_equal(p, old)
    assert optimizer.steps == 0


def test_training_steps_of_layers_that_call_kernels() -> None:
    def make() -> Any:
        net = layers.Sequential(layers.Affine.init(8, 6, rng=0), ByKernels(), layers.Affine.init(6, 5, rng=1))
        return net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1)

    training, (net, loss, optimizer) = layers.TrainingStep(*make()), make()
    for x, t in Problem(OPTIMIZERS["SGD"]).batches:
        expected = loss.forward(net.forward(x), t)
        net.backward(loss.backward())
        optimizer.step(net.grads)
        assert training.step(x, t) == expected


class Rebinding(layers.Affine):
    """An affine layer that binds its gradients anew, computed by kernels, or by NumPy."""

    by_numpy = False

    def backward(self, dy: Any, **_: Any) -> Any:
        dx, self.dw, self.db = K.affine_backward(dy, self.saved(), self.w)
        if self.by_numpy:
            self.dw = self.saved().T @ dy
        return dx


def test_training_steps_of_layers_that_bind_their_gradients_anew() -> None:
    def make() -> Any:
        rng = np.random.default_rng(0)
        own = Rebinding(rng.normal(size=(8, 5)).astype(np.float32), np.zeros(5, np.float32))
        net = layers.Sequential(own)
        return net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1)

    training, (net, loss, optimizer) = layers.TrainingStep(*make()), make()
    for x, t in Problem(OPTIMIZERS["SGD"]).batches:
        expected = loss.forward(net.forward(x), t)
        net.backward(loss.backward())
        optimizer.step(net.grads)
        assert training.step(x, t) == expected
    training = layers.TrainingStep(*make())
    training.net.layers[0].by_numpy = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="TrainingStep: a gradient: expected an array that a kernel has computed"):
        training.step(x, t)


def test_training_steps_by_cross_entropy() -> None:
    def make() -> Any:
        net = layers.Sequential(layers.Affine.init(8, 5, rng=0), layers.Softmax())
        return net, layers.CrossEntropy(reduction="none"), optim.SGD(net.params, lr=0.1)

    training, (net, loss, optimizer) = layers.TrainingStep(*make()), make()
    for x, t in Problem(OPTIMIZERS["SGD"]).batches:
        expected = loss.forward(net.forward(x), t)
        net.backward(loss.backward())
        optimizer.step(net.grads)
        np.testing.assert_array_equal(training.step(x, t), expected)


def test_training_steps_check_their_parts() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    parts = {"net": problem.net, "loss": problem.loss, "optimizer": problem.optimizer}
    for name, expected in (("net", "a Layer"), ("loss", "a Loss"), ("optimizer", "an Optimizer")):
        with pytest.raises(TypeError, match=f"TrainingStep: {name}: expected {expected}, got int"):
            layers.TrainingStep(**{**parts, name: 1})  # type: ignore[arg-type]


def test_a_copy_of_training_steps_captures_its_own() -> None:
    problem = Problem(OPTIMIZERS["momentum"])
    training = layers.TrainingStep(problem.net, problem.loss, problem.optimizer)
    training.step(*problem.batches[0])
    other = pickle.loads(pickle.dumps(training))
    assert repr(other).startswith(f"TrainingStep({problem.net!r}, SoftmaxWithLoss(")
    for batch in problem.batches:
        assert other.step(*batch) == training.step(*batch)


def test_training_steps_follow_the_backend_in_force() -> None:
    problem = Problem(OPTIMIZERS["SGD"])
    training = layers.TrainingStep(problem.net, problem.loss, problem.optimizer)
    training.step(*problem.batches[0])
    module = types.SimpleNamespace(
        **{name: getattr(backends.get("numpy").module, name) for name in (*K.KERNELS, "sgd")}
    )
    backends.register("like_numpy", module, replace=True)
    with backends.use("like_numpy"):
        training.step(*problem.batches[0])
    assert len(training._captured) == 2


def replace_parameters(training: layers.TrainingStep) -> None:
    layer: Any = training.net.layers[0]  # type: ignore[attr-defined]
    layer.w = layer.w * 2
    training.optimizer.params = training.net.params


def replace_a_gradient(training: layers.TrainingStep) -> None:
    layer: Any = training.net.layers[0]  # type: ignore[attr-defined]
    layer.dw = np.zeros_like(layer.dw)


def replace_the_optimizer(training: layers.TrainingStep) -> None:
    training.optimizer = optim.Adam(training.net.params)


def replace_the_loss(training: layers.TrainingStep) -> None:
    training.loss = layers.SoftmaxWithLoss(reduction="sum")


def replace_the_network(training: layers.TrainingStep) -> None:
    training.net = copy.deepcopy(training.net)
    training.optimizer.params = training.net.params


def replace_an_option_of_the_loss(training: layers.TrainingStep) -> None:
    training.loss.options["label_smoothing"] = 0.5


def replace_a_method(training: layers.TrainingStep) -> None:
    layer = cast(layers.Sequential, training.net).layers[1]
    forward = layer.forward
    layer.forward = lambda x: forward(K.tanh(x))


@pytest.mark.parametrize(
    "replace",
    [
        replace_parameters,
        replace_a_gradient,
        replace_the_optimizer,
        replace_the_loss,
        replace_the_network,
        replace_an_option_of_the_loss,
        replace_a_method,
    ],
)
def test_training_steps_see_what_is_replaced(replace: Callable[[Any], None]) -> None:
    plain, captured = Problem(OPTIMIZERS["momentum"]), Problem(OPTIMIZERS["momentum"])
    training = layers.TrainingStep(captured.net, captured.loss, captured.optimizer)
    for number, batch in enumerate(plain.batches):
        if number == 3:
            for each in (plain, training):
                replace(each)
        assert training.step(*batch) == plain.step(*batch)
        for mine, theirs in zip(
            (*training.net.params, *training.net.grads), (*plain.net.params, *plain.net.grads), strict=True
        ):
            assert mine.tobytes() == theirs.tobytes()
    assert len(training._captured) == 1


def test_training_steps_see_other_probabilities_and_seeds_of_dropout() -> None:
    def make() -> Any:
        net = layers.Sequential(layers.Affine.init(8, 6, rng=0), layers.Dropout(0.9, rng=0), layers.LeakyRelu())
        return net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1)

    training, (net, loss, optimizer) = layers.TrainingStep(*make()), make()
    graphs, captured_net = [], cast(layers.Sequential, training.net)
    for number, (x, t) in enumerate(Problem(OPTIMIZERS["SGD"]).batches):
        for each in (net, captured_net):
            if number == 2:
                each.layers[1].p = 0.25
            elif number == 3:
                each.layers[2].options["negative_slope"] = 0.5
            elif number == 4:
                each.layers[1].seed = np.array(7, np.uint64)
        expected = loss.forward(net.forward(x), t)
        net.backward(loss.backward())
        optimizer.step(net.grads)
        assert training.step(x, t) == expected
        captured_net.training = number % 2 == 0  # which makes no other step
        captured_net.forward(x)  # nor does an evaluation
        net.layers[1].seed = captured_net.layers[1].seed.copy()
        (captured,) = training._captured.values()
        graphs.append(captured.graph)
    assert [len({id(graph) for graph in graphs[:count]}) for count in range(1, 7)] == [1, 1, 2, 3, 4, 4]


class Counting(ByKernels):
    """A layer that sets attributes in its forward pass, and has one of its class."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.scale = 0, 1.0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.shape = x.shape
        return super().forward(K.leaky_relu(x, negative_slope=self.scale * self.factor))


def test_attributes_that_a_pass_sets_are_no_reason_to_capture_anew() -> None:
    rng = np.random.default_rng(0)
    net = layers.Sequential(layers.Affine.init(8, 6, rng=rng), Counting(), layers.Affine.init(6, 5, rng=rng))
    training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1))
    x, t = Problem(OPTIMIZERS["SGD"]).batches[0]
    graphs = []
    layer: Any = net.layers[1]
    for change in (dict, dict, lambda: setattr(layer, "scale", float("1.0")), lambda: setattr(layer, "factor", 0.5)):
        change()
        net.forward(x[:3])  # an evaluation
        training.step(x, t)
        (captured,) = training._captured.values()
        graphs.append(captured.graph)
    assert [graphs.index(graph) for graph in graphs] == [0, 0, 0, 3]


def test_a_training_step_is_made_by_one_thread_at_a_time() -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def rate(step: int) -> float:
        has_begun.set()
        assert may_end.wait(PATIENCE)
        return 0.1

    net = layers.Sequential(layers.Affine(np.ones((3, 2), np.float32)))
    training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params, rate))
    x, t = np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    thread = threading.Thread(target=training.step, args=(x, t), name="the first")
    thread.start()
    assert has_begun.wait(PATIENCE)
    try:
        with pytest.raises(RuntimeError, match=r"TrainingStep\.step: another thread, 'the first', is in a step; make"):
            training.step(x, t)
    finally:
        may_end.set()
        thread.join()
    training.step(x, t)
    assert training.optimizer.steps == 2
    with K.capture(), pytest.raises(RuntimeError, match=r"TrainingStep\.step: it captures steps by itself"):
        training.step(x, t)


def test_a_training_step_refuses_an_optimizer_of_other_parameters() -> None:
    w, x, t = np.ones((3, 2), np.float32), np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])
    net = layers.Sequential(layers.Affine(w))  # it copies the weights
    training = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD([w]))
    refused = pytest.raises(ValueError, match="TrainingStep: optimizer: expected the parameters of net, got others")
    with refused:
        training.step(x, t)
    training.optimizer = optim.SGD(net.params)
    training.step(x, t)
    before = net.params[0].copy()
    layer: Any = net.layers[0]
    layer.w = w.copy()
    with refused:
        training.step(x, t)
    np.testing.assert_array_equal(training.optimizer.params[0], before)
