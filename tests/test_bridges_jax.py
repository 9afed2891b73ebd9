"""The bridge to JAX: its functions beside formulas of `jax.nn`, under the transformations of JAX, and bad calls."""

import doctest
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.tests.processes import python

pytestmark = [pytest.mark.slow, pytest.mark.needs("jax")]

jax = pytest.importorskip("jax", reason="JAX is not installed: python -m pip install 'plugrad[jax]'")

from jax import numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from plugrad.bridges import jax as bridge  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32", "float64")
# How far from the formulas in float64.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5, "float64": 1e-12}


@pytest.fixture(autouse=True)
def _on_numpy_with_float64() -> Iterator[None]:
    with backends.use("numpy"), jax.enable_x64(True):
        yield


def numbers(*shape: int, dtype: Any = "float64", seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng(seed + sum(shape)).normal(size=shape), dtype)


def labels(classes: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(classes).integers(0, classes, shape))


class Formulas:
    """The functions of the bridge by `jax.nn`, as Optax has them."""

    softmax = staticmethod(jax.nn.softmax)
    log_softmax = staticmethod(jax.nn.log_softmax)
    relu = staticmethod(jax.nn.relu)
    sigmoid = staticmethod(jax.nn.sigmoid)

    @staticmethod
    def softmax_cross_entropy(logits: Any, labels: Any) -> Any:
        return -(labels * jax.nn.log_softmax(logits)).sum(-1)

    @staticmethod
    def softmax_cross_entropy_with_integer_labels(logits: Any, labels: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]

    @staticmethod
    def sigmoid_binary_cross_entropy(logits: Any, labels: Any) -> Any:
        labels = labels.astype(logits.dtype)
        return -labels * jax.nn.log_sigmoid(logits) - (1 - labels) * jax.nn.log_sigmoid(-logits)

    @classmethod
    def linear_cross_entropy(cls, x: Any, w: Any, b: Any, labels: Any) -> Any:
        logits = x @ w if b is None else x @ w + b
        return cls.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


Call = tuple[Callable[..., Any], tuple[Any, ...]]

with jax.enable_x64(True):
    X, W, B, T = numbers(5, 7), numbers(7, 4), numbers(4), labels(7, 5)
    SOFT = jax.nn.softmax(numbers(5, 7, seed=1))
    UNNORMALISED = numbers(5, 7, seed=2)

    CALLS: dict[str, Call] = {  # functions of the bridge or the formulas, and of floating arrays
        "softmax": (lambda f, x: f.softmax(x), (X,)),
        "softmax along the first axis": (lambda f, x: f.softmax(x, 0), (X,)),
        "softmax of images": (lambda f, x: f.softmax(x, axis=-3), (numbers(2, 3, 4, 2),)),
        "log_softmax": (lambda f, x: f.log_softmax(x, axis=1), (X,)),
        "log_softmax of a row": (lambda f, x: f.log_softmax(x, 0), (numbers(7),)),
        "relu": (lambda f, x: f.relu(x), (X,)),
        "relu of a number": (lambda f, x: f.relu(x), (jnp.asarray(2.0),)),
        "sigmoid": (lambda f, x: f.sigmoid(x), (X,)),
        "softmax_cross_entropy": (lambda f, x, t: f.softmax_cross_entropy(x, t), (X, SOFT)),
        "softmax_cross_entropy of labels of any sum": (
            lambda f, x, t: f.softmax_cross_entropy(x, t),
            (X, UNNORMALISED),
        ),
        "softmax_cross_entropy of one-hot integers": (
            lambda f, x: f.softmax_cross_entropy(x, jnp.eye(7, dtype=int)[:5]),
            (X,),
        ),
        "integer labels": (lambda f, x: f.softmax_cross_entropy_with_integer_labels(x, T), (X,)),
        "integer labels of bytes": (
            lambda f, x: f.softmax_cross_entropy_with_integer_labels(x, T.astype(jnp.uint8)),
            (X,),
        ),
        "integer labels of a stack": (
            lambda f, x: f.softmax_cross_entropy_with_integer_labels(x, labels(7, 2, 3)),
            (numbers(2, 3, 7),),
        ),
        "integer label of a row": (
            lambda f, x: f.softmax_cross_entropy_with_integer_labels(x, jnp.asarray(2)),
            (numbers(7),),
        ),
        "sigmoid_binary_cross_entropy": (lambda f, x, t: f.sigmoid_binary_cross_entropy(x, t), (X, SOFT)),
        "sigmoid_binary_cross_entropy of booleans": (
            lambda f, x: f.sigmoid_binary_cross_entropy(x, T[:, None] > jnp.arange(7)),
            (X,),
        ),
        "sigmoid_binary_cross_entropy of a number": (
            lambda f, x, t: f.sigmoid_binary_cross_entropy(x, t),
            (jnp.asarray(2.0), jnp.asarray(0.25)),
        ),
        "linear_cross_entropy": (lambda f, x, w, b: f.linear_cross_entropy(x, w, b, labels(4, 5)), (X, W, B)),
        "linear_cross_entropy without bias": (lambda f, x, w: f.linear_cross_entropy(x, w, None, labels(4, 5)), (X, W)),
        "linear_cross_entropy of a stack": (
            lambda f, x, w, b: f.linear_cross_entropy(x, w, b, labels(4, 2, 3)),
            (numbers(2, 3, 7), W, B),
        ),
        "linear_cross_entropy of a row": (
            lambda f, x, w, b: f.linear_cross_entropy(x, w, b, jnp.asarray(1)),
            (numbers(7), W, B),
        ),
    }


def results(functions: Any, call: Call, dtype: Any = "float64") -> list[Any]:
    """Value and gradients of a call, for an upstream gradient that is not 1."""
    function, arguments = call
    value, pull = jax.vjp(lambda *given: function(functions, *given), *(x.astype(dtype) for x in arguments))
    return [value, *pull(numbers(*value.shape, dtype=value.dtype, seed=3))]


def close(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * (1 + abs(expected).max(initial=0)))


# ---------------------------------------------------------------------------------------------------------------------
# Values and gradients
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_those_of_the_formulas(name: str, dtype: str) -> None:
    function, arguments = CALLS[name]
    rounded = tuple(x.astype(dtype).astype("float64") for x in arguments)
    found, expected = results(bridge, CALLS[name], dtype), results(Formulas, (function, rounded))
    of_the_mean = name.startswith("linear") and dtype in ("float16", "bfloat16")
    assert [str(x.dtype) for x in found] == ["float32" if of_the_mean else dtype] + [dtype] * len(arguments)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.parametrize("name", CALLS)
def test_gradients_by_differences(name: str) -> None:
    function, arguments = CALLS[name]
    check_grads(lambda *given: function(bridge, *given), arguments, order=1, modes=["rev"])


@pytest.mark.parametrize("name", ["softmax along the first axis", "softmax_cross_entropy", "linear_cross_entropy"])
def test_on_numba(name: str) -> None:
    with backends.use("numba"):
        found = results(bridge, CALLS[name])
    for ours, theirs in zip(found, results(Formulas, CALLS[name]), strict=True):
        close(ours, theirs)


def test_confident_rows_keep_their_loss() -> None:
    logits = jnp.asarray([[20.0, 0.0, 0.0]], jnp.float32)
    exact = np.log1p(2 * np.exp(-20.0))
    for loss in (
        bridge.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray([0]))[0],
        bridge.softmax_cross_entropy(logits, jnp.asarray([[1.0, 0.0, 0.0]]))[0],
        bridge.linear_cross_entropy(logits, jnp.eye(3), None, jnp.asarray([0])),
    ):
        close(loss / exact, 1.0, 1e-6)


def test_labels_get_their_gradient_alone_and_integers_none() -> None:
    loss = lambda t: bridge.softmax_cross_entropy(X, t).sum()  # noqa: E731
    close(jax.grad(loss)(SOFT), -jax.nn.log_softmax(X))
    gradient = jax.grad(loss, allow_int=True)(jnp.eye(7, dtype=int)[:5])
    assert gradient.dtype == jax.dtypes.float0
    gradient = jax.grad(
        lambda t: bridge.softmax_cross_entropy_with_integer_labels(X, t).sum(),
        allow_int=True,
    )(T)
    assert gradient.dtype == jax.dtypes.float0


@pytest.mark.parametrize("rows", [(0,), (3, 0)])
def test_empty_batches(rows: tuple[int, ...]) -> None:
    x, t = jnp.zeros((*rows, 7)), jnp.zeros(rows, int)
    loss, gradient = jax.value_and_grad(lambda x: bridge.softmax_cross_entropy_with_integer_labels(x, t).sum())(x)
    assert (float(loss), gradient.shape) == (0.0, x.shape)
    assert jax.grad(lambda x: bridge.softmax(x).sum())(x).shape == x.shape
    loss, (dx, dw) = jax.value_and_grad(lambda x, w: bridge.linear_cross_entropy(x, w, None, t), (0, 1))(x, W)
    assert (float(loss), dx.shape) == (0.0, x.shape)
    assert not dw.any()


def test_arguments_of_numpy_and_of_two_dtypes() -> None:
    close(bridge.softmax(np.asarray(X)), jax.nn.softmax(X))
    close(bridge.relu(-1.5), 0.0)
    found = bridge.softmax_cross_entropy(X.astype(jnp.float32), SOFT.astype(jnp.bfloat16))
    assert found.dtype == jnp.float32
    found, gradients = jax.value_and_grad(lambda x, w: bridge.linear_cross_entropy(x, w, B, labels(4, 5)), (0, 1))(
        X.astype(jnp.bfloat16), W.astype(jnp.float32)
    )
    assert (found.dtype, *(g.dtype for g in gradients)) == (jnp.float64, jnp.bfloat16, jnp.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Transformations
# ---------------------------------------------------------------------------------------------------------------------


def gradients(function: Any, call: Call) -> Any:
    """A scalar of a call, and its gradients, as a function of the arguments."""
    of_call, arguments = call
    return jax.value_and_grad(lambda *given: (of_call(function, *given) ** 2).sum(), tuple(range(len(arguments))))


@pytest.mark.parametrize("transformation", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))])
@pytest.mark.parametrize("name", CALLS)
def test_compiled_and_computed_again_in_the_backward_pass(name: str, transformation: Any) -> None:
    function, arguments = CALLS[name]
    found = jax.value_and_grad(
        transformation(lambda *given: (function(bridge, *given) ** 2).sum()), tuple(range(len(arguments)))
    )(*arguments)
    expected = gradients(Formulas, CALLS[name])(*arguments)
    jax.tree.map(close, found, expected)
    jax.tree.map(close, jax.jit(gradients(bridge, CALLS[name]))(*arguments), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_vmap_is_the_loop(name: str, axis: int) -> None:
    _, arguments = CALLS[name]
    call = gradients(bridge, CALLS[name])
    several = [jnp.stack([x, x / 2, x * x]) for x in arguments]  # labels stay in [0, 1]
    loop = [call(*given) for given in zip(*several, strict=True)]
    moved = [jnp.moveaxis(x, 0, min(axis, x.ndim - 1)) for x in several]
    found = jax.vmap(call, tuple(min(axis, x.ndim - 1) for x in several))(*moved)
    jax.tree.map(lambda found, *rows: close(found, jnp.stack(rows)), found, *loop)


def test_vmap_of_some_arguments_and_of_a_vmap() -> None:
    function = bridge.softmax_cross_entropy_with_integer_labels
    several = jnp.stack([T, T[::-1]])
    expected = jnp.stack([function(X, T), function(X, T[::-1])])
    close(jax.vmap(function, (None, 0))(X, several), expected)
    close(jax.vmap(function)(X, T), function(X, T))
    close(jax.vmap(jax.vmap(function), (None, 0))(X, several), expected)
    weights = jnp.stack([W, 2 * W])
    found = jax.vmap(bridge.linear_cross_entropy, (None, 0, None, None))(X, weights, B, labels(4, 5))
    close(found, jnp.stack([bridge.linear_cross_entropy(X, w, B, labels(4, 5)) for w in weights]))
    of_rows = jax.vmap(jax.grad(lambda x, t: function(x, t)))(X, T)
    close(of_rows, jax.nn.softmax(X) - jax.nn.one_hot(T, 7))


def test_scan_and_cond() -> None:
    def loss_of(functions: Any, w: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = jax.lax.cond(x.sum() > 0, functions.sigmoid, functions.relu, h @ w + x)
            return h, functions.softmax_cross_entropy_with_integer_labels(h, T[0] % 4)

        return jax.lax.scan(jax.checkpoint(step), jnp.zeros(4), numbers(6, 4))[1].sum()

    w = numbers(4, 4)
    found, expected = (jax.jit(jax.value_and_grad(loss_of, 1), static_argnums=0)(f, w) for f in (bridge, Formulas))
    jax.tree.map(close, found, expected)


def test_several_devices() -> None:
    code = """
        import jax, numpy as np
        from jax import numpy as jnp
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from plugrad.bridges import jax as bridge

        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)
        t, w, b = jnp.arange(8) % 3, x[:6, :3], jnp.ones(3)

        def loss_of(w, b, x, t):
            rows = bridge.softmax_cross_entropy_with_integer_labels(bridge.relu(x @ w), t).mean()
            return rows + bridge.linear_cross_entropy(bridge.softmax(x), w, b, t)

        one = jax.value_and_grad(loss_of, (0, 1, 2))(w, b, x, t)
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
        rows = NamedSharding(mesh, P("batch"))
        gathered = jax.jit(jax.value_and_grad(loss_of, (0, 1, 2)))(w, b, *jax.device_put((x, t), rows))
        apart = jax.shard_map(
            lambda *given: jax.lax.pmean(loss_of(*given), "batch"),
            mesh=mesh, in_specs=(P(), P(), P("batch"), P("batch")), out_specs=P(),
        )
        apart = jax.jit(jax.value_and_grad(apart, (0, 1, 2)))(w, b, x, t)
        for two in gathered, apart:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
        print(tuple(apart[1][2].sharding.spec))
    """
    done = python(code, PLUGRAD_BACKEND="numpy", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert done.stdout == "('batch',)\n", done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Calls of kernels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """The calls of kernels: the backend in force, the kernel, and its arguments."""
    calls = []

    def spied(name: str, function: Any) -> Any:
        def call(**arguments: Any) -> Any:
            calls.append((str(backends.current()), name, arguments))
            return function(**arguments)

        return call

    for name in (*bridge.__all__, "softmax_backward", "linear_cross_entropy_value_and_grad"):
        if hasattr(K, name):
            monkeypatch.setattr(K, name, spied(name, getattr(K, name)))
    return calls


@pytest.mark.parametrize("is_compiled", [False, True])
def test_kernels_have_the_backend_of_the_trace_in_any_thread(is_compiled: bool, spy: Any) -> None:
    def pull() -> None:
        jax.block_until_ready((derivative if is_compiled else pulled)(X))

    with backends.use("numba", check=True):
        if is_compiled:
            derivative = jax.jit(jax.grad(lambda x: (bridge.softmax(x @ x.T) ** 2).sum())).lower(X).compile()
        else:
            _, pulled = jax.vjp(bridge.softmax, X)
            jax.block_until_ready(pulled)
    thread = threading.Thread(target=pull)
    thread.start()
    thread.join()
    assert [call[:2] for call in spy] == [("numba", "softmax"), ("numba", "softmax_backward")]
    spy.clear()
    bridge.softmax(X).block_until_ready()
    assert spy[0][:2] == ("numpy", "softmax")


def test_nothing_is_copied(spy: Any) -> None:
    x, t = numbers(5, 7, dtype="bfloat16"), T
    y = bridge.softmax(x).block_until_ready()
    arguments = spy[0][2]
    assert arguments["x"].ctypes.data == x.unsafe_buffer_pointer()
    assert arguments["out"].ctypes.data == y.unsafe_buffer_pointer()
    assert not arguments["x"].flags.writeable
    loss = bridge.linear_cross_entropy(X, W, B, t % 4).block_until_ready()
    arguments = spy[1][2]
    assert [arguments[name].ctypes.data for name in "xwb"] == [a.unsafe_buffer_pointer() for a in (X, W, B)]
    assert arguments["out"].ctypes.data == loss.unsafe_buffer_pointer()


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_gradients_that_nobody_needs_are_not_computed(needed: tuple[int, ...], spy: Any) -> None:
    derivative = jax.grad(lambda x, w, b: bridge.linear_cross_entropy(x, w, b, labels(4, 5)), needed)
    jax.block_until_ready(jax.jit(derivative)(X, W, B))
    ((_, name, arguments),) = spy
    assert name == "linear_cross_entropy_value_and_grad"
    assert arguments["needs"] == [("dx", "dw", "db")[i] for i in needed]


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_binary_cross_entropy", "linear_cross_entropy"])
def test_one_compiled_function_differentiated_by_each_argument(name: str) -> None:
    function, arguments = CALLS[name]
    compiled = jax.jit(lambda *given: (function(bridge, *given) ** 2).sum())
    for needed in [*range(len(arguments)), tuple(range(len(arguments)))]:
        expected = jax.grad(lambda *given: (function(Formulas, *given) ** 2).sum(), needed)(*arguments)
        jax.tree.map(close, jax.grad(compiled, needed)(*arguments), expected)


def test_many_steps_in_flight_on_one_processor_end() -> None:
    code = """
        import os
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
        import jax
        from jax import numpy as jnp
        from plugrad.bridges import jax as bridge

        x = jnp.ones((600, 600))
        step = jax.jit(jax.value_and_grad(lambda x: bridge.softmax(bridge.relu(x @ x) @ x).std()))
        step(x)
        running = [step(x + i) for i in range(20)]
        {wait}
        print("at the end")
    """
    for wait in ("jax.block_until_ready(running)", ""):
        done = python(code.format(wait=wait), PLUGRAD_BACKEND="numpy")
        assert (done.returncode, done.stdout) == (0, "at the end\n"), done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Bad calls
# ---------------------------------------------------------------------------------------------------------------------

BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a list": (lambda: bridge.softmax([1.0]), TypeError, "softmax: x: expected an array, got list; call jnp.asarray"),
    "integers": (lambda: bridge.relu(T), TypeError, "relu: x: expected float16, .* got int64; call its .astype"),
    "complex": (lambda: bridge.sigmoid(1j * X), TypeError, "sigmoid: x: expected float16, .* got complex128"),
    "axis out of range": (lambda: bridge.softmax(X, 2), ValueError, r"softmax: axis: expected one in \[-2, 2\), got 2"),
    "axis of a number": (lambda: bridge.softmax(1.0), ValueError, "softmax: axis: expected one in"),
    "no axis": (lambda: bridge.log_softmax(X, None), TypeError, "log_softmax: axis: expected an integer, got None"),
    "no classes": (
        lambda: bridge.softmax_cross_entropy(X[:, :0], X[:, :0]),
        ValueError,
        r"softmax_cross_entropy: logits: expected shape \(..., classes\), got \(5, 0\)",
    ),
    "class indices for labels per class": (
        lambda: bridge.softmax_cross_entropy(X, T),
        ValueError,
        r"labels: expected shape \(5, 7\), that of logits, got \(5,\); class indices are for",
    ),
    "floating class indices": (
        lambda: bridge.softmax_cross_entropy_with_integer_labels(X, X[:, 0]),
        TypeError,
        "with_integer_labels: labels: expected class indices of an integer dtype, got float64",
    ),
    "labels of another shape": (
        lambda: bridge.softmax_cross_entropy_with_integer_labels(X, T[:4]),
        ValueError,
        r"labels: expected shape \(5,\), one label for each row, got \(4,\)",
    ),
    "labels of elements of another shape": (
        lambda: bridge.sigmoid_binary_cross_entropy(X, T),
        ValueError,
        r"sigmoid_binary_cross_entropy: labels: expected shape \(5, 7\), that of logits, got \(5,\)$",
    ),
    "weights of another shape": (
        lambda: bridge.linear_cross_entropy(X, W.T, B, T),
        ValueError,
        r"linear_cross_entropy: w: expected shape \(7, classes\), got \(4, 7\)",
    ),
    "biases of another shape": (
        lambda: bridge.linear_cross_entropy(X, W, B[:3], T),
        ValueError,
        r"linear_cross_entropy: b: expected shape \(4,\), got \(3,\)",
    ),
    "x without an axis": (lambda: bridge.linear_cross_entropy(1.0, W, B, T), ValueError, "x: expected shape"),
    "soft labels of a last layer": (lambda: bridge.linear_cross_entropy(X, W, B, X[:, :4]), TypeError, "labels: exp"),
    "forward mode": (lambda: jax.jvp(bridge.relu, (X,), (X,)), TypeError, "forward-mode"),
    "second derivative": (
        lambda: jax.grad(jax.grad(lambda x: bridge.sigmoid(x) ** 2))(1.0),
        NotImplementedError,
        "sigmoid: the functions of plugrad.bridges.jax have no second derivative and none in forward mode; use",
    ),
    "second derivative of a loss": (
        lambda: jax.hessian(lambda x: bridge.softmax_cross_entropy(x, SOFT).sum())(X),
        NotImplementedError,
        "softmax_cross_entropy_value_and_grad: the functions .* have no second derivative",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_out_of_range(label: int) -> None:
    wrong = T.at[3].set(label)
    message = re.escape(f"labels: expected labels in [0, 7), got {label} at row 3") + "(?!; pass ignore_index)"
    losses = {
        "softmax_cross_entropy_with_integer_labels": lambda name: lambda x, t: getattr(bridge, name)(x, t).sum(),
        "linear_cross_entropy": lambda name: lambda x, t: getattr(bridge, name)(x, jnp.eye(7), None, t),
    }
    for name, loss_of in losses.items():
        loss = loss_of(name)
        for call in (loss, jax.jit(loss), jax.grad(loss), jax.jit(jax.grad(loss))):
            jax.block_until_ready(call(X, T))
            with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match=f"{name}: {message}"):
                jax.block_until_ready(call(X, wrong))
            jax.block_until_ready(call(X, T))


def test_labels_of_elements_out_of_range() -> None:
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError), match=r"sigmoid_binary_cross_entropy: labels: expected .*\[0, 1\]"
    ):
        bridge.sigmoid_binary_cross_entropy(X, SOFT.at[1, 2].set(1.5)).block_until_ready()


def test_a_backend_of_a_gpu_and_a_captured_block_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with K.capture(), pytest.raises(RuntimeError, match="plugrad.bridges.jax: is not recorded"):
        bridge.relu(X)
    choice = backends.selection.chosen()
    monkeypatch.setattr(choice.backend_for(np.ndarray), "native", float)
    with pytest.raises(TypeError, match="expected a backend of arrays in host memory, got 'numpy'; select another"):
        bridge.relu(X)


def test_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "from-pytorch-jax-numpy.md").read_text()
    (snippet,) = re.findall(r"^```py\n([^`]*plugrad.bridges[^`]*)^```$", text, re.MULTILINE)
    with jax.enable_x64(False):
        exec(compile(snippet, "docs", "exec"), {})


def test_docstrings() -> None:
    with jax.enable_x64(False):
        done = doctest.testmod(bridge)
    assert done.attempted > len(bridge.__all__)
    assert not done.failed
