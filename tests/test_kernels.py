"""The front of every kernel, on any backend: its pieces, its `out`, and the arguments it accepts and refuses.

The conformance suite checks the values.
"""

import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels, kernels as K
from plugrad.backends import contract, registry
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.records import RECORDS

BUILTIN = ("numpy", "numba", "cupy")


@pytest.fixture(autouse=True)
def _on_numpy() -> Iterator[None]:
    with backends.use("numpy"):
        yield


def function_of(backend: str, kernel: str) -> Any:
    """The function of a built-in backend, which need not be able to run here."""
    return getattr(importlib.import_module(registry.BUILTIN[backend]), kernel, None)


def test_every_kernel_is_exported() -> None:
    folder = Path(kernels.__file__).parent
    defined = {
        name
        for file in folder.glob("_*.py")
        for name in re.findall(r"^@kernel\((?:.|\n)*?^def (\w+)\(", file.read_text(), re.MULTILINE)
    }
    missing = {name for name in defined if name not in vars(kernels)}
    assert not missing, f"kernels/__init__.py does not import {', '.join(sorted(missing))}"
    assert defined == set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_has_a_record(kernel: str) -> None:
    assert kernel in RECORDS, f"tests/records has no record of {kernel}"
    assert set(RECORDS) <= set(KERNELS), "a record belongs to no kernel"


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("backend", ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.slow)])  # needs CuPy
def test_the_backend_has_the_kernel_in_its_form(backend: str, kernel: str) -> None:
    function, form = function_of(backend, kernel), KERNELS[kernel].form
    assert function is not None, f"backends/{backend} has no function {kernel}"
    given, expected = (list(inspect.signature(f).parameters) for f in (function, form.__call__))
    assert len(given) == len(expected) - 1, f"{backend}.{kernel}{given} has not the form {form.__name__}{expected[1:]}"
    assert form in contract.FORMS


@pytest.mark.parametrize("kernel", KERNELS)
def test_names_connect_forward_and_backward(kernel: str) -> None:
    forward = KERNELS[kernel]
    parameters = inspect.signature(forward.function).parameters
    assert tuple(parameters)[: len(forward.arguments)] == forward.arguments
    assert {*forward.options, "out"} == {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    if forward.backward:
        backward = KERNELS[forward.backward]
        assert {name.removeprefix("d") for name in backward.results} <= {*forward.arguments}
        assert backward.arguments[0] in {f"d{name}" for name in forward.results}
        assert set(backward.arguments[1:]) <= {*forward.arguments, *forward.results}


def test_a_kernel_needs_a_docstring() -> None:
    def nameless(x: Any, *, out: Any = None) -> Any: ...

    with pytest.raises(ValueError, match="kernel nameless: expected its function to have a docstring"):
        Kernel(nameless, contract.Elementwise, "y = x", ("y",))


def test_dir_shows_the_modules_too() -> None:
    assert {"layers", "optim", "jacobians", "gradcheck", "softmax", "KERNELS"} <= set(dir(kernels))
    assert set(kernels.__all__) == set(dir(kernels))


def test_losses_can_be_written_to_out() -> None:
    p, t = np.full((3, 2), 0.5, np.float32), np.array([0, 1, 0])
    loss = np.empty((), np.float32)
    assert K.cross_entropy(p, t, out=loss) is loss
    assert loss == pytest.approx(np.log(2))
    rows = np.empty(3, np.float32)
    assert K.linear_cross_entropy(p, np.zeros((2, 4), np.float32), None, t, reduction="none", out=rows) is rows
    np.testing.assert_allclose(rows, np.log(4), rtol=1e-6)


def test_the_gradient_of_biases_does_not_need_biases() -> None:
    x, w, t = np.ones((3, 2)), np.zeros((2, 4)), np.array([0, 1, 0])
    without = K.linear_cross_entropy_value_and_grad(x, w, None, t)
    for got, expected in zip(without, K.linear_cross_entropy_value_and_grad(x, w, np.zeros(4), t), strict=True):
        np.testing.assert_array_equal(got, expected)
    db = np.empty(4)
    assert K.linear_cross_entropy_value_and_grad(x, w, None, t, out=(None, None, None, db))[3] is db


def test_images_of_integers_take_the_dtype_of_the_weights() -> None:
    images, w = np.ones((2, 3), np.uint8), np.ones((3, 4), np.float32)
    assert K.affine(images, w).dtype == np.float32
    assert K.affine(images.astype(np.int64), w).dtype == np.float64
    assert K.affine(images.tolist(), w).dtype == np.float64
    assert K.relu(images).dtype == np.float64
    x, w, b = np.ones((2, 3), np.int16), np.ones((3, 2), np.uint16), np.ones(2, np.float32)
    assert K.affine(x, w, b).dtype == (x @ w + b).dtype == np.float64


def test_results_that_share_memory_are_refused() -> None:
    dy, x, w = np.ones((4, 4)), np.ones((4, 4)), np.ones((4, 4))
    both = np.empty((4, 4))
    with pytest.raises(ValueError, match="affine_backward: out: dw: shares memory with another result"):
        kernels.affine_backward(dy, x, w, out=(both, both, None))


def test_an_out_with_repeated_elements_is_refused() -> None:
    repeated = np.lib.stride_tricks.as_strided(np.empty(3), (2, 3), (0, 8))
    with pytest.raises(
        ValueError, match=r"relu: out: expected an array without repeated elements, got strides \(0, 8\)"
    ):
        kernels.relu(np.ones((2, 3)), out=repeated)


def test_a_read_only_out_is_refused() -> None:
    out = np.empty(3)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="relu: out: expected an array that can be written, got a read-only one"):
        kernels.relu(np.ones(3), out=out)


def test_out_may_be_a_tuple_of_the_one_result() -> None:
    y = np.empty(2)
    assert kernels.softmax([1.0, 1.0], out=(y,)) is y
    assert isinstance(kernels.relu(3.0, out=(None,)), np.float64)


def test_a_loss_can_be_written_where_the_caller_says() -> None:
    x, t = np.ones((3, 2), np.float32), [0, 1, 0]
    loss = np.empty((), np.float32)
    got, dx = K.softmax_cross_entropy_value_and_grad(x, t, out=(loss, None))
    assert got is loss
    assert loss == pytest.approx(np.log(2))
    assert dx.shape == (3, 2)
    rows = np.empty(3, np.float32)
    assert K.softmax_cross_entropy(x, t, reduction="none", out=(rows, None))[0] is rows
    np.testing.assert_allclose(rows, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.slow)])
def test_losses_of_rows_can_be_written_over_their_weights(backend: str) -> None:
    rng = np.random.default_rng(0)
    with backends.use(backend):
        for classes, soft in ((4, False), (4, True), (60, False), (60, True)):
            x = rng.normal(size=(50, classes)).astype(np.float32)
            t: Any = K.softmax(x) if soft else rng.integers(0, classes, 50)
            weights = rng.integers(0, 3, 50).astype(np.float32)
            options: dict[str, Any] = {"sample_weight": weights, "reduction": "none"}
            for loss, given in ((K.cross_entropy, K.softmax(x)), (K.softmax_cross_entropy, x)):
                out: Any = weights if loss is K.cross_entropy else (weights, None)
                z_loss = {} if loss is K.cross_entropy else {"z_loss": 0.1}
                found: Any = loss(given, t, **options, **z_loss)
                kept = weights.copy()
                loss(given, t, **options, **z_loss, out=out)
                np.testing.assert_array_equal(weights, found if loss is K.cross_entropy else found[0])
                weights[...] = kept


def test_an_out_that_overlaps_the_weights_is_refused() -> None:
    x, t = np.ones((4, 3), np.float32), [0, 1, 2, 0]
    out = np.ones((4, 3), np.float32)
    for call in (
        lambda: K.softmax_cross_entropy_value_and_grad(x, t, weight=out[0], out=out),
        lambda: K.softmax_cross_entropy(x, t, weight=out[0], out=out),
        lambda: K.softmax_cross_entropy_backward(1.0, x, t, weight=out[0], out=out),
        lambda: K.cross_entropy_backward(1.0, x, t, weight=out[0], out=out),
    ):
        with pytest.raises(ValueError, match="shares part of its memory with an argument"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: kernels.softmax(x, axis=np.array([0])), TypeError, "softmax: axis: expected one integer"),
        (lambda x: kernels.softmax(x, axis=np.array([0, 1])), TypeError, "softmax: axis: expected one integer"),
        (lambda x: kernels.softmax(x, axis=np.array(1.0)), TypeError, "softmax: axis: expected one integer"),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], ignore_index=np.array([0, 1])),
            TypeError,
            "cross_entropy: ignore_index: expected an integer or None",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], label_smoothing=np.array([0.0, 0.1])),
            TypeError,
            "cross_entropy: label_smoothing: expected a number",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], label_smoothing=10**400),
            ValueError,
            "cross_entropy: label_smoothing: expected a number",
        ),
        (
            lambda x: kernels.cross_entropy(x, [0, 0], reduction=np.array(["mean", "sum"])),
            TypeError,
            "cross_entropy: reduction: expected one of",
        ),
        (
            lambda x: kernels.cross_entropy_backward(10**400, x, [0, 0]),
            ValueError,
            "cross_entropy_backward: dloss: expected a number that a float can hold",
        ),
        (lambda x: kernels.affine_backward(x, x, np.ones((2, 2)), needs=None), TypeError, "affine_backward: needs: "),
        (
            lambda x: kernels.relu(np.array(["a"], np.dtypes.StringDType())),
            TypeError,
            "relu: x: expected .*StringDType",
        ),
        (lambda x: kernels.cross_entropy(x[:0], np.array([], "U1")), TypeError, "cross_entropy: t: expected class ind"),
        (lambda x: kernels.relu(x, out=np.ma.masked_less(x, 2.0)), TypeError, "out: expected a plain array .*Masked"),
    ],
)
def test_strange_arguments_are_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(np.full((2, 2), 0.5))


def test_no_inputs_at_all() -> None:
    for lead in ((), (4,), (2, 5)):
        x, w, b = np.ones((*lead, 0)), np.ones((0, 3)), np.arange(3.0)
        np.testing.assert_array_equal(kernels.affine(x, w, b), np.broadcast_to(b, (*lead, 3)))
        np.testing.assert_array_equal(kernels.affine(x, w), np.zeros((*lead, 3)))
        dx, dw, db = kernels.affine_backward(np.ones((*lead, 3)), x, w)
        assert (dx.shape, dw.shape) == (x.shape, w.shape)
        np.testing.assert_array_equal(db, np.full(3, np.prod(lead)))


def test_masked_arrays_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"relu: x: expected an array without a mask, got a masked array; call its .filled"
    ):
        kernels.relu(np.ma.masked_less([1.0, 2.0], 1.5))


@pytest.mark.parametrize("dtype", [np.longdouble, "datetime64[s]", "S3", "V4"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(
        TypeError, match=r"softmax: x: expected float16, bfloat16, float32, float64, integers or booleans"
    ):
        kernels.softmax(np.zeros((2, 2), dtype))


def test_labels_and_weights_do_not_change_the_dtype() -> None:
    x = np.ones((2, 3), np.float32)
    loss, dx = kernels.softmax_cross_entropy_value_and_grad(x, np.eye(3)[:2], weight=[1.0, 2.0, 3.0])
    assert (loss.dtype, dx.dtype) == (np.float32, np.float32)


def test_scalars_come_back_as_scalars() -> None:
    assert isinstance(kernels.relu(2.0), np.float64)
    assert isinstance(kernels.sigmoid(np.float32(0)), np.float32)
    loss, _ = kernels.softmax_cross_entropy(np.ones((2, 3), np.float32), [0, 1])
    assert isinstance(loss, np.float32)


def test_the_example_of_the_contract() -> None:
    loss, _ = K.softmax_cross_entropy(np.array([[20, 0, 0]], np.float32), [0])
    assert loss == pytest.approx(4.1223072e-09, rel=5e-7)
    assert K.log_softmax(np.array([20, 0, 0], np.float32))[0] == pytest.approx(-4.1223072e-09, rel=5e-7)


def test_the_loss_of_one_row_goes_back_as_it_came() -> None:
    x = np.array([1.0, 2.0])
    loss, y = K.softmax_cross_entropy(x, 0, reduction="none")
    for dloss in (loss, 2.0, np.array(2.0)):
        dx = K.softmax_cross_entropy_backward(dloss, y, 0, reduction="none")
        np.testing.assert_allclose(dx, float(dloss) * (y - [1, 0]))
        np.testing.assert_allclose(K.cross_entropy_backward(dloss, y, 0, reduction="none")[1], 0)


def test_index_and_one_hot_labels_agree() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 5))
    t = rng.integers(0, 5, 8)
    by_index = K.softmax_cross_entropy_value_and_grad(x, t, label_smoothing=0.1)
    one_hot = K.softmax_cross_entropy_value_and_grad(x, np.eye(5)[t], label_smoothing=0.1)
    for a, b in zip(by_index, one_hot, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_one_row_and_one_class() -> None:
    loss, dx = K.softmax_cross_entropy_value_and_grad(np.array([1.0, 2.0, 3.0]), 2)
    assert loss == pytest.approx(np.log(np.exp([-2.0, -1.0, 0.0]).sum()))
    assert dx.shape == (3,)
    loss, dx = K.softmax_cross_entropy_value_and_grad(np.array([[5.0], [np.nan]]), [0, 0], reduction="none")
    np.testing.assert_array_equal(loss, [0, np.nan])
    assert dx[0, 0] == 0


def test_the_first_bad_label_is_named_wherever_it_is() -> None:
    x = np.zeros((3, 4, 2))
    t = np.zeros((3, 4), int)
    t[1, 2] = t[2, 0] = 9
    with pytest.raises(ValueError, match=r"got 9 at row \(1, 2\)"):
        K.softmax_cross_entropy_value_and_grad(x, t)
    t = np.zeros(600_000, np.int8)
    t[[550_000, 599_999]] = -3
    x = np.zeros((600_000, 2), np.float32)
    with pytest.raises(ValueError, match=r"got -3 at row 550000"):
        K.softmax_cross_entropy_value_and_grad(x, t, out=x)
    assert not x.any()
    with pytest.raises(ValueError, match=r"t: expected labels in \[0, 2\), got 2; labels count from 0$"):
        K.softmax_cross_entropy([0.0, 0.0], 2)


ROWS, CLASSES = np.zeros((3, 64)), np.zeros((64, 2))


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: K.cross_entropy(np.full((2, 3), 0.3), [1, 3]), "got 3 at row 1; labels count from 0"),
        (lambda: K.cross_entropy(np.full((2, 3), 0.3), [[0], [1]]), r"got shape \(2, 1\); pass t.ravel\(\)"),
        (lambda: K.cross_entropy([0, 1], np.full((2, 3), 0.3)), "; the labels come second"),
        (lambda: K.cross_entropy(np.full((2, 3), 0.3), [0.0, math.nan]), "dtype float64; .* pass it as ignore_index"),
        (lambda: K.cross_entropy(np.full((2, 3), 0.3), [0.0, 1.0]), r"dtype float64; use t.astype\(int\)"),
        (lambda: K.cross_entropy(np.full((2, 3), 0.3), np.array(["a", "b"])), r"; np.unique\(.*\)\[1\] numbers them"),
        (lambda: K.affine(ROWS.reshape(3, 8, 8), CLASSES), r"got shape \(3, 8, 8\); pass x.reshape\(len\(x\), -1\)"),
        (lambda: K.affine(ROWS.reshape(3, 32, 2), CLASSES), r"; pass x.reshape\(len\(x\), -1\)"),
        (lambda: K.affine(ROWS, CLASSES, np.zeros((1, 2))), r"got \(1, 2\); pass b.ravel\(\)"),
        (lambda: K.affine(ROWS[:, :2], CLASSES), r"; if w is \(out, in\), pass w.T"),
        (lambda: K.affine_backward(np.ones((5, 3)), np.ones((5, 2)), np.ones((3, 2))), r"; dy comes first, then x$"),
    ],
)
def test_errors_say_what_to_do(call: Callable[[], Any], hint: str) -> None:
    with backends.use("numpy"), pytest.raises((TypeError, ValueError), match=hint):
        call()


@pytest.mark.parametrize("out", [((np.empty(2),),), ((None,),)])
def test_a_tuple_in_a_tuple_is_no_result(out: Any) -> None:
    with backends.use("numpy"), pytest.raises(TypeError, match="relu: out: expected a plain array .* got tuple"):
        K.relu(np.ones(2), out=out)
