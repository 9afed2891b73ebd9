"""The bridge to PyTorch: its functions beside those of `torch.nn.functional`, as custom operators, and bad calls."""

import copy
import doctest
import functools
import io
import sys
import threading
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: python -m pip install 'plugrad[torch]'")

from torch.nn import functional  # noqa: E402

from plugrad.bridges import torch as bridge  # noqa: E402
from plugrad.tests.test_docs import ROOT, blocks  # noqa: E402

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# How far from PyTorch's own results in float64.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with backends.use("numpy"):
        yield


def numbers(*shape: int, dtype: Any = torch.float64, needs: bool = True, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_(needs)


def labels(classes: int, *shape: int, seed: int = 0) -> Any:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def soft(classes: int, rows: int, dtype: Any = torch.float64) -> Any:
    return numbers(rows, classes, needs=False, seed=7).softmax(1).to(dtype)


X, W, B = numbers(5, 7), numbers(4, 7), numbers(4)
T = labels(7, 5)
IGNORED = T.clone().index_fill(0, torch.tensor([1, 3]), -100)
WEIGHT = torch.linspace(0.5, 2, 7, dtype=torch.float64)

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
CALLS: dict[str, Call] = {
    "softmax": (lambda f, x: f.softmax(x, 1), (X,), {}),
    "softmax of images": (lambda f, x: f.softmax(x, dim=-3), (numbers(2, 3, 4, 2),), {}),
    "log_softmax": (lambda f, x: f.log_softmax(x, 0), (X,), {}),
    "softmax of a number": (lambda f, x: f.softmax(x, 0), (numbers(),), {}),
    "relu": (lambda f, x: f.relu(x), (X,), {}),
    "sigmoid": (lambda f, x: f.sigmoid(x), (X,), {}),
    "sigmoid of a transposed": (lambda f, x: f.sigmoid(x.T), (X,), {}),
    "linear": (lambda f, *given: f.linear(*given), (X, W, B), {}),
    "linear without bias, of a stack": (lambda f, *given: f.linear(*given), (numbers(2, 3, 7), W), {}),
    "linear to one output": (lambda f, *given: f.linear(*given), (X, numbers(7)), {}),
}
for _reduction in ("mean", "sum", "none"):
    CALLS |= {
        f"cross_entropy, {_reduction}": (
            lambda f, x, **options: f.cross_entropy(x, IGNORED, **options),
            (X,),
            {"reduction": _reduction, "label_smoothing": 0.1, "weight": WEIGHT},
        ),
        f"cross_entropy of images, {_reduction}": (
            lambda f, x, **options: f.cross_entropy(x, labels(3, 2, 4, 2), **options),
            (numbers(2, 3, 4, 2),),
            {"reduction": _reduction, "ignore_index": 1},
        ),
        f"cross_entropy of probabilities, {_reduction}": (
            lambda f, x, **options: f.cross_entropy(x, soft(7, 5, x.dtype), **options),
            (X,),
            {"reduction": _reduction, "label_smoothing": 0.1},
        ),
        f"binary_cross_entropy_with_logits, {_reduction}": (
            lambda f, x, **options: f.binary_cross_entropy_with_logits(x, soft(7, 5, x.dtype), **options),
            (X,),
            {"reduction": _reduction, "weight": WEIGHT[:5, None], "pos_weight": WEIGHT},
        ),
        f"linear_cross_entropy, {_reduction}": (
            lambda f, x, w, b, **options: f.linear_cross_entropy(x, w, labels(4, 5), linear_bias=b, **options),
            (X, W, B),
            {"reduction": _reduction, "label_smoothing": 0.1, "ignore_index": 2},
        ),
        f"linear_cross_entropy of probabilities, {_reduction}": (
            lambda f, x, w, **options: f.linear_cross_entropy(x, w, soft(4, 5, x.dtype), **options),
            (X, W),
            {"reduction": _reduction},
        ),
    }
CALLS["linear_cross_entropy of stacked weights"] = (
    lambda f, x, w: f.linear_cross_entropy(x, w, labels(4, 5, 3)),
    (X, numbers(4, 3, 7)),
    {},
)
CALLS["cross_entropy of a row"] = (lambda f, x: f.cross_entropy(x, torch.tensor(2)), (numbers(7),), {})
CALLS["linear_cross_entropy of a row"] = (
    lambda f, x, w: f.linear_cross_entropy(x, w, torch.tensor(2), reduction="none"),
    (numbers(7), W),
    {},
)


def results(functions: Any, call: Call, dtype: Any) -> list[Any]:
    """Value and gradients of a call, for a gradient of the value that is not 1."""
    function, arguments, options = call
    given = [x.detach().to(dtype).requires_grad_() for x in arguments]
    options = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    value = function(functions, *given, **options)
    upstream = numbers(*value.shape, dtype=dtype, needs=False, seed=3)
    return [value.detach(), *torch.autograd.grad(value, given, upstream)]


def close(found: Any, expected: Any, tolerance: float) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_those_of_pytorch(name: str, dtype: Any) -> None:
    ours = results(bridge, CALLS[name], dtype)
    rounded = [x.detach().to(dtype).double() for x in CALLS[name][1]]
    function, _, options = CALLS[name]
    exact = results(functional, (function, tuple(rounded), options), torch.float64)
    scale = 1 + max(float(x.abs().max()) for x in exact)
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == dtype
        close(found, expected, TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("name", ["linear", "cross_entropy, mean", "linear_cross_entropy, none", "softmax"])
def test_on_numba(name: str) -> None:
    with backends.use("numba"):
        ours = results(bridge, CALLS[name], torch.float32)
    for found, expected in zip(ours, results(functional, CALLS[name], torch.float64), strict=True):
        close(found, expected, 1e-4)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("given", [X.half(), X.float(), labels(7, 5, 3)], ids=["float16", "float32", "int64"])
def test_softmax_in_another_dtype(name: str, given: Any) -> None:
    ours, theirs = (given.detach().clone().requires_grad_(given.is_floating_point()) for _ in range(2))
    found = getattr(bridge, name)(ours, 1, dtype=torch.float64)
    expected = getattr(functional, name)(theirs, 1, dtype=torch.float64)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected)
    if ours.requires_grad:
        (found[0, 0] + found[1, 2]).backward()
        (expected[0, 0] + expected[1, 2]).backward()
        assert ours.grad.dtype == given.dtype
        torch.testing.assert_close(ours.grad, theirs.grad)


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch's own samples
# ---------------------------------------------------------------------------------------------------------------------

SAMPLED = ("softmax", "log_softmax", "sigmoid", "nn.functional.relu", "nn.functional.linear")
SAMPLED += ("nn.functional.cross_entropy", "nn.functional.linear_cross_entropy")
SAMPLED += ("nn.functional.binary_cross_entropy_with_logits",)


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    """PyTorch's functions by name, with samples of their arguments."""
    expecttest: Any = types.ModuleType("expecttest")  # PyTorch's test cases derive from this package's
    expecttest.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", expecttest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    return {entry.name: entry for entry in op_db if not entry.variant_test_name}


@pytest.mark.parametrize("name", SAMPLED)
def test_the_samples_of_pytorch(name: str, operators: dict[str, Any]) -> None:
    entry, short = operators[name], name.removeprefix("nn.functional.")
    ours = getattr(bridge, short)
    count = 0
    for sample in entry.sample_inputs("cpu", torch.float64, requires_grad=True):
        args = tuple(sample.args)
        kwargs = dict(sample.kwargs)
        if "cross_entropy" in short:  # neither labels nor weights of classes have a gradient
            args = (*args[:-1], args[-1].detach())
            kwargs = {k: v.detach() if k in ("weight", "pos_weight") else v for k, v in kwargs.items()}
        needed = [x for x in (sample.input, *args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
        value, expected = ours(sample.input, *args, **kwargs), entry.op(sample.input, *args, **kwargs)
        nothing_counts = short.endswith("cross_entropy") and bool(expected.isnan().any())
        if nothing_counts:
            assert value.item() == 0.0
            continue
        torch.testing.assert_close(value, expected)
        upstream = torch.ones_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, needed, upstream), torch.autograd.grad(expected, needed, upstream)
        )
        count += 1
    assert count >= 3


# ---------------------------------------------------------------------------------------------------------------------
# Custom operators
# ---------------------------------------------------------------------------------------------------------------------

OPERATORS: dict[str, tuple[Any, ...]] = {
    "softmax": (X, 1, "numpy"),
    "log_softmax": (X, 0, "numpy"),
    "relu": (X, "numpy"),
    "sigmoid": (X, "numpy"),
    "linear": (X, W, B, "numpy"),
    "cross_entropy": (X, T, WEIGHT, -100, 0.1, "mean", "numpy"),
    "binary_cross_entropy_with_logits": (X, soft(7, 5), None, WEIGHT, "mean", "numpy"),
    "linear_cross_entropy": (X, W, B, labels(4, 5), None, -100, 0.1, "sum", 10**6, "dx dw db", "numpy"),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.plugrad, name).default
    torch.library.opcheck(operator, OPERATORS[name])
    half = tuple(
        x.detach().half().requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in OPERATORS[name]
    )
    torch.library.opcheck(operator, half)


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if "stacked" not in name])
def test_gradcheck_and_no_second_derivative(name: str) -> None:
    function, arguments, options = CALLS[name]
    assert torch.autograd.gradcheck(lambda *given: function(bridge, *given, **options), arguments)
    value = function(bridge, *arguments, **options)
    once = torch.autograd.grad(value.sum(), arguments[0], create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="has a first derivative only; call torch.nn.functional"):
        torch.autograd.grad(once.sum(), arguments[0])


def network(x: Any, w: Any, b: Any, t: Any) -> Any:
    """Every function of the bridge in one."""
    h = bridge.relu(bridge.linear(x, w, b))
    loss = bridge.cross_entropy(h, t) + bridge.linear_cross_entropy(x, w, t, linear_bias=b)
    loss = loss + bridge.linear_cross_entropy(x, w, t, reduction="none").mean()
    loss = loss + bridge.binary_cross_entropy_with_logits(h, torch.ones_like(h), pos_weight=torch.tensor([2.0]))
    return loss + (bridge.softmax(h, 1) * bridge.log_softmax(h, -1)).sum() + bridge.sigmoid(h).mean()


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.needs("g++"))])
def test_compiles_as_one_graph_for_any_number_of_rows(compiler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(network, fullgraph=True, backend=compiler, dynamic=True)
        for rows in (5, 3, 8):
            given = [numbers(rows, 7), W, B]
            found, expected = compiled(*given, labels(4, rows)), network(*given, labels(4, rows))
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(torch.autograd.grad(found, given), torch.autograd.grad(expected, given))


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """The calls of kernels: the backend in force, the kernel, and the addresses of the arrays."""
    calls = []

    def spied(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            found = function(*arguments, **options)
            arrays = *arguments, *(found if isinstance(found, tuple) else (found,))
            calls.append(
                (str(backends.current()), name, tuple(x.ctypes.data for x in arrays if isinstance(x, np.ndarray)))
            )
            return found

        return call

    for name in ("softmax_cross_entropy", "softmax_cross_entropy_value_and_grad", "softmax_cross_entropy_backward"):
        monkeypatch.setattr(K, name, spied(name, getattr(K, name)))
    for name in ("affine", "affine_backward"):
        monkeypatch.setattr(K, name, spied(name, getattr(K, name)))
    return calls


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_backward_pass_has_the_backend_of_the_forward_pass_in_any_thread(is_compiled: bool, spy: Any) -> None:
    x, w = numbers(5, 7), numbers(4, 7)
    function = bridge.linear
    with backends.use("numba"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_compiled:
            function = torch.compile(function, fullgraph=True, backend="aot_eager")
        loss = function(x, w).sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert [call[:2] for call in spy] == [("numba", "affine"), ("numba", "affine_backward")]
    assert x.grad is not None
    if is_compiled:  # it keeps the backend with which it was traced
        function(x, w)
        assert spy[-1][0] == "numba"
    assert str(backends.current()) == "numpy"


def test_options_of_a_backend_go_along() -> None:
    from plugrad.bridges import _choices

    with backends.use("numpy", check=True):
        text = _choices.in_force()
    assert text == 'numpy {"check": true}'
    options = _choices.computes_by_choice("this", lambda *_: dict(backends.selection.options()))
    assert options(text) == {"check": True}
    assert options("numpy") == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_copied(dtype: Any, spy: Any) -> None:
    x, w = numbers(5, 7, dtype=dtype), numbers(4, 7, dtype=dtype)
    y = bridge.linear(x, w)
    y.sum().backward()
    (_, _, forward), (_, _, backward) = spy
    assert forward == (x.data_ptr(), w.data_ptr(), y.data_ptr())
    assert backward[1:4] == (x.data_ptr(), w.data_ptr(), x.grad.data_ptr())
    assert backward[4] == w.grad.data_ptr()
    spy.clear()
    t = labels(7, 5)
    loss = bridge.cross_entropy(x, t)
    x.grad = None
    loss.backward()
    addresses = spy[-1][2]
    assert spy[0][2][:2] == (x.data_ptr(), t.data_ptr())
    assert addresses[-1] == x.grad.data_ptr()


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    x = numbers(5, 7)
    loss = bridge.cross_entropy(x, T)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0].clone()
    doubled = torch.autograd.grad(loss, x, torch.tensor(2.0, dtype=torch.float64), retain_graph=True)[0]
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(doubled, 2 * first)
    torch.testing.assert_close(x.grad, 2 * first)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy"])
def test_gradients_changed_in_place_leave_a_graph_that_is_kept(name: str) -> None:
    x = numbers(7, 7)
    given = {"cross_entropy": (x, labels(7, 7)), "linear_cross_entropy": (x, numbers(7, 7, seed=1), labels(7, 7))}
    loss = getattr(bridge, name)(*given.get(name, (x, soft(7, 7))))
    changed = torch.autograd.grad(loss, x, retain_graph=True)[0]
    expected = changed.clone()
    changed.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


def test_small_gradients_of_float16_survive_a_scaled_loss() -> None:
    x = torch.zeros(4096, 1000, dtype=torch.float16, requires_grad=True)
    (bridge.cross_entropy(x, torch.zeros(4096, dtype=torch.long)) * 16384.0).backward()
    assert x.grad[0, 1].item() == pytest.approx(16384 / 4096 / 1000, rel=2e-3)
    x.grad = None
    loss = bridge.binary_cross_entropy_with_logits(x, torch.zeros(4096, 1000))
    (loss * 16384.0).backward()
    assert loss.item() == pytest.approx(0.693147, rel=2e-3)
    assert x.grad[0, 1].item() == pytest.approx(16384 / 4096 / 1000 / 2, rel=2e-3)


# ---------------------------------------------------------------------------------------------------------------------
# In PyTorch's surroundings
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    with mode():
        x = torch.randn(5, 7)
        for y in (
            bridge.cross_entropy(x, T),
            bridge.softmax(x, 1),
            bridge.linear_cross_entropy(x, torch.ones(9, 7), T),
        ):
            assert not y.requires_grad
        assert bridge.cross_entropy(X, T, weight=WEIGHT.requires_grad_(False)).item() > 0


def test_autocast() -> None:
    x, w, t = numbers(5, 7, dtype=torch.float32), numbers(9, 7, dtype=torch.float32), labels(9, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = bridge.linear(x, w)
        losses = bridge.cross_entropy(logits, t), bridge.linear_cross_entropy(x, w, t)
    assert logits.dtype == torch.bfloat16
    for loss in losses:
        assert loss.dtype == torch.float32
        gradient = torch.autograd.grad(loss, w, retain_graph=True)[0]
        assert gradient.dtype == torch.float32
        exact = functional.cross_entropy(functional.linear(x, w), t)
        close(loss.detach(), exact.detach(), 0.02)
        close(gradient, torch.autograd.grad(exact, w)[0], 0.02)


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return bridge.softmax(torch.arange(3.0) * index, 0)


def test_workers_of_a_data_loader() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads
        batches = list(torch.utils.data.DataLoader(_Rows(), batch_size=2, num_workers=2))
    expected = functional.softmax(torch.arange(6.0)[:, None] * torch.arange(3.0), 1)
    torch.testing.assert_close(torch.cat(batches), expected)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(7, 7, dtype=torch.float64)
        self.criterion = bridge.CrossEntropyLoss(weight=WEIGHT.detach(), label_smoothing=0.1, reduction="sum")

    def forward(self, x: Any, t: Any) -> Any:
        return self.criterion(bridge.relu(self.layer(x)), t)


def test_a_model_is_saved_and_loaded() -> None:
    model, file = _Model(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded(X, T).item() == model(X, T).item() == copy.deepcopy(model)(X, T).item()
    assert set(loaded.state_dict()) == {"layer.weight", "layer.bias", "criterion.weight"}


def test_the_module_is_pytorchs() -> None:
    for options in ({}, {"ignore_index": 3}, {"reduction": "none"}, {"weight": WEIGHT, "label_smoothing": 0.2}):
        ours, theirs = bridge.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
        torch.testing.assert_close(ours(X, T), theirs(X, T))
        assert repr(ours) == repr(theirs)


def test_vmap() -> None:
    x = numbers(3, 5, 7, needs=False)
    for name in ("softmax", "log_softmax"):
        for dim, in_dim in ((0, 0), (-1, 1), (1, 2)):
            found, expected = (
                torch.vmap(functools.partial(getattr(functions, name), dim=dim), in_dim)(x)
                for functions in (bridge, functional)
            )
            torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.vmap(bridge.relu, 1)(x), torch.vmap(functional.relu, 1)(x))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev, torch.func.jacfwd])
def test_transforms_that_custom_operators_cannot_do(transform: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that torch.jit.script is deprecated
        with pytest.raises(NotImplementedError, match="torch.func|forward-mode"):
            transform(lambda x: bridge.softmax(x, 0).sum())(X.detach())
        with (
            torch.autograd.forward_ad.dual_level(),
            pytest.raises(NotImplementedError, match="relu: input: there is no forward-mode derivative"),
        ):
            bridge.relu(torch.autograd.forward_ad.make_dual(X.detach(), X.detach()))


# ---------------------------------------------------------------------------------------------------------------------
# Where nothing counts, and bad calls
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_nothing_counts_the_loss_is_0(reduction: str) -> None:
    t = torch.full((5,), -100)
    for x, target in ((X, t), (numbers(0, 7), t[:0])):
        for loss in (
            bridge.cross_entropy(x, target, reduction=reduction),
            bridge.linear_cross_entropy(x, W, target, reduction=reduction),
        ):
            assert loss.item() == 0.0
            assert not torch.autograd.grad(loss, x)[0].any()
    nothing = numbers(0, 7)
    assert bridge.binary_cross_entropy_with_logits(nothing, nothing.detach(), reduction=reduction).item() == 0.0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_that_do_not_count_may_hold_anything(reduction: str) -> None:
    x, target = X.detach().clone(), labels(4, 5)
    target[1] = -100
    given = x.clone()
    x[1], given[1] = 0, float("nan")
    found = []
    for rows in (x.requires_grad_(), given.requires_grad_()):
        loss = bridge.linear_cross_entropy(rows, W, target, linear_bias=B, reduction=reduction)
        found.append((loss, *torch.autograd.grad(loss.mean(), (rows, W, B))))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("label", [7, -1, 10**9])
def test_a_label_out_of_range(label: int) -> None:
    t = T.clone().index_fill(0, torch.tensor([2]), label)
    with pytest.raises(
        IndexError,
        match=rf"^cross_entropy: target: expected labels in \[0, 7\) or the ignored label -100, got {label} at row 2",
    ):
        bridge.cross_entropy(X, t)
    with pytest.raises(IndexError, match=f"got {label} at row 2"):
        bridge.linear_cross_entropy(X, numbers(7, 7), t)


FLOAT = torch.ones(5, 7)
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an array": (lambda: bridge.relu(np.ones(3)), TypeError, "input: expected a torch.Tensor, got ndarray"),
    "integers": (
        lambda: bridge.softmax(T, 0),
        TypeError,
        r"a floating dtype, got torch.int64; call its .float",
    ),
    "sparse": (lambda: bridge.relu(FLOAT.to_sparse()), TypeError, r"torch.sparse_coo; call its .to_dense\(\)"),
    "nested": (
        lambda: bridge.relu(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
        TypeError,
        r"got a nested one; call its .to_padded_tensor\(0.0\)",
    ),
    "eight bits": (
        lambda: bridge.softmax(FLOAT.to(torch.float8_e4m3fn), 1),
        TypeError,
        "input: expected float16, bfloat16, float32 or float64, got torch.float8_e4m3fn",
    ),
    "no classes": (
        lambda: bridge.cross_entropy(X[:, :0], T),
        ValueError,
        "^cross_entropy: input: expected at least one class",
    ),
    "a fractional label to ignore": (
        lambda: bridge.cross_entropy(X, T, ignore_index=1.5),  # type: ignore[arg-type]
        TypeError,
        "cross_entropy: ignore_index: expected an integer, got 1.5",
    ),
    "a fractional label to ignore in a layer": (
        lambda: bridge.linear_cross_entropy(X, W, labels(4, 5), ignore_index=1.5),  # type: ignore[arg-type]
        TypeError,
        "linear_cross_entropy: ignore_index: expected an integer, got 1.5",
    ),
    "smoothing by text": (
        lambda: bridge.cross_entropy(X, T, label_smoothing="some"),  # type: ignore[arg-type]
        TypeError,
        r"label_smoothing: expected a number in \[0, 1\], got 'some'",
    ),
    "smoothing that requires grad": (
        lambda: bridge.linear_cross_entropy(X, W, labels(4, 5), label_smoothing=numbers()),
        NotImplementedError,
        "label_smoothing: expected a tensor that needs no gradient",
    ),
    "quantised": (
        lambda: bridge.relu(torch.quantize_per_tensor(FLOAT, 0.1, 0, torch.qint8)),
        TypeError,
        r"got a quantised one; call its .dequantize\(\)",
    ),
    "complex": (lambda: bridge.relu(FLOAT.cfloat()), TypeError, "expected real numbers, got dtype torch.complex64"),
    "conjugated": (lambda: bridge.relu(FLOAT.cfloat().conj()), TypeError, "expected real numbers"),
    "negated": (
        lambda: bridge.relu(FLOAT.cfloat().conj().imag),
        TypeError,
        r"got a negated view; call its .resolve_neg\(\)",
    ),
    "another device": (lambda: bridge.relu(FLOAT.to("meta")), TypeError, r"got one on meta; call its .to\('cpu'\)"),
    "two devices": (
        lambda: bridge.cross_entropy(FLOAT, T.to("meta")),
        TypeError,
        "target: expected a tensor in host memory or on an NVIDIA GPU, got one on meta",
    ),
    "two dtypes": (lambda: bridge.linear(FLOAT, W), TypeError, "weight: expected torch.float32, the dtype of input"),
    "no axis": (lambda: bridge.softmax(FLOAT, 2), IndexError, r"dim: expected one in \[-2, 2\), got 2"),
    "a fractional axis": (lambda: bridge.softmax(FLOAT, 1.0), TypeError, "dim: expected an integer, got 1.0"),
    "no dtype": (lambda: bridge.softmax(FLOAT, 1, dtype="float64"), TypeError, "dtype: expected a torch.dtype or None"),
    "shapes of linear": (lambda: bridge.linear(X, B), ValueError, r"weight: expected shape \(outputs, inputs\)"),
    "shape of bias": (lambda: bridge.linear(X, W, X[0]), ValueError, r"bias: expected shape \(4,\), got \(7,\)"),
    "shape of labels": (
        lambda: bridge.cross_entropy(X, T[:3]),
        ValueError,
        r"target: expected class indices of shape \(5,\) or probabilities of shape \(5, 7\), got torch.int64 of shape",
    ),
    "float labels": (lambda: bridge.cross_entropy(X, T.double()), TypeError, "class indices of an integer dtype"),
    "one-hot integers": (
        lambda: bridge.cross_entropy(X, functional.one_hot(T, 7)),
        ValueError,
        "probabilities of shape",
    ),
    "shape of weights": (
        lambda: bridge.cross_entropy(X, T, WEIGHT[:3]),
        ValueError,
        r"weight: expected one per class, shape \(7,\), got \(3,\)",
    ),
    "reduction": (lambda: bridge.cross_entropy(X, T, reduction="max"), ValueError, "expected one of mean, sum, none"),
    "smoothing": (
        lambda: bridge.cross_entropy(X, T, label_smoothing=2.0),
        ValueError,
        r"^cross_entropy: label_smoothing: expected a number in \[0, 1\], got 2",
    ),
    "ignored probabilities": (
        lambda: bridge.cross_entropy(X, soft(7, 5), ignore_index=2),
        ValueError,
        "ignore_index: expected none beside probabilities, got 2",
    ),
    "labels that require grad": (
        lambda: bridge.cross_entropy(X, soft(7, 5).requires_grad_()),
        NotImplementedError,
        r"target: expected a tensor that needs no gradient.*\.detach\(\), or torch.nn.functional.cross_entropy",
    ),
    "weights that require grad": (
        lambda: bridge.linear_cross_entropy(X, numbers(7, 7), T, weight=WEIGHT.clone().requires_grad_()),
        NotImplementedError,
        "weight: expected a tensor that needs no gradient",
    ),
    "shape of binary labels": (
        lambda: bridge.binary_cross_entropy_with_logits(X, soft(7, 4)),
        ValueError,
        r"target: expected the shape of input, \(5, 7\), got \(4, 7\)",
    ),
    "binary labels out of range": (
        lambda: bridge.binary_cross_entropy_with_logits(X, 2 * torch.ones(5, 7)),
        ValueError,
        r"^binary_cross_entropy_with_logits: target: .*in \[0, 1\]",
    ),
    "options": (
        lambda: bridge.linear_cross_entropy(X, W, T, options=object()),
        ValueError,
        "options: expected None.*max_workspace",
    ),
    "no size": (
        lambda: bridge.linear_cross_entropy(X, W, labels(4, 5), max_workspace="much"),
        ValueError,
        "max_workspace: expected a size such as 64MB",
    ),
    "a workspace of kernels": (
        lambda: bridge.linear_cross_entropy(X, W, labels(4, 5), max_workspace=K.Workspace(1000)),
        TypeError,
        "got a Workspace, which an operator of PyTorch cannot keep from call to call; pass 1000",
    ),
    "a small workspace": (
        lambda: bridge.linear_cross_entropy(X, W, labels(4, 5), max_workspace=1),
        ValueError,
        "max_workspace",
    ),
    "in a capture": (lambda: captured(), RuntimeError, "plugrad.bridges.torch.relu: is not recorded"),
}


def captured() -> None:
    with K.capture():
        bridge.relu(FLOAT)


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(name: str) -> None:
    call, error, message = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that quantised tensors are deprecated
        with pytest.raises(error, match=message):
            call()


# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *bridge.__all__])
def test_docstrings(name: str) -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(bridge, name) if name else bridge, name or "bridge")
    assert test.examples, f"{name} has no example"
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_the_snippets_of_the_document() -> None:
    assert (ROOT / "docs" / "pytorch.md").exists()
    known: dict[str, Any] = {}
    for snippet in blocks("docs/pytorch.md", "python"):
        exec(compile(snippet, "docs/pytorch.md", "exec"), known)
    assert known["loss"].item() > 0
