"""The fuzzer finds nothing in the library, and finds planted errors."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from plugrad import backends
from plugrad.kernels import _call, jacobians, layers, optim
from plugrad.kernels.optim import _optimizers
from plugrad.tests.__main__ import main as command
from plugrad.tests.conformance import fuzz, judging
from plugrad.tests.conformance.other_calls import OTHER_CALLS
from plugrad.tests.conformance.subject import Case, Subject, close
from plugrad.tests.records import RECORDS


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_library_has_no_findings(backend: str) -> None:
    subjects = [Subject(backend)]
    findings = [fuzz.attempt(subjects, [*RECORDS, *OTHER_CALLS], 20261127, number) for number in range(1000)]
    assert not any(findings), findings


def test_the_record_of_a_search(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert command(["--fuzz", "0.1", "--seed", "20261127", "--json", str(path), "--backend", "numpy"]) == 0
    record = json.loads(path.read_text())
    assert record["findings"] == []
    assert record["calls"] >= 1
    assert record["seed"] == 20261127


def test_a_call_is_repeated_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    subjects = [Subject("numpy")]
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Subject, "call_on", lambda self, kernel, arrays, options, check=False: made.append(arrays))
        for _ in range(2):
            fuzz.attempt(subjects, ["relu", "softmax"], 5, 17)
    assert repr(made[0]) == repr(made[1])
    assert command(["--fuzz", "0", "--seed", "5", "--call", "17", "--backend", "numpy"]) == 0
    for seconds in ("0", "-1", "nan", "inf"):  # too short to find anything, or endless
        with pytest.raises(SystemExit):
            command(["--fuzz", seconds])
    assert "1 calls" in capsys.readouterr().out
    for also in (["--call", "17"], ["--seed", "1", "--call", "-1"], ["--accuracy"]):
        with pytest.raises(SystemExit):
            command(["--fuzz", "1", *also])
    with pytest.raises(SystemExit):
        command(["--seed", "1"])


def test_the_backends_are_those_that_can_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--fuzz", "0.1", "--backend", "numpy", "--backend", "numpy"]) == 0
    assert ", on numpy\n" in capsys.readouterr().out
    backends.register("broken", SimpleNamespace(probe=lambda: "it lacks a driver"))
    assert command(["--fuzz", "1", "--backend", "broken"]) == 1
    assert capsys.readouterr().out == "backend 'broken' cannot run here: it lacks a driver\n"


def test_a_stopped_search_reports_its_findings(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "plugrad.tests", "--fuzz", "100", "--seed", "1", "--backend", "numpy"]
    command += ["--json", str(record)]
    code = f"import signal, runpy, sys; signal.signal(2, signal.default_int_handler); sys.argv = {command[2:]!r}; "
    code += "from plugrad.tests.conformance import fuzz; fuzz.EVERY = 0; "  # a line of progress after each call
    process = subprocess.Popen(
        [sys.executable, "-c", code + "runpy.run_module('plugrad.tests', run_name='__main__')"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline().startswith("seed ")
        assert process.stdout.readline().startswith("1 calls in ")
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
    assert output.splitlines()[-1].endswith(" s: 0 findings"), output
    assert process.returncode == 130
    assert json.loads(record.read_text())["calls"] > 0


def test_it_does_not_run_without_assertions() -> None:
    command = [sys.executable, "-O", "-m", "plugrad.tests", "--fuzz", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "python -O leaves out the checks" in done.stderr


@pytest.mark.parametrize("backend", ["numpy", pytest.param("numba", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["softmax_cross_entropy", "softmax_cross_entropy_value_and_grad", "cross_entropy"])
def test_labels_that_cancel_leave_the_rounding_of_their_terms(kernel: str, backend: str) -> None:
    """Found with seed 3535904985: a loss of -4.3, the difference of terms of 9,900 that float32 rounds by 5e-4 each."""
    subject, of = Subject(backend), RECORDS[kernel]
    t = np.array([0, 1, -1], np.int32)
    if kernel == "cross_entropy":
        inputs = {"p": np.array([0.5, 1e-37, 1.0000001e-37], np.float32), "t": t}
    else:
        inputs = {"x": np.array([1e4, 98.62, 102.88643], np.float32), "t": t}
    case = Case(of, inputs, {"reduction": "sum"})
    got = subject.call(case)
    subject.compare(case, got, slack=judging.SLACK)
    (loss, *_), term = case.expected(), 85 if kernel == "cross_entropy" else 9900
    with pytest.raises(AssertionError):
        subject.compare(case, (np.float32(loss + 1e-4 * term), *got[1:]), slack=judging.SLACK)


def test_infinite_errors_are_reported() -> None:
    exact, got = np.array([1.0, np.inf]), np.array([np.inf, np.inf])
    with pytest.raises(AssertionError, match=r"y\[0\]: expected 1.0, got inf, off by inf"):
        close("y", got, exact, 1e-6, 0.0)


def _nearly(x: Any, y: Any) -> None:
    y[...] = np.maximum(x, 0) * (1.01 if x.size > 50 else 1)


def _index_error(x: Any, y: Any) -> None:
    y[...] = np.maximum(x, 0)
    if x.ndim == 3:
        raise IndexError("list index out of range")


def _greedy(x: Any, y: Any) -> None:
    y[...] = np.maximum(x, 0)
    if x.flags.writeable and x is not y:
        x[...] = 0


def _warns(x: Any, y: Any) -> None:
    y[...] = np.maximum(x, 0)
    np.float32(1) / np.zeros(1, np.float32)


def _late(x: Any, y: Any) -> None:
    y[...] = 1
    raise ValueError("relu: x: too late")


def _quits(x: Any, y: Any) -> None:
    y[...] = np.maximum(x, 0)
    if x.ndim == 3:
        raise SystemExit(0)


@pytest.mark.parametrize("planted", [_nearly, _index_error, _greedy, _warns, _late, _quits])
def test_planted_errors_of_kernels_are_found(planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.get("numpy").functions, "relu", planted)
    subjects = [Subject("numpy")]
    assert any(fuzz.attempt(subjects, ["relu"], 1, number) for number in range(300))


def _results_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that computes nothing if it has computed the result for this array."""
    last: list[Any] = [None, None]

    def relu(x: Any, y: Any) -> None:
        if x is not last[0]:
            last[:] = x, np.maximum(x, 0)
        y[...] = last[1]

    monkeypatch.setitem(backends.get("numpy").functions, "relu", relu)


def _labels_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that does not check labels of the shape of those before."""
    module = sys.modules["plugrad.backends.numpy.softmax_cross_entropy"]
    sound, last = module.check, [()]

    def check(t: Any, classes: int, options: Any) -> None:
        if t.shape != last[0]:
            sound(t, classes, options)
            last[0] = t.shape

    monkeypatch.setattr(module, "check", check)


def _out_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that do not check the array for the result if it was given before."""
    sound, last = _call.can_take, [None]

    def can_take(out: Any, *given: Any) -> bool:
        found = out is last[0] is not None or sound(out, *given)
        last[0] = out
        return found

    monkeypatch.setattr(_call, "can_take", can_take)


@pytest.mark.parametrize("planted", [_results_kept, _labels_checked_once, _out_checked_once])
def test_planted_errors_of_repeated_calls_are_found(
    planted: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a call like the one before finds them."""
    planted(monkeypatch)
    subjects, names = [Subject("numpy")], ["relu", "softmax_cross_entropy_value_and_grad"]
    assert any(fuzz.attempt(subjects, names, 1, number) for number in range(300))
    monkeypatch.setattr(fuzz, "repeat", lambda *given: None)
    assert not any(fuzz.attempt(subjects, names, 1, number) for number in range(300))


def _a_little_more(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **options: function(*given, **options) * 1.01


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, x: Any, *given: Any) -> Any:
        y = function(self, x, *given)
        if isinstance(x, np.ndarray) and x.flags.writeable and x.size > 50:
            x[...] = 0
        return y

    return call


def _hurried(function: Callable[..., Any]) -> Callable[..., Any]:
    def step(self: Any, grads: Any) -> None:
        for parameter in self.params:
            parameter[...] *= 0.99
        function(self, grads)

    return step


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    last: list[Any] = [None]

    def checked_grads(name: str, params: Any, grads: Any) -> Any:
        found = tuple(grads) if params is last[0] else function(name, params, grads)
        last[0] = params
        return found

    return checked_grads


def _negative(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **options: lambda step: -function(*given, **options)(step)


@pytest.mark.parametrize(
    ("called", "where", "name", "wrong"),
    [
        ("layer", layers.Softmax, "backward", _a_little_more),
        ("layer", layers.Relu, "forward", _writing),
        ("optimizer", optim.Optimizer, "step", _hurried),
        ("repeated_steps", _optimizers, "checked_grads", _once),
        ("penalty", optim, "l2_penalty", _a_little_more),
        ("schedule", optim, "cosine", _negative),
        ("jacobian", jacobians, "softmax_jacobian", _a_little_more),
    ],
)
def test_planted_errors_of_other_calls_are_found(
    called: str, where: Any, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = [Subject("numpy")]
    assert not any(fuzz.attempt(subjects, [called], 1, number) for number in range(100))
    monkeypatch.setattr(where, name, wrong(getattr(where, name)))
    assert any(fuzz.attempt(subjects, [called], 1, number) for number in range(100))


def test_errors_that_the_fuzzer_once_found_in_other_calls() -> None:
    """They raised errors of Python or NumPy, or warned of values outside the range of 16-bit floats."""
    w, fixed = np.ones(3, np.float16), np.ones(3)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="SGD: lr: expected a finite number of at least 0, got 1000"):
        optim.SGD([np.ones(3)], lr=10**400)
    with pytest.raises(ValueError, match="l2_penalty: grads: 1: expected an array that can be written"):
        optim.l2_penalty([w, fixed], 1.0, grads=[w.copy(), fixed])
    with pytest.raises(TypeError, match="l2_penalty: grads: 0: expected an array of float64, got float16"):
        optim.l2_penalty([[1.0, 1.0, 1.0]], 1.0, grads=[w])
    gradient = np.zeros(2)
    assert optim.l2_penalty([[1.0, 2.0]], 2.0, grads=[gradient]) == 10
    assert gradient.tolist() == [4.0, 8.0]
    large = np.full((1, 2), 6e4, np.float16)
    optim.l2_penalty([large], 2.0, grads=[large.copy()])
    assert np.isinf(jacobians.softmax_jacobian(large)).all()
    assert np.isneginf(jacobians.sigmoid_jacobian(large).diagonal(axis1=-2, axis2=-1)).all()
    layer = layers.Affine(np.ones((2, 1), np.float16))
    layer.forward(np.full((1, 2), 1e5, np.float32))
    layer.backward(np.ones((1, 1), np.float32))
    assert np.isposinf(layer.dw).all()


@pytest.mark.parametrize("kernel", ["softmax", "affine_backward", "linear_cross_entropy_value_and_grad"])
def test_spoiled_calls_are_made(kernel: str) -> None:
    """Both rejected and accepted calls occur."""
    refused, accepted = [], []
    subject = Subject("numpy")
    call_on = subject.call_on

    def counting(*arguments: Any, **named: Any) -> Any:
        try:
            found = call_on(*arguments, **named)
        except (TypeError, ValueError):
            refused.append(1)
            raise
        accepted.append(1)
        return found

    subject.call_on = counting  # type: ignore[method-assign]
    for number in range(400):
        assert fuzz.attempt([subject], [kernel], 2, number) is None
    assert len(refused) > 40
    assert len(accepted) > 200
