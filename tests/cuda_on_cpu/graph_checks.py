"""Captures on the emulated device: replays launch CUDA graphs (`test_cuda_on_cpu.py` runs these tests)."""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cupy
import cupyx
import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends.cupy import blas, graphs
from plugrad.kernels import layers, optim
from plugrad.tests.test_capture import CALLS, OPTIMIZERS, Inputs, Problem, forked, in_thread

# The first replay makes the calls, the second captures them, and later ones launch what was captured.
REPLAYS = 4

# Calls that are made between graphs.
OUTSIDE = ("l2_penalty", "l2_penalty without gradients")


@pytest.fixture(autouse=True)
def on_device() -> Iterator[None]:
    cupy.cuda.launched.clear()
    with backends.use("cupy"):
        yield
    assert not cupy.cuda._captures, "a stream is still being captured"
    assert cupy.cuda.get_current_stream().ptr == 0


class OnDevice(Inputs):
    """The arguments of calls, on the device."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(dtype)
        self._on_host = Inputs(dtype)
        for name, array in vars(self._on_host).items():
            setattr(self, name, d(array))
        rows, classes = self._on_host.z.shape
        self.strided = d(np.empty((2 * rows, 3 * classes), dtype))[::-2, ::3]
        self.of_rows = d(np.empty(2 * rows, self._on_host.of_rows.dtype))[::-2]

    def fill(self, seed: int) -> None:
        self._on_host.fill(seed)
        for name, array in vars(self._on_host).items():
            getattr(self, name)[...] = d(np.ascontiguousarray(array) if array.ndim else array)

    def bits(self) -> list[bytes]:
        return [getattr(self, name).get().tobytes() for name in vars(self._on_host)]


def d(array: Any) -> Any:
    return backends.asarray(array)


def bits(results: Any) -> list[Any]:
    return [None if r is None else r.get().tobytes() for r in (results if isinstance(results, tuple) else [results])]


def launches_of(function: Callable[[], Any]) -> list[str]:
    """The graphs, and the kernels outside of them, that a function launches; it may not wait for the device."""
    before = len(cupy.cuda.launched)
    with cupyx.allow_synchronize(False):
        function()
    return list(cupy.cuda.launched[before:])


def are_graphs(launched: list[str]) -> bool:
    return bool(launched) and all(name.startswith("graph of") for name in launched)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("call", CALLS)
def test_a_replay_has_the_bits_of_a_call(call: str, dtype: Any) -> None:
    plain, captured = OnDevice(dtype), OnDevice(dtype)
    plain.fill(0)
    captured.fill(0)
    expected = CALLS[call](plain)
    with K.capture() as graph:
        results = CALLS[call](captured)
    assert bits(results) == bits(expected)
    for seed in range(1, REPLAYS + 1):
        plain.fill(seed)
        captured.fill(seed)
        expected = CALLS[call](plain)
        launched = launches_of(graph.replay)
        assert are_graphs(launched) == (seed > 1 and call not in OUTSIDE), launched
        assert len(launched) == 1 or not are_graphs(launched)
        assert bits(results) == bits(expected)
        assert plain.bits() == captured.bits()


class ProblemOnDevice(Problem):
    """A network, its loss and its optimizer, and batches, on the device."""

    def __init__(self, make_optimizer: Callable[[Any], Any], dtype: Any = np.float32, **options: Any) -> None:
        super().__init__(make_optimizer, dtype, **options)
        rng = np.random.default_rng(0)
        affine = layers.Affine.init
        stack = affine(8, 6, rng=rng, dtype=dtype), layers.Relu(), affine(6, 6, rng=rng, dtype=dtype), layers.Sigmoid()
        self.net = layers.Sequential(*stack, layers.Dropout(0.3, rng=1), affine(6, 5, rng=rng, dtype=dtype))
        self.optimizer = make_optimizer(self.net.params)
        self.batches = [(d(x), d(t)) for x, t in self.batches]

    def state(self) -> list[bytes]:
        return [p.get().tobytes() for p in self.net.params]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loop_of_layers_with_dropout(optimizer: str, dtype: Any) -> None:
    plain = ProblemOnDevice(OPTIMIZERS[optimizer], dtype)
    captured = ProblemOnDevice(OPTIMIZERS[optimizer], dtype)
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
            launched = launches_of(graph.replay)
            if step > 1:
                first, numbers, second = launched
                assert are_graphs([first, second])
                assert numbers == "put_numbers"
                assert second == f"graph of {len(captured.net.params)}"
        assert bits(loss) == bits(expected)
        assert captured.state() == plain.state()
    assert captured.optimizer.steps == plain.optimizer.steps == 6
    assert bits(captured.step(*plain.batches[0])) == bits(plain.step(*plain.batches[0])), "plain steps go on"
    assert captured.state() == plain.state()


def test_calls_that_are_made_between_graphs() -> None:
    plain, captured = (ProblemOnDevice(OPTIMIZERS["AdamW"]) for _ in range(2))
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
            launched = launches_of(graph.replay)
            assert number == 1 or (launched[0].startswith("graph") and launched[-1].startswith("graph"))
        assert bits(norm) == bits(expected)
        assert captured.state() == plain.state()


@pytest.mark.parametrize("name", ["Nesterov", "Adam", "AdamW", "RMSprop"])
def test_steps_for_parameters_of_any_strides(name: str) -> None:
    rng = np.random.default_rng(0)
    host = [rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)]
    params = [d(host[0])[:, ::2], d(host[1]).T, d(np.empty((0, 3), np.float32))]
    of_host = [host[0].copy()[:, ::2], host[1].copy().T, np.empty((0, 3), np.float32)]
    optimizer = OPTIMIZERS[name](params)
    with backends.use("numpy"):
        expected = OPTIMIZERS[name](of_host)
    with K.capture() as graph:
        optimizer.step([params[0], *[d(np.ones(p.shape, p.dtype)) for p in params[1:]]])  # one is its own gradient
    for _ in range(REPLAYS):
        graph.replay()
    with backends.use("numpy"):
        for _ in range(REPLAYS + 1):
            expected.step([of_host[0], *[np.ones(p.shape, p.dtype) for p in of_host[1:]]])
    for p, q in zip(params, of_host, strict=True):
        np.testing.assert_allclose(p.get(), q, rtol=2e-5, atol=1e-6)


def captured_step() -> tuple[Any, Any, Any]:
    """A graph of kernels with temporary arrays and products, its input, and what it should compute."""
    x, w = d(np.arange(12.0).reshape(3, 4)), d(np.eye(4))
    t = d(np.array([0, 3, 1]))
    with K.capture() as graph:
        loss = K.linear_cross_entropy(x.T[:3], K.relu(K.affine(w[:3, :3], w[:3, :3])), None, t)
        K.relu(loss, out=loss)

    def expected() -> bytes:
        found = K.linear_cross_entropy(x.T[:3], K.relu(K.affine(w[:3, :3], w[:3, :3])), None, t)
        return bits(K.relu(found, out=found))[0]

    graph.loss = loss
    return graph, x, expected


def replays_right(graph: Any, x: Any, expected: Callable[[], bytes], times: int = REPLAYS) -> None:
    for number in range(times):
        x[...] = d(np.random.default_rng(number).normal(size=x.shape))
        graph.replay()
        assert bits(graph.loss)[0] == expected()


def test_nobody_else_is_given_the_memory_of_a_graph() -> None:
    graph, x, expected = captured_step()
    replays_right(graph, x, expected)
    others = [d(np.full(n, 7.0)) for n in range(1, 200)]
    replays_right(graph, x, expected)
    assert all((other.get() == 7).all() for other in others)


def test_memory_of_cupys_pool_in_a_graph_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        graphs.Memory, "allocate", lambda self, size: cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)
    )
    graph, x, expected = captured_step()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="memory that has been freed"):
        replays_right(graph, x, expected)


def test_blocks_are_used_again_and_stay_as_long_as_arrays_in_them() -> None:
    memory = graphs.Memory()
    first = memory.allocate(5000)
    address, size = first.ptr, first.mem.size
    second = memory.allocate(5000)
    assert size == 5120
    assert second.ptr != address
    del first
    small = memory.allocate(10)
    assert small.ptr not in (address, second.ptr), "a block is not wasted on an array of less than half its size"
    again = memory.allocate(3000)
    assert again.ptr == address
    del memory
    assert address in cupy.cuda._allocated
    del again, second, small
    assert address not in cupy.cuda._allocated


def test_the_workspace_of_a_call_is_another_than_that_of_a_graph() -> None:
    workspace, rng = K.Workspace("1MB"), np.random.default_rng(0)
    x, w, t = d(rng.normal(size=(6, 4))), d(rng.normal(size=(4, 5))), d(np.array([0, 3, 1, 4, 4, 2]))
    with K.capture() as graph:
        loss = K.linear_cross_entropy(x, w, None, t, max_workspace=workspace)
    for rows in (6, 60, 6, 600):
        x[...] = d(rng.normal(size=(6, 4)))
        graph.replay()
        more, labels = d(rng.normal(size=(rows, 4))), d(np.zeros(rows, int))
        K.linear_cross_entropy(more, w, None, labels, max_workspace=workspace)  # its memory grows
        assert bits(loss) == bits(K.linear_cross_entropy(x, w, None, t))
    assert len(workspace._memory) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Where no graph can be made
# ---------------------------------------------------------------------------------------------------------------------


def gemm_by_cupy(self: Any, *arguments: int) -> None:
    cupy.cuda.cublas.gemmEx(cupy.cuda.get_cublas_handle(), *arguments)


def call_without_workspace(self: Any, name: str, *arguments: int) -> None:
    if name != "cublasSetWorkspace_v2" and (status := self._functions[name](self._handle, *arguments)):
        raise RuntimeError(f"{name} failed with the status {status}")


def memory_outside_of_graphs(size: int, kind: Any = cupy.cuda.Memory) -> Any:
    if cupy.cuda.get_current_stream().is_capturing():
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
    return kind(size)


def make_calls_and_wait(self: Any, *arguments: Any, make_calls: Any = graphs.Launches._make_calls) -> None:
    make_calls(self, *arguments)
    float(cupy.ones(()))


def no_streams(**_: Any) -> Any:
    raise RuntimeError("no streams")


PROBLEMS: dict[str, tuple[Any, str, Any, str]] = {
    "cuBLAS by CuPy": (
        blas.Handle,
        "gemm_ex",
        gemm_by_cupy,
        "NotImplementedError: calling cuBLAS API during stream capture is currently unsupported",
    ),
    "cuBLAS without a workspace": (
        blas.Handle,
        "_call",
        call_without_workspace,
        "RuntimeError: cublasGemmEx failed with the status 3",
    ),
    "no cuBLAS to load": (cupy.cuda.cublas, "getVersion", lambda handle: 980_000, "OSError: libcublas.so.98"),
    "a workspace of the caller's": (
        os,
        "environ",
        {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        "RuntimeError: CUBLAS_WORKSPACE_CONFIG is set",
    ),
    "no memory": (
        cupy.cuda,
        "Memory",
        memory_outside_of_graphs,
        "MemoryError: no .* bytes of memory for a CUDA graph: cudaErrorMemoryAllocation",
    ),
    "a call that waits": (
        graphs.Launches,
        "_make_calls",
        make_calls_and_wait,
        "CUDARuntimeError: cudaErrorStreamCaptureUnsupported: the device was waited for",
    ),
    "no streams": (cupy.cuda, "Stream", no_streams, "RuntimeError: no streams"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_calls_are_made_where_no_graph_can_be(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graph, x, expected = captured_step()
    monkeypatch.setattr(graphs, "_handles", {})
    *spoiled, message = PROBLEMS[name]
    monkeypatch.setattr(*spoiled)
    with caplog.at_level(logging.INFO, "plugrad"):
        replays_right(graph, x, expected)
    (record,) = [record for record in caplog.records if "CUDA graph" in record.getMessage()]
    assert record.levelno == logging.INFO
    start = r"graph.replay: no CUDA graph of \d+ calls can be made, so that each replay makes the calls: "
    assert re.match(start + message, record.getMessage())
    assert not any(name.startswith("graph") for name in cupy.cuda.launched)


def test_the_checking_mode_is_refused() -> None:
    with backends.use("cupy", check=True), pytest.raises(RuntimeError, match="the checking mode waits for the GPU"):
        K.capture().__enter__()


def test_a_wrong_label_gives_nan() -> None:
    z, t = d(np.zeros((3, 4), np.float32)), d(np.array([0, 1, 2]))
    with K.capture() as graph:
        _, dz = K.softmax_cross_entropy_value_and_grad(z, t)
    for _ in range(REPLAYS):
        t[...] = d(np.array([0, 9, 2]))
        graph.replay()
        assert np.isnan(dz.get()).all(axis=1).tolist() == [False, True, False]
        t[...] = d(np.array([0, 3, 2]))
        graph.replay()
        assert not np.isnan(dz.get()).any()


# ---------------------------------------------------------------------------------------------------------------------
# Devices, streams, threads, interrupts, processes
# ---------------------------------------------------------------------------------------------------------------------


def test_a_graph_runs_on_the_device_of_its_arrays() -> None:
    with cupy.cuda.Device(1):
        graph, x, expected = captured_step()
    assert graph.loss.device.id == 1
    for number in range(REPLAYS):
        with cupy.cuda.Device(1):
            x[...] = d(np.random.default_rng(number).normal(size=x.shape))
            wanted = expected()
        graph.replay()
        assert bits(graph.loss)[0] == wanted
    assert cupy.cuda.runtime.getDevice() == 0


def test_calls_on_two_devices() -> None:
    one = d(np.ones((2, 6)))[:, ::2]  # copied for the product
    with cupy.cuda.Device(1):
        other = d(np.ones((2, 6)))[:, ::2]
    with K.capture() as graph:
        y = K.affine(one, one.T)
        with cupy.cuda.Device(1):
            z = K.affine(other, other.T)
    for number in range(REPLAYS):
        one[...], other[...] = number, 10 + number
        graph.replay()
        assert (y.get() == 3 * number**2).all()
        assert (z.get() == 3 * (10 + number) ** 2).all()
    assert are_graphs(cupy.cuda.launched[-2:])


def test_an_optimizer_updates_each_parameter_on_its_device() -> None:
    one, of_one = d(np.ones(3)), d(np.ones(3))
    with cupy.cuda.Device(1):
        other, of_other = d(np.ones(3)), d(np.ones(3))
    optimizer = optim.SGD([one, other], lr=0.5)
    optimizer.step([of_one, of_other])
    with pytest.raises(ValueError, match="sgd: grads: 1: expected an array on device 1, that of its parameter"):
        optimizer.step([of_one, of_one])
    with K.capture() as graph:
        optimizer.step([of_one, of_other])
    for _ in range(REPLAYS):
        graph.replay()
    for parameter in (one, other):
        assert (parameter.get() == 1 - 0.5 * (2 + REPLAYS)).all()


def test_the_current_stream_stays_current() -> None:
    graph, x, expected = captured_step()
    mine = cupy.cuda.Stream(non_blocking=True)
    mine.use()
    try:
        replays_right(graph, x, expected)
        assert cupy.cuda.get_current_stream() is mine
    finally:
        cupy.cuda.null_stream.use()
    with cupy.cuda.Stream(non_blocking=True) as other:
        replays_right(graph, x, expected)
        assert cupy.cuda.get_current_stream() is other
    replays_right(graph, x, expected)


def test_other_threads_capture_and_replay() -> None:
    graph, x, expected = captured_step()
    for _ in range(2):
        in_thread(lambda: backends.use("cupy")(replays_right)(graph, x, expected, 2))
    assert are_graphs(launches_of(graph.replay))
    made = [captured_step() for _ in range(4)]
    threads = [threading.Thread(target=backends.use("cupy")(replays_right), args=each) for each in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in made:
        replays_right(*each)


def test_ctrl_c_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x, expected = captured_step()
    graph.replay()
    for name in ("use", "begin_capture", "end_capture"):
        for is_after in (False, True):
            function = getattr(cupy.cuda.Stream, name)
            turns = iter([True])

            def interrupted(
                *given: Any, function: Any = function, is_after: bool = is_after, turns: Any = turns
            ) -> Any:
                is_first = next(turns, False)
                if is_first and not is_after:
                    raise KeyboardInterrupt
                result = function(*given)
                if is_first:
                    raise KeyboardInterrupt
                return result

            with monkeypatch.context() as patch:
                patch.setattr(cupy.cuda.Stream, name, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    graph.replay()
            assert not cupy.cuda._captures
            assert cupy.cuda.get_current_stream().ptr == 0
            assert not blas.is_captured()
    replays_right(graph, x, expected)
    assert any(name.startswith("graph") for name in cupy.cuda.launched)


def test_a_signal_handler_does_not_replay_within_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x, expected = captured_step()
    other, *_ = captured_step()
    make_calls, errors = graphs.Launches._make_calls, []

    def interrupted(self: Any, *arguments: Any) -> None:
        if blas.is_captured():
            with pytest.raises(RuntimeError, match="this thread is making a CUDA graph") as raised:
                other.replay()
            errors.append(raised)
        make_calls(self, *arguments)

    monkeypatch.setattr(graphs.Launches, "_make_calls", interrupted)
    replays_right(graph, x, expected)
    assert len(errors) == 1
    other.replay()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_replays() -> None:
    graph, x, expected = captured_step()
    for _ in range(3):
        assert forked(lambda: replays_right(graph, x, expected))
        replays_right(graph, x, expected, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers
# ---------------------------------------------------------------------------------------------------------------------


def test_states_that_are_replaced_are_captured_anew() -> None:
    plain, captured = (ProblemOnDevice(OPTIMIZERS["Adam"]) for _ in range(2))
    x, t = plain.batches[0]
    plain.step(x, t)
    with K.capture() as graph:
        captured.step(x, t)
    for number in range(9):
        if number == 4:
            for problem in (plain, captured):
                problem.optimizer.means = tuple(array.copy() for array in problem.optimizer.means)
        launched = launches_of(graph.replay)
        assert number == 0 or launched[1] == "put_numbers" or number == 4, launched
        plain.step(x, t)
        assert captured.state() == plain.state()


def test_a_rate_is_asked_for_when_the_calls_before_have_been_made() -> None:
    def make() -> tuple[Any, Any]:
        losses: list[Any] = []
        return losses, ProblemOnDevice(lambda params: optim.SGD(params, lambda step: float(losses[-1]) / 10))

    (losses, plain), (kept, captured) = make(), make()
    x, t = plain.batches[0]

    def step(problem: Problem, losses: list[Any]) -> None:
        losses.append(problem.loss.forward(problem.net.forward(x), t))
        problem.net.backward(problem.loss.backward(), needs_dx=False)
        problem.optimizer.step(problem.net.grads)

    step(plain, losses)
    with K.capture() as graph:
        step(captured, kept)
    for _ in range(REPLAYS):
        graph.replay()
        step(plain, losses)
        assert captured.state() == plain.state()


def test_a_wrong_rate_is_the_error_of_a_step() -> None:
    problem = ProblemOnDevice(OPTIMIZERS["SGD"])
    with K.capture() as graph:
        problem.step(*problem.batches[0])
    for _ in range(REPLAYS):
        before = problem.state()
        problem.optimizer.lr = -1.0
        with pytest.raises(ValueError, match=r"SGD: lr: expected"):
            graph.replay()
        assert problem.state() == before
        problem.optimizer.lr = 0.1
        graph.replay()
        assert problem.state() != before


def test_training_steps_over_batches_of_any_size() -> None:
    plain, captured = (ProblemOnDevice(OPTIMIZERS["Adam"]) for _ in range(2))
    training = layers.TrainingStep(captured.net, captured.loss, captured.optimizer)
    losses = []
    for rows in (7, 7, 3, 7, 0, 3, 1, 7, 3, 3):
        for x, t in plain.batches[:2]:
            losses.append((plain.step(x[:rows], t[:rows]).copy(), training.step(x[:rows], t[:rows])))
    assert all(bits(expected) == bits(got) for expected, got in losses), "and none is overwritten later"
    assert plain.state() == captured.state()
