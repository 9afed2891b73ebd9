"""Arrays of PyTorch and JAX: they are read where they are, and results come back in the library of the first one."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends, distributed, kernels as K
from plugrad.backends import host, selection
from plugrad.kernels import jacobians, layers, optim
from plugrad.tests import ranks
from plugrad.tests.arrays import address_of, seen, table
from plugrad.tests.conformance.cases import samples
from plugrad.tests.conformance.subject import as_tuple
from plugrad.tests.records import RECORDS

pytestmark = pytest.mark.slow

TORCH, JAX = pytest.mark.needs("torch"), pytest.mark.needs("jax")
LIBRARIES = [pytest.param("torch", marks=TORCH), pytest.param("jax", marks=JAX)]
FLOATS = ("float16", "bfloat16", "float32", "float64")
WRITING = [name for name, record in RECORDS.items() if "out" in inspect.signature(record.function).parameters]


@pytest.fixture
def torch() -> Any:
    return importlib.import_module("torch")


@pytest.fixture
def jnp() -> Any:
    return importlib.import_module("jax.numpy")


@pytest.fixture(autouse=True)
def _on_numpy(_selection_restored: None) -> None:
    backends.set_default("numpy")


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with its dtypes of 64 bits, where it is installed."""
    try:
        jax = importlib.import_module("jax")
    except ImportError:
        yield
        return
    with jax.enable_x64(True):
        yield


def in_library(library: str, x: Any) -> Any:
    """An array of NumPy as one of a library, copied; all else as it is."""
    if not isinstance(x, np.ndarray) or library == "numpy":
        return x
    if library == "jax":
        return importlib.import_module("jax.numpy").array(x)
    torch = importlib.import_module("torch")
    is_bfloat16 = x.dtype == ml_dtypes.bfloat16
    tensor = torch.tensor(x.view(np.int16) if is_bfloat16 else x)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def bits(x: Any) -> tuple[str, tuple[int, ...], bytes] | None:
    """The dtype, shape and bytes of an array of any library."""
    if x is None:
        return None
    array = x if isinstance(x, np.ndarray | np.generic) else host.take("x", x)
    return str(array.dtype), array.shape, array.tobytes()


def is_of(library: str, x: Any) -> bool:
    """Whether `x` is an array of a library."""
    module = importlib.import_module(library)
    return isinstance(x, module.Tensor if library == "torch" else module.Array)


def flat(value: Any) -> list[Any]:
    """The entries of nested tuples."""
    return [x for entry in value for x in flat(entry)] if isinstance(value, tuple) else [value]


# ---------------------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_kernel_computes_the_same_bits_without_copies(library: str, name: str, dtype: str, x64: None) -> None:
    for case in samples(RECORDS[name], 6, 5, np.dtype(getattr(ml_dtypes, dtype, dtype))):
        arguments = [case.inputs.get(argument) for argument in RECORDS[name].arguments]
        expected = as_tuple(RECORDS[name].function(*arguments, **case.options))
        given = [in_library(library, x) for x in arguments]
        options = {key: in_library(library, x) for key, x in case.options.items()}
        with seen("numpy", name) as calls:
            results = as_tuple(RECORDS[name].function(*given, **options))
        assert [bits(result) for result in results] == [bits(result) for result in expected]
        assert all(result is None or is_of(library, result) for result in results)
        read = {address_of(x) for call in calls for x in flat(call) if isinstance(x, np.ndarray)}
        for array in [*given, *options.values()]:
            if is_of(library, array):
                assert address_of(array) in read, "an argument was copied"
        for result in results:
            is_copied = result is None or not result.ndim or (library == "jax" and dtype == "bfloat16")
            assert is_copied or address_of(result) in read, "a result was copied"
            assert is_copied or address_of(result) % 64 == 0


@TORCH
@pytest.mark.parametrize("name", WRITING)
def test_results_go_to_tensors(torch: Any, name: str) -> None:
    for dtype in ("bfloat16", "float32"):
        for case in samples(RECORDS[name], 6, 5, np.dtype(getattr(ml_dtypes, dtype, dtype))):
            given = [in_library("torch", case.inputs.get(argument)) for argument in RECORDS[name].arguments]
            options = {key: in_library("torch", x) for key, x in case.options.items()}
            expected = as_tuple(RECORDS[name].function(*given, **options))
            # Every second element of memory that is twice as large: strides of any kind are written.
            outs = tuple([torch.zeros((*r.shape, 2), dtype=r.dtype)[..., 0] for r in expected])
            results = as_tuple(RECORDS[name].function(*given, **options, out=outs if len(outs) > 1 else outs[0]))
            assert all(result is out for result, out in zip(results, outs, strict=True))
            assert list(map(bits, results)) == list(map(bits, expected))


@JAX
@pytest.mark.parametrize("name", WRITING)
def test_nothing_is_written_to_an_array_of_jax(name: str, x64: None) -> None:
    case = next(samples(RECORDS[name], 6, 5, np.dtype(np.float32)))
    given = [case.inputs.get(argument) for argument in RECORDS[name].arguments]
    outs = tuple([in_library("jax", np.array(r)) for r in as_tuple(RECORDS[name].function(*given, **case.options))])
    for arguments in (given, [in_library("jax", x) for x in given]):
        with pytest.raises(TypeError, match=f"{name}: out.*JAX array, which is immutable; call without out="):
            RECORDS[name].function(*arguments, **case.options, out=outs if len(outs) > 1 else outs[0])


@TORCH
def test_a_tensor_is_written_in_place(torch: Any) -> None:
    x, y = torch.tensor([[-1.0, 2.0]]), torch.tensor([[-1.0, 2.0]]).T
    assert K.relu(x, out=x) is x
    assert x.tolist() == [[0, 2]]
    assert K.softmax(y, axis=0, out=y) is y
    given = torch.arange(6.0)
    with pytest.raises(ValueError, match="relu: out: shares part of its memory with an argument"):
        K.relu(given[:4], out=given[2:])
    with pytest.raises(TypeError, match="relu: out: expected dtype float32, the dtype of the result, got float64"):
        K.relu(x, out=torch.empty(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="relu: out: expected an array without repeated elements"):
        K.relu(x, out=torch.empty(1).expand(1, 2))
    with pytest.raises(TypeError, match=r"relu: out: expected a plain tensor .* requires grad; call its \.detach\(\)"):
        K.relu(x, out=torch.empty(1, 2, requires_grad=True))


@TORCH
def test_the_first_array_says_the_library(torch: Any) -> None:
    x = np.array([[1.0, 2.0]], np.float32)
    assert type(K.affine(x, torch.ones(2, 3))) is np.ndarray
    assert isinstance(K.affine(torch.ones(1, 2), np.ones((2, 3), np.float32)), torch.Tensor)
    out, into = torch.empty(1, 2), np.empty((1, 2), np.float32)
    assert K.relu(x, out=out).ctypes.data == out.data_ptr()
    assert K.relu(torch.ones(1, 2), out=into) is into
    assert K.affine_backward(torch.ones(1, 3), x, np.ones((2, 3), np.float32), needs="dw")[0] is None


@JAX
def test_jax_makes_32_bits_of_results_of_64(jnp: Any) -> None:
    assert K.relu(jnp.arange(3)).dtype == "float32"
    loss, y = K.softmax_cross_entropy(jnp.ones((2, 3)), jnp.array([0, 2]))
    assert (loss.dtype, y.dtype, loss.shape) == ("float32", "float32", ())


@pytest.mark.parametrize("library", LIBRARIES)
def test_empty_and_single_results(library: str) -> None:
    empty = in_library(library, np.empty((0, 3), np.float32))
    result = K.softmax(empty)
    assert is_of(library, result)
    assert result.shape == (0, 3)
    one = K.relu(in_library(library, np.array(-1.0, np.float32)))
    assert (is_of(library, one), one.shape, float(one)) == (True, (), 0)


@TORCH
def test_a_profile_decides_for_tensors_too(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backends.set_default("auto")
    first, fastest = backends.current().name, backends.get("numpy")
    monkeypatch.setattr(selection.chosen(), "_tuned", {"relu": {np.dtype(np.float32): [(4, fastest)]}})
    assert [selection.backend_for(torch.ones(size), "relu").name for size in (3, 4)] == [first, "numpy"]
    with seen("numpy", "relu") as calls:
        K.relu(torch.ones(4))
    assert calls


# ---------------------------------------------------------------------------------------------------------------------
# Tensors and arrays that are refused
# ---------------------------------------------------------------------------------------------------------------------


@TORCH
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: x.requires_grad_(),
            r"requires grad; call its \.detach\(\) first, or the functions of plugrad\.bridges\.torch",
        ),
        (lambda x: x.to_sparse(), r"layout torch\.sparse_coo; call its \.to_dense\(\)"),
        (lambda x: x.to("meta"), "device meta, which has no data"),
        (lambda x: x.to(dtype=_torch().complex64), r"dtype torch\.complex64; take its \.real"),
        (lambda x: _torch().complex(x, x).conj().imag, r"a negated view; call its \.resolve_neg\(\)"),
        (lambda x: _torch().nn.Parameter(x), "requires grad"),
        (lambda x: x.as_subclass(type("Named", (_torch().Tensor,), {})), r"subclass .*Named; call its \.as_subclass"),
    ],
    ids=["grad", "sparse", "meta", "complex", "negated", "parameter", "subclass"],
)
def test_other_tensors_are_refused(torch: Any, make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(TypeError, match=f"relu: x: expected a plain tensor.*{message}"):
        K.relu(make(torch.ones(2, 3)))
    with pytest.raises(TypeError, match=f"affine: w: expected a plain tensor.*{message}"):
        K.affine(np.ones((2, 2), np.float32), make(torch.ones(2, 3)))
    with pytest.raises(TypeError, match=f"to_numpy: x: expected a plain tensor.*{message}"):
        backends.to_numpy(make(torch.ones(2, 3)))


@TORCH
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of PyTorch's own, at the first jvp
def test_tensors_of_transforms_are_refused(torch: Any) -> None:
    x = torch.ones(2, 3)
    message = (
        r"relu: x: expected a plain tensor.* without memory of its own.*; inside torch\.func\.vmap .*bridges\.torch"
    )
    with pytest.raises(TypeError, match=message):
        torch.func.vmap(K.relu)(x)
    with pytest.raises(TypeError, match=message):
        torch.func.jvp(K.relu, (x,), (x,))
    with pytest.raises(TypeError, match="requires grad"):
        torch.func.grad(lambda x: K.relu(x).sum())(x)
    with torch.inference_mode():
        assert K.relu(torch.ones(2)).tolist() == [1, 1]


@TORCH
def test_a_parameter_without_grad_is_taken(torch: Any) -> None:
    x = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert host.take("x", x).ctypes.data == x.data_ptr()


@JAX
def test_arrays_of_jax_without_data_are_refused(jnp: Any) -> None:
    jax = importlib.import_module("jax")
    with pytest.raises(
        TypeError, match=r"relu: x: expected an array, got a tracer of JAX.* call plugrad\.bridges\.jax"
    ):
        jax.jit(K.relu)(jnp.ones(3))
    with pytest.raises(TypeError, match="affine: w: expected an array, got a tracer of JAX"):
        jax.grad(lambda w: K.affine(np.ones((2, 2), np.float32), w).sum())(jnp.ones((2, 3)))
    gone = jnp.ones(3)
    gone.delete()
    for choice in ("numpy", "auto"):
        with (
            backends.use(choice),
            pytest.raises(TypeError, match="relu: x: expected an array, got a JAX array that was deleted or donated"),
        ):
            K.relu(gone)


# ---------------------------------------------------------------------------------------------------------------------
# Layers, optimizers, captures
# ---------------------------------------------------------------------------------------------------------------------


def _network() -> Any:
    hidden, last = layers.Affine.init(5, 300, rng=0), layers.Affine.init(300, 3, rng=1)
    return layers.Sequential(hidden, layers.Relu(), layers.Dropout(0.5, rng=2), last)


def _step(library: str, loss_of: Any) -> list[Any]:
    rng, net = np.random.default_rng(0), _network()
    x, t = (
        in_library(library, rng.normal(size=(64, 5)).astype(np.float32)),
        in_library(library, rng.integers(3, size=64)),
    )
    logits = net(x)
    loss = loss_of(logits, t)
    return [logits, loss, net.backward(loss_of.backward()), *net.grads]


@pytest.mark.parametrize("library", LIBRARIES)
def test_layers_compute_the_same_bits(library: str, x64: None) -> None:
    expected = _step("numpy", layers.SoftmaxWithLoss())
    *results, dw1, db1, dw2, db2 = _step(library, layers.SoftmaxWithLoss())
    assert all(is_of(library, result) for result in results)
    assert list(map(bits, [*results, dw1, db1, dw2, db2])) == list(map(bits, expected))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "make",
    [layers.Softmax, layers.Sigmoid, layers.Gelu, layers.LeakyRelu, lambda: layers.Affine(np.eye(4))],
    ids=lambda make: make.__name__,
)
def test_a_layer_returns_what_it_is_given(library: str, make: Callable[[], Any], x64: None) -> None:
    x = np.linspace(-2, 2, 12).reshape(3, 4)
    layer, same = make(), make()
    for _ in range(2):
        results = [layer(in_library(library, x)), layer.backward(in_library(library, x))]
        assert all(is_of(library, result) for result in results)
        assert list(map(bits, results)) == [bits(same(x)), bits(same.backward(x))]
    assert type(layer(x)) is np.ndarray


@pytest.mark.parametrize("library", LIBRARIES)
def test_losses_remember_the_library(library: str, x64: None) -> None:
    p = np.full((2, 2), 0.5)
    for loss in (layers.CrossEntropy(), layers.SoftmaxWithLoss(), layers.SigmoidWithLoss()):
        t = np.eye(2) if isinstance(loss, layers.SigmoidWithLoss) else np.array([0, 1])
        assert is_of(library, loss(in_library(library, p), in_library(library, t)))
        assert is_of(library, loss.backward())
        assert is_of(library, loss.backward(2.0))
        assert is_of(library, loss.backward(use_jacobian=True))
        loss(p, t)
        assert type(loss.backward()) is np.ndarray


@TORCH
def test_results_of_layers_are_not_overwritten(torch: Any) -> None:
    layer, x = layers.Sigmoid(), torch.linspace(-3, 3, 2**15)
    first = layer(x)
    kept = first.clone()
    for _ in range(4):
        layer(x + 1)
    assert torch.equal(first, kept)
    first.zero_()
    assert layer.backward(torch.ones(2**15)).abs().sum() > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_jacobians_come_in_the_library(library: str, x64: None) -> None:
    y = np.array([0.25, 0.75])
    assert bits(jacobians.softmax_jacobian(in_library(library, y))) == bits(jacobians.softmax_jacobian(y))
    assert all(is_of(library, part) for part in jacobians.affine_jacobian(in_library(library, y), np.eye(2)))


@TORCH
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_optimizers_update_tensors_in_place(torch: Any, make: Any, dtype: str) -> None:
    w = torch.linspace(-1, 1, 6).to(getattr(torch, dtype)).reshape(2, 3).T
    same = np.array(host.take("w", w))
    tensors, arrays = make([w], lr=0.1), make([same], lr=0.1)
    for step in range(3):
        gradient = torch.full((3, 2), 0.5 + step, dtype=w.dtype)
        tensors.step([gradient])
        arrays.step((np.array(host.take("g", gradient)),))
    assert bits(w) == bits(same)
    with pytest.raises(TypeError, match=rf"{make.__name__}: params: 0: .*requires grad; call its \.detach\(\)"):
        make([w.clone().requires_grad_()])


@TORCH
def test_clipping_and_the_penalty_change_tensors_in_place(torch: Any) -> None:
    gradient, one = torch.full((4,), 3.0), torch.ones(4)
    assert float(optim.clip_by_global_norm([gradient], 3.0)) == 6
    assert gradient.tolist() == [1.5] * 4
    assert float(optim.l2_penalty([one], 0.5, grads=[gradient])) == 2
    assert gradient.tolist() == [2.5] * 4


@JAX
def test_optimizers_refuse_to_update_arrays_of_jax(jnp: Any) -> None:
    message = r"expected an array that can be written, got a JAX array, which is immutable; pass a NumPy array"
    with pytest.raises(TypeError, match=f"SGD: params: 0: {message}"):
        optim.SGD([jnp.ones(2)])
    with pytest.raises(TypeError, match=f"clip_by_global_norm: grads: 0: {message}"):
        optim.clip_by_global_norm([jnp.ones(2)], 1.0)
    w = np.ones(2, np.float32)
    optim.SGD([w], lr=0.5).step([jnp.ones(2)])
    assert w.tolist() == [0.5, 0.5]


@TORCH
def test_a_capture_reads_and_writes_tensors(torch: Any) -> None:
    x, w, t = torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([0])
    optimizer = optim.SGD([w], lr=1.0)
    with K.capture() as graph:
        logits = K.affine(x, w)
        loss, dz = K.softmax_cross_entropy_value_and_grad(logits, t, out=(None, logits))
        optimizer.step([K.affine_backward(dz, x, w, needs="dw")[1]])
    assert graph.kernels == ("affine", "softmax_cross_entropy_value_and_grad", "affine_backward", "sgd")
    assert dz is logits
    x.copy_(torch.tensor([[3.0, 0.0]]))
    same = w.numpy().copy()
    graph.replay()
    expected, dz = K.softmax_cross_entropy_value_and_grad(K.affine(np.array([[3, 0]], np.float32), same), [0])
    assert float(loss) == expected
    assert np.array_equal(w.numpy(), same - K.affine_backward(dz, x.numpy(), same)[1])


@TORCH
def test_a_replay_refuses_tensors_that_have_moved(torch: Any) -> None:
    for change in (
        lambda x: x.set_(torch.full((2, 3), 5.0)),
        lambda x: x.resize_(1, 3),
        lambda x: setattr(x, "data", torch.full((2, 3), 5.0)),
    ):
        x = torch.tensor([[-1.0, 2.0, 3.0], [4.0, -5.0, 6.0]])
        with K.capture() as graph:
            y = K.relu(x)
            K.relu_backward(y, x)
        x[0, 0] = 7.0
        graph.replay()
        assert y[0, 0] == 7
        change(x)
        with pytest.raises(ValueError, match=r"relu: x: expected a tensor in the memory .* captured.*; capture again"):
            graph.replay()


@JAX
def test_a_capture_refuses_arrays_of_jax(jnp: Any) -> None:
    x = np.ones((2, 2), np.float32)
    for call in (
        lambda: K.relu(jnp.ones(2)),
        lambda: K.affine(x, jnp.ones((2, 2))),
        lambda: K.dropout(jnp.ones(2), seed=1),
        lambda: _network().forward(jnp.ones((4, 5))),
        lambda: _network().backward(jnp.ones((4, 3))),
    ):
        with pytest.raises(TypeError, match="a capture reads arguments where they are"), K.capture():
            call()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_captured_step_takes_batches_of_a_library(library: str) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 5)).astype(np.float32), np.array([0, 1, 2, 0], np.int32)
    losses = []
    for kind in ("numpy", library):
        net = _network()
        step = layers.TrainingStep(net, layers.SoftmaxWithLoss(), optim.SGD(net.params, lr=0.1)).step
        losses.append([step(in_library(kind, x), in_library(kind, t)) for _ in range(3)])
    assert all(is_of(library, loss) for loss in losses[1])
    assert list(map(bits, losses[0])) == list(map(bits, losses[1]))


@TORCH
def test_a_captured_step_reads_weights_that_are_tensors(torch: Any) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 5)).astype(np.float32), np.array([0, 1, 2, 0], np.int32)
    losses = []
    for kind in ("numpy", "torch"):
        net, weight = _network(), in_library(kind, np.array([1, 2, 0.5], np.float32))
        step = layers.TrainingStep(net, layers.SoftmaxWithLoss(weight=weight), optim.SGD(net.params, lr=0.1)).step
        losses.append([step(x, t)])
        weight[1] = 5
        losses[-1] += [step(x, t) for _ in range(2)]
    assert losses[0] == losses[1]


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", LIBRARIES)
def test_classes_spread_over_ranks(library: str) -> None:
    rng, t = np.random.default_rng(0), np.array([0, 5, 2, 3], np.int32)
    x, w = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(6, 6)).astype(np.float32)

    def work(kind: str) -> Callable[[Any], list[Any]]:
        def on_rank(comm: Any) -> list[Any]:
            mine = slice(3 * comm.rank, 3 * comm.rank + 3)
            first, weights, labels = (in_library(kind, part) for part in (x[:, mine].copy(), w[:, mine].copy(), t))
            spread = distributed.softmax_cross_entropy_value_and_grad(x=first, t=labels, comm=comm)
            rows = in_library(kind, x)
            return [*spread, *distributed.linear_cross_entropy_value_and_grad(rows, weights, None, labels, comm=comm)]

        return on_rank

    expected, found = ranks.results(2, work("numpy")), ranks.results(2, work(library))
    for rank in range(2):
        assert all(is_of(library, part) for part in found[rank])
        assert list(map(bits, found[rank])) == list(map(bits, expected[rank]))


@TORCH
def test_ranks_change_tensors_in_place(torch: Any) -> None:
    def on_rank(comm: Any) -> list[list[float]]:
        sent, gradient, w = (torch.full((2,), value + comm.rank) for value in (1.0, 3.0, 5.0))
        distributed.broadcast([sent], comm)
        distributed.sum_gradients([gradient], comm)
        distributed.DataParallel(optim.SGD([w], lr=1.0), comm).step([torch.ones(2)], count=1)
        return [sent.tolist(), gradient.tolist(), w.tolist()]

    assert ranks.results(2, on_rank) == [[[1, 1], [7, 7], [4, 4]]] * 2


# ---------------------------------------------------------------------------------------------------------------------
# The table, and the choice
# ---------------------------------------------------------------------------------------------------------------------


@TORCH
@JAX
@pytest.mark.needs("g++")
def test_the_table_of_arrays_is_what_calls_show() -> None:
    text = (Path(__file__).parent.parent / "docs" / "arrays.md").read_text()
    shown = re.search(r"<!-- arrays: .*? -->\n(.*?)\n<!-- /arrays -->", text, re.DOTALL)
    assert shown
    assert shown[1] == table(), "paste what `python -m plugrad.tests.arrays` prints into docs/arrays.md"


@TORCH
def test_explain_knows_tensors(torch: Any) -> None:
    assert backends.explain(K.relu, torch.ones(2)).backend == "numpy"
    assert "requires grad" in backends.explain(K.relu, torch.ones(2, requires_grad=True)).reasons["numpy"]


def _torch() -> Any:
    import torch

    return torch
