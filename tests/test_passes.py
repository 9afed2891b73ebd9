"""The captured passes of networks: the same bits as by the layers, whatever changes between two batches."""

import contextlib
import copy
import gc
import itertools
import os
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.kernels import gradcheck, layers, optim
from plugrad.kernels._turn import Turn
from plugrad.kernels.layers import _passes
from plugrad.kernels.layers._passes import BY_LAYERS, LARGEST, MOST, Passes
from plugrad.tests.processes import forked

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
DY = RNG.normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(params=["numpy", pytest.param("numba", marks=pytest.mark.slow)], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


def network(dtype: Any = np.float32) -> layers.Sequential:
    """Return a network whose passes can be captured."""
    return layers.Sequential(
        layers.Affine.init(4, 8, rng=0, dtype=dtype),
        layers.Relu(),
        layers.Affine.init(8, 5, rng=1, dtype=dtype),
        layers.Gelu(),
        layers.MatMul.init(5, 3, rng=2, dtype=dtype),
    )


def by_layers(net: layers.Sequential, x: Any, dy: Any, needs_dx: bool = True) -> list[Any]:
    """Return what the layers compute one by one: the result and all gradients."""
    net = copy.deepcopy(net)
    for layer in net.layers:
        x = layer.forward(x)
    result = [x]
    for layer in reversed(net.layers):
        dy = layer.backward(dy)
    return [*result, dy if needs_dx else None, *net.grads]


def passes(net: layers.Sequential, x: Any, dy: Any, needs_dx: bool = True) -> list[Any]:
    """Return what the network computes."""
    y = net.forward(x)
    return [y, net.backward(dy, needs_dx=needs_dx), *[gradient.copy() for gradient in net.grads]]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """Assert that arrays have the same bits."""
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def captured(net: layers.Sequential, x: Any = X, dy: Any = DY) -> layers.Sequential:
    """Return the network after two batches: the passes of the next one are replays."""
    for _ in range(2):
        passes(net, x, dy)
    assert is_captured(net)
    return net


def is_captured(net: layers.Sequential) -> bool:
    """Whether the latest forward pass was a captured one."""
    assert net._passes is not None
    return net._passes._latest is not None


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("needs_dx", [True, False])
def test_replays_compute_the_bits_of_the_layers(dtype: str, needs_dx: bool) -> None:
    net = network(dtype)
    for step in range(5):
        x, dy = RNG.normal(size=(6, 4)).astype(dtype), RNG.normal(size=(6, 3)).astype(dtype)
        assert_same(passes(net, x, dy, needs_dx), by_layers(net, x, dy, needs_dx))
        assert is_captured(net) is (step > 0)
        for parameter, gradient in zip(net.params, net.grads, strict=True):
            parameter -= gradient * parameter.dtype.type(0.1)


def test_batches_of_several_shapes_take_turns() -> None:
    net = network()
    for rows in (6, 2, 6, 2, 1, 6, 2, 1, 3, 4, 5, 7, 6, 6):
        x, dy = RNG.normal(size=(rows, 4)).astype(np.float32), RNG.normal(size=(rows, 3)).astype(np.float32)
        assert_same(passes(net, x, dy), by_layers(net, x, dy))
    assert net._passes is not None
    assert len(net._passes._captured) <= MOST


def test_results_belong_to_the_caller() -> None:
    net = captured(network())
    first, dx = net.forward(X), net.backward(DY)
    kept = first.copy(), dx.copy()
    first_again = net.forward(2 * X)
    net.backward(2 * DY)
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(dx, kept[1])
    first_again[...] = 0  # the network does not read it again
    assert_same(passes(net, X, DY), by_layers(net, X, DY))


def test_the_batch_may_change_between_the_passes() -> None:
    net, x = captured(network()), X.copy()
    net.forward(x)
    x[...] = np.nan
    net.backward(DY)
    assert all(np.isfinite(gradient).all() for gradient in net.grads)


def replace_parameter(net: layers.Sequential) -> None:
    net.layers[0].w = net.layers[0].w * 2  # type: ignore[attr-defined]


def replace_gradient(net: layers.Sequential) -> None:
    net.layers[2].dw = np.zeros_like(net.layers[2].dw)  # type: ignore[attr-defined]


def drop_biases(net: layers.Sequential) -> None:
    net.layers[2].b = None  # type: ignore[attr-defined]
    net.layers[2].db = None  # type: ignore[attr-defined]
    net.layers[2].names = ("w",)


def update_in_place(net: layers.Sequential) -> None:
    net.layers[0].w[...] += 1  # type: ignore[attr-defined]


def change_options(net: layers.Sequential) -> None:
    net.layers[3].options["approximate"] = "tanh"  # type: ignore[attr-defined]


def use_a_layer(net: layers.Sequential) -> None:
    net.layers[2].forward(np.ones((2, 8), np.float32))


def forget(net: layers.Sequential) -> None:
    net.forget()


def load(net: layers.Sequential) -> None:
    net.load_state_dict({name: array + 1 for name, array in net.state_dict().items()})


CHANGES = (replace_parameter, replace_gradient, drop_biases, update_in_place, change_options, use_a_layer, forget, load)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_batches_is_seen(change: Callable[[layers.Sequential], None]) -> None:
    net = captured(network())
    change(net)
    for _ in range(3):
        assert_same(passes(net, X, DY), by_layers(net, X, DY))


@pytest.mark.parametrize("change", [use_a_layer, replace_parameter, replace_gradient, change_options])
def test_a_change_between_the_passes_is_seen(change: Callable[[layers.Sequential], None]) -> None:
    outcomes: list[Any] = []
    for net in (captured(network()), network()):  # the second one computes by layers
        net.forward(X)
        change(net)
        try:
            outcomes.append([net.backward(DY), *net.grads])
        except ValueError as error:  # the layer that was used has another batch
            outcomes.append(str(error))
    assert isinstance(outcomes[0], str) == (change is use_a_layer)
    if change is use_a_layer:
        assert outcomes[0] == outcomes[1]
    else:
        assert_same(*outcomes)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with each capture."""
    made: list[int] = []
    original = _passes.capture
    monkeypatch.setattr(_passes, "capture", lambda: made.append(1) or original())
    return made


def test_parameters_that_are_replaced_at_each_step_are_not_captured_each_time(captures: list[int]) -> None:
    net = network()
    for _ in range(40):
        assert_same(passes(net, X, DY), by_layers(net, X, DY))
        replace_parameter(net)
    assert 0 < len(captures) <= 2 * (MOST + 1)


def test_small_batches_with_large_results_are_captured_once(captures: list[int]) -> None:
    net = layers.Sequential(layers.Affine.init(1, LARGEST, rng=0), layers.Relu())
    x = np.ones((2, 1), np.float32)
    expected = net.layers[1].forward(net.layers[0].forward(x))
    assert expected.nbytes > LARGEST
    for _ in range(6):
        np.testing.assert_array_equal(net.forward(x), expected)
    assert len(captures) == 1
    assert not is_captured(net)


def test_a_selection_of_another_backend_is_seen() -> None:
    net = captured(network())
    for name in ("numpy", "numba", "numpy"):
        for _ in range(3):
            with backends.use(name):  # a choice of its own each time, but of the same backend
                assert_same(passes(net, X, DY), by_layers(net, X, DY))
        assert is_captured(net)


@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=0)[::2],
        X.astype(np.float64),
        X.astype(">f4"),
        X.tolist(),
        np.arange(24).reshape(6, 4),
        X[:0],
        X[0],
        np.zeros((LARGEST // 16 + 1, 4), np.float32),
    ],
    ids=["columns", "strides", "float64", "byte order", "list", "integers", "empty", "vector", "large"],
)
def test_batches_of_other_kinds_are_computed_by_the_layers(x: Any) -> None:
    net = captured(network())
    expected = x
    for layer in network().layers:
        expected = layer.forward(expected)
    for _ in range(3):
        y = net.forward(x)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected)
    assert_same(passes(net, X, DY), by_layers(net, X, DY))


@pytest.mark.parametrize("dy", [DY.T.copy().T, DY.astype(np.float64), DY.tolist(), DY[:2], DY[0]])
def test_gradients_of_other_kinds_are_taken_or_refused_as_by_layers(dy: Any) -> None:
    outcomes = []
    for net in (captured(network()), network()):
        net.forward(X)
        try:
            outcomes.append([net.backward(dy), *net.grads])
        except ValueError as error:
            outcomes.append([str(error)])
    assert len(outcomes[0]) == len(outcomes[1])
    if len(outcomes[0]) == 1:
        assert outcomes[0] == outcomes[1]
    else:
        for one, other in zip(*outcomes, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_errors_are_those_of_the_layers() -> None:
    net = captured(network())
    with pytest.raises(ValueError, match=r"Sequential: layer 0 \(Affine\): affine: x: expected 4 inputs"):
        net.forward(X[:, :3])
    net.forward(X)
    net.layers[0].dw.flags.writeable = False  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"Sequential: layer 0 \(Affine\): affine_backward: out: dw: .*read-only"):
        net.backward(DY)
    net.layers[0].dw.flags.writeable = True  # type: ignore[attr-defined]
    assert_same(passes(net, X, DY), by_layers(net, X, DY))
    net.forget()
    with pytest.raises(RuntimeError, match="call forward first"):
        net.backward(DY)


def test_a_network_of_activations_alone_returns_results_that_cannot_be_written() -> None:
    net = layers.Sequential(layers.Affine.init(4, 3, rng=0), layers.Softmax())
    results = [net.forward(X) for _ in range(4)]
    assert is_captured(net)
    assert not any(y.flags.writeable for y in results)
    for y in results:
        np.testing.assert_array_equal(y, results[0])


class Doubling(layers.Relu):
    def forward_unprotected(self, x: Any) -> Any:
        return super().forward_unprotected(x) * 2


@pytest.mark.parametrize(
    "layer",
    [Doubling(), layers.Dropout(0.5, rng=0), layers.Sequential(layers.Relu())],
    ids=["derived", "dropout", "net"],
)
def test_layers_that_compute_otherwise_are_not_captured(layer: layers.Layer) -> None:
    assert layers.Sequential(layers.Affine.init(4, 3, rng=0), layer)._passes is None


def test_a_nested_network_is_captured_by_itself() -> None:
    inner = network()
    net = layers.Sequential(inner, layers.Sequential(layers.Relu()))
    for _ in range(4):
        y = net.forward(X)
        dx = net.backward(DY)
    inner_y = inner.forward(X)
    np.testing.assert_array_equal(y, np.maximum(inner_y, 0))
    assert_same([dx], [by_layers(inner, X, np.where(inner_y > 0, DY, 0))[1]])


def test_a_derived_network_may_override_its_passes() -> None:
    class Flat(layers.Sequential):
        def forward(self, x: Any) -> Any:
            return super().forward(np.reshape(x, (len(x), -1)))

    net = Flat(layers.Affine.init(4, 3, rng=0), layers.Relu())
    results = [net.forward(X.reshape(6, 2, 2)) for _ in range(4)]
    for y in results:
        np.testing.assert_array_equal(y, results[0])


def test_what_a_layer_has_kept_belongs_to_the_caller() -> None:
    net = captured(network())
    kept = []
    for factor in (1, 2, 3):
        net.forward(factor * X)
        kept.append(net.layers[0].saved())
    for factor, inputs in enumerate(kept, 1):
        np.testing.assert_array_equal(inputs, factor * X)
    assert_same([net.backward(DY), *net.grads], by_layers(net, 3 * X, DY)[1:])  # by layers, as one has copied its part


def test_an_interrupted_batch_leaves_nothing_to_go_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    net = captured(network())

    def interrupt(graph: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_passes.Graph, "make_calls", interrupt)
        with pytest.raises(KeyboardInterrupt):
            net.forward(X)
    with pytest.raises(RuntimeError, match="call forward first"):
        net.backward(DY)
    assert_same(passes(net, X, DY), by_layers(net, X, DY))


def test_ctrl_c_in_a_pass_locks_nothing() -> None:
    """Python handles it after a call, here after each one that a pass makes of a function written in C."""
    net = captured(network())
    codes = [function.__code__ for function in (Passes.forward, Passes.backward, Turn.take)]
    number, is_interrupted = 0, True
    while is_interrupted:
        returns = itertools.count()

        def interrupt(frame: Any, event: str, _: Any, returns: Iterator[int] = returns, number: int = number) -> None:
            if event == "c_return" and frame.f_code in codes and next(returns) == number:
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            net.backward(net.forward(X))
            is_interrupted = False
        except KeyboardInterrupt:
            number += 1
        finally:
            sys.setprofile(None)
        assert_same(passes(net, X, DY), by_layers(net, X, DY))
        assert is_captured(net)
    assert number > 4


@pytest.mark.parametrize("captures_backward", [False, True])
def test_a_capture_in_which_another_thread_uses_the_layers_is_not_kept(
    captures_backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    original, stage = _passes.capture, []

    @contextlib.contextmanager
    def disturbed() -> Iterator[Any]:
        is_backward, foreign = (
            len(stage) == 1,
            np.ones((6, 8), np.float32),
        )  # of another thread
        with original() as graph:
            if captures_backward and is_backward:
                net.layers[2].keep(foreign)
            yield graph
        if not captures_backward:
            net.layers[2].keep(foreign)
        stage.append(graph)

    net.forward(X)
    monkeypatch.setattr(_passes, "capture", disturbed)
    net.forward(X)
    if captures_backward:
        net.backward(DY)
    monkeypatch.undo()
    assert stage
    if captures_backward:  # no layer is left with an array of the capture
        own = [array for _, array in net._passes._latest.saved]  # type: ignore[union-attr]
        assert not any(layer._saved is array for layer in net.layers for array in own)
    for _ in range(3):
        assert_same(passes(net, X, DY), by_layers(net, X, DY))


@pytest.mark.parametrize("x", [np.arange(4), np.array([True, False]), np.arange(4.0).astype(">f4")])
def test_networks_without_parameters_take_other_dtypes_each_time(x: Any) -> None:
    net = layers.Sequential(layers.Tanh())
    for _ in range(4):
        np.testing.assert_array_equal(net.forward(x), layers.Tanh().forward(x))


def test_biases_in_a_list_are_taken_each_time() -> None:
    net = layers.Sequential(layers.Affine.init(4, 3, rng=0), layers.Relu())
    net.layers[0].b = [0.0, 0.0, 0.0]  # type: ignore[attr-defined]
    for _ in range(4):
        np.testing.assert_allclose(net.forward(X), np.maximum(X @ net.layers[0].w, 0), rtol=1e-6)  # type: ignore[attr-defined]


def test_options_that_are_replaced_are_seen() -> None:
    net = layers.Sequential(layers.Affine.init(4, 3, rng=0), layers.LeakyRelu(negative_slope=0.5))
    for _ in range(3):
        assert net.forward(X).min() < 0
    net.layers[1].options = {"negative_slope": 0.0}  # type: ignore[attr-defined]
    assert net.forward(X).min() == 0


def test_a_backward_pass_is_computed_by_the_backend_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    net = captured(network())
    other = "numpy" if backends.current() == "numba" else "numba"
    calls = []
    functions = backends.get(other).functions
    original = functions["affine_backward"]
    monkeypatch.setitem(functions, "affine_backward", lambda *given: calls.append(1) or original(*given))
    net.forward(X)
    with backends.use(other):
        net.backward(DY)
    assert len(calls) == 3


def test_a_registered_backend_computes_by_the_layers() -> None:
    assert all(backends.get(name).is_built_in for name in ("numpy", "numba"))
    module = types.SimpleNamespace(affine=lambda x, w, b, y: np.copyto(y, 7))
    backends.register("affine_only", module, replace=True)
    with backends.use("affine_only"):
        net = layers.Sequential(layers.Affine.init(4, 3, rng=0))
        for _ in range(4):
            assert (net.forward(X) == 7).all()
            assert not is_captured(net)


def test_shapes_that_take_turns_are_not_captured_again_and_again(captures: list[int]) -> None:
    net = network()
    for _ in range(10):
        for rows in range(1, 9):
            for _ in range(2):
                net.forward(X[:1].repeat(rows, axis=0))
    assert 0 < len(captures) <= 3 * (MOST + 1)


def test_a_capture_of_the_backward_pass_alone_records_it() -> None:
    net = captured(network())
    net.forward(X)
    expected = by_layers(net, X, DY)
    with K.capture() as graph:
        dx = net.backward(DY.copy())
    assert graph.kernels.count("affine_backward") == 3
    net.forward(-X)
    graph.replay()
    assert_same([dx, *net.grads], expected[1:])


def test_a_network_without_layers_returns_its_argument() -> None:
    net = layers.Sequential()
    assert all(net.forward(X) is X for _ in range(4))


def test_a_capture_of_the_caller_records_the_layers() -> None:
    net, x = captured(network()), X.copy()
    with K.capture() as graph:
        y = net.forward(x)
        net.backward(DY.copy(), needs_dx=False)
    assert graph.kernels.count("affine") == 3
    x[...] = 2 * X
    graph.replay()
    np.testing.assert_array_equal(y, by_layers(net, 2 * X, DY)[0])


def test_a_captured_network_is_copied_and_stored_without_its_passes() -> None:
    net = captured(network())
    assert len(pickle.dumps(net)) < 1.1 * len(pickle.dumps(network()))
    for other in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.astype(np.float32)):
        assert other._passes is not None
        assert not other._passes._captured
        assert_same(passes(other, X, DY), by_layers(net, X, DY))


def test_forget_releases_the_arrays() -> None:
    net = captured(network())
    assert net._passes is not None
    assert net._passes._latest is not None
    inputs = weakref.ref(net._passes._latest.x)
    net.forget()
    gc.collect()
    assert inputs() is None


def test_threads_get_the_right_results() -> None:
    net = captured(network())
    inputs = [RNG.normal(size=(6, 4)).astype(np.float32) for _ in range(4)]
    expected = [by_layers(net, x, DY)[0] for x in inputs]
    failures = []

    def predict(number: int) -> None:
        for _ in range(300):
            if not np.array_equal(net.forward(inputs[number]), expected[number]):
                failures.append(number)

    in_scope = backends.use(backends.current().name)
    threads = [threading.Thread(target=in_scope(predict), args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_layers_compute_in_the_turn_of_another_thread() -> None:
    net = captured(network())
    assert net._passes is not None
    latest = net._passes._latest
    assert latest is not None
    y = latest.turn.take(net.forward, X)
    np.testing.assert_array_equal(y, by_layers(net, X, DY)[0])
    assert not is_captured(net)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_that_was_forked_in_a_pass_of_another_thread_replays() -> None:
    net = captured(network())
    assert net._passes is not None
    latest = net._passes._latest
    assert latest is not None
    has_begun, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=latest.turn.take, args=(lambda: has_begun.set() or may_end.wait(),))
    thread.start()
    has_begun.wait()

    def replay() -> None:
        np.testing.assert_array_equal(net.forward(X), by_layers(net, X, DY)[0])
        assert is_captured(net)

    succeeds = forked(replay)
    may_end.set()
    thread.join()
    assert succeeds


def test_the_gradients_are_right() -> None:
    net = captured(network(np.float64), X.astype(np.float64), DY.astype(np.float64))
    assert gradcheck.check(net, X.astype(np.float64))


def test_an_optimizer_trains_as_by_layers() -> None:
    t = RNG.integers(0, 3, 6)
    losses: dict[bool, list[float]] = {}
    for is_plain in (False, True):
        net, loss = network(), layers.SoftmaxWithLoss()
        if is_plain:
            net._passes = None
        optimizer = optim.Adam(net.params, lr=0.01)
        for _ in range(20):
            losses.setdefault(is_plain, []).append(float(loss.forward(net.forward(X), t)))
            net.backward(loss.backward(), needs_dx=False)
            optimizer.step(net.grads)
    assert losses[False] == losses[True]


def test_nothing_is_captured_where_the_backend_depends_on_the_call() -> None:
    assert Passes((layers.Relu(),)).forward(None, np.zeros((0, 4), np.float32)) is BY_LAYERS
