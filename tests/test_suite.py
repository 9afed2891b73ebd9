"""The machinery of the conformance suite: the witness of calls, snippets that repeat failures, and the command."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends
from plugrad.backends import selection
from plugrad.backends.cpu.affine import forward
from plugrad.tests import first_calls
from plugrad.tests.conformance import accuracy, cases
from plugrad.tests.conformance.checks import CHECKS
from plugrad.tests.conformance.snippets import snippet
from plugrad.tests.conformance.subject import DTYPES, Case, Subject, close
from plugrad.tests.mutants import MUTANTS, sound_module
from plugrad.tests.records import RECORDS

FLOAT32 = np.dtype(np.float32)


def complaint(module: Any, kernel: str, check: str, dtype: Any = FLOAT32) -> AssertionError:
    """The error that a check raises for a kernel of a backend module."""
    backends.register("mutant", module, replace=True)
    with pytest.raises(AssertionError) as caught:
        CHECKS[check](Subject("mutant"), RECORDS[kernel], np.dtype(dtype))
    return caught.value


# The witness of calls


def relu_of_numpy(x: Any, out: Any) -> None:
    backends.get("numpy").module.relu(x, out)


def relu_in_another_thread(x: Any, out: Any) -> None:
    thread = threading.Thread(target=relu_of_numpy, args=(x, out))
    thread.start()
    thread.join()


def relu_in_spite_of_errors(x: Any, out: Any) -> None:
    try:
        relu_of_numpy(x, out)
    except Exception:
        np.maximum(x, 0, out=out)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("relu", [relu_of_numpy, relu_in_another_thread, relu_in_spite_of_errors])
def test_calls_of_another_backend_are_detected(relu: Callable[..., None]) -> None:
    error = complaint(SimpleNamespace(relu=relu), "relu", "the_backend_does_the_work")
    assert "the work was done by numpy.relu, not by 'mutant'" in str(error)


def test_functions_of_another_backend_are_rejected_as_own() -> None:
    module = ModuleType("borrower")
    exec("from plugrad.backends.numpy import *", module.__dict__)
    error = complaint(module, "softmax", "the_backend_does_the_work")
    assert "softmax is the function numpy.softmax itself" in str(error)
    CHECKS["the_backend_does_the_work"](Subject("numpy"), RECORDS["softmax"], FLOAT32)


def test_backends_may_share_functions_below_the_kernels() -> None:
    def affine(x: Any, w: Any, b: Any, out: Any) -> None:
        forward(x, w, b, out)

    backends.register("mine", SimpleNamespace(affine=affine))
    CHECKS["the_backend_does_the_work"](Subject("mine"), RECORDS["affine"], FLOAT32)


# Modes and tolerances


@pytest.mark.parametrize("wrong_mode", [False, True])
def test_a_backend_that_computes_in_one_mode_only_is_caught(wrong_mode: bool) -> None:
    module = sound_module()
    softmax = module.softmax

    def broken(x: Any, axis: int, out: Any) -> None:
        softmax(x, axis, out)
        if selection.options().get("check", False) is wrong_mode:
            out[...] = 0

    module.softmax = broken
    complaint(module, "softmax", "the_same_bits_each_time" if wrong_mode else "shapes")


def test_the_tolerance_is_not_applied_twice() -> None:
    case = Case(RECORDS["relu"], {"x": np.array([1.0, 2.0], np.float32)})
    subject = Subject("numpy")
    relative, absolute = subject.tolerance(case.kernel, "y", FLOAT32)
    (exact,) = case.expected()
    for share, raises in ((0.9, False), (1.5, True)):
        shifted = (exact - share * 2 * relative,)
        got = (case.inputs["x"],)
        if raises:
            with pytest.raises(AssertionError):
                subject.compare(case, got, shifted)
        else:
            subject.compare(case, got, shifted)
            close("y", got[0].astype(np.float64), shifted[0], relative, absolute)


# Code that repeats a failure


def code_of(error: AssertionError) -> str:
    (note,) = error.__notes__
    return note.partition("to repeat:\n")[2]


def run(code: str) -> tuple[str, str]:
    """The output of the code, and its results with their dtypes."""
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue(), repr(names["got"])


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("always_along_the_first_axis", "axis="),
        ("off_by_one_behind_a_whole_vector", "array("),
        ("last_block_forgotten", "cases.sample("),
        ("result_written_elsewhere", "out="),
        ("result_written_before_the_argument_is_read", "out="),
        ("strides_ignored", "cases."),
        ("strides_of_zero_taken_for_contiguous", "np.broadcast_to("),
        ("weight_applied_twice", "weight = array("),
        ("nan_leaks_to_the_next_row", "= nan"),
        ("zero_times_infinity", "inf"),
        ("integers_become_float32", "np.int16"),
    ],
)
def test_the_snippet_of_a_failure_repeats_it(name: str, holds: str) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == name)
    backends.register("mutant", mutant.module())
    backends.register("sound", sound_module())
    for dtype in CHECKS[mutant.caught_by].dtypes:
        try:
            CHECKS[mutant.caught_by](Subject("mutant"), RECORDS[mutant.kernel], dtype)
        except AssertionError as error:
            if not hasattr(error, "__notes__"):
                continue
            code = code_of(error)
            break
    else:
        pytest.fail("the check names no call")
    assert holds in code
    assert "..." not in code.replace("[...]", "")
    assert run(code) != run(code.replace("'mutant'", "'sound'")), code


def test_the_snippet_of_a_mistake_repeats_it() -> None:
    error = complaint(sound_module_that_takes(lambda x: x.real), "softmax", "mistakes")
    assert "1+0j" in code_of(error)
    with pytest.raises(TypeError, match="out: expected dtype float64"):  # and not that complex numbers are refused
        run(code_of(error))


def test_the_snippet_of_a_wrong_label_selects_the_checking_mode() -> None:
    (mutant,) = (m for m in MUTANTS if m.name == "negative_labels_wrapped")
    error = complaint(mutant.module(), mutant.kernel, mutant.caught_by)
    assert "check=True" in code_of(error)
    with pytest.raises(ValueError, match="got 6 at row 10"):  # and not -1 at row 7
        run(code_of(error))


def sound_module_that_takes(change: Callable[[Any], Any]) -> Any:
    module = sound_module()
    module.take = lambda what, x: change(np.asarray(x))
    return module


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("layout", [None, *cases.ANYWHERE, *cases.ON_HOST])
@pytest.mark.parametrize("shape", [(3, 5), (30, 7)])
def test_the_snippet_makes_the_same_call(dtype: Any, layout: Any, shape: tuple[int, int]) -> None:
    seen: list[Any] = []
    module = sound_module()
    softmax = module.softmax

    def spying(x: Any, axis: int, out: Any) -> None:
        seen.append((np.array(x), x.strides, out.strides, np.array(out)))
        softmax(x, axis, out)

    module.softmax = spying
    backends.register("spying", module)
    subject = Subject("spying")
    case = cases.sample(RECORDS["softmax"], *shape, np.dtype(dtype))
    case.inputs = {"x": case.inputs["x"].copy()}
    case.inputs["x"][2, 3] = np.nan
    x = subject.array(case.inputs["x"])
    out = np.full(shape, 7, dtype)[::-1]
    subject.call_on(case.kernel, [layout(subject, x) if layout else x], {"out": out, "axis": 1})
    case.options = {"axis": 1}
    run(snippet(subject, case))
    first, again = seen
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1:3] == again[1:3]
    assert first[3].tobytes() == again[3].tobytes()


def test_a_snippet_does_not_replace_an_array_that_it_cannot_show() -> None:
    x = np.random.default_rng(99).normal(size=(30, 30))
    code = snippet(Subject("numpy"), Case(RECORDS["relu"], {"x": x}))
    assert "# x, np.float64 of shape (30, 30), is too large to be shown" in code
    assert "test_a_snippet_does_not_replace_an_array" in code
    with pytest.raises(NameError):
        run(code)


# The command


def plug_in(folder: Path, name: str, text: str) -> None:
    """An installed distribution with a backend in it."""
    (folder / f"{name}_module.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[plugrad.backends]\n{name} = {name}_module\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    relu = "import numpy as np\ndef relu(x, out):\n    out[...] = np.where(x < 0, np.zeros_like(x), x)\n"
    everything = "from plugrad.kernels import KERNELS\nSTAND_INS = {name: %r for name in KERNELS if name != 'relu'}\n"
    plug_in(folder, "lost", everything % "nonexistent" + relu)
    plug_in(folder, "empty", (everything % "numpy").replace(" if name != 'relu'", ""))
    plug_in(
        folder, "small", "import warnings\nwarnings.warn('old', DeprecationWarning)\n" + everything % "numpy" + relu
    )
    plug_in(folder, "wrong", everything % "numpy" + "def relu(x, out):\n    out[...] = 1\n")
    return folder


def suite(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m plugrad.tests`` in a folder of its own."""
    folder = site.parent / "here"
    folder.mkdir(exist_ok=True)
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "plugrad.tests", *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert list(folder.iterdir()) == [], "something was left behind"
    return done


def test_stand_ins_that_cannot_compute_are_failures(site: Path) -> None:
    done = suite(site, "--backend", "lost", "--kernel", "softmax")
    assert done.returncode == 1
    assert "'nonexistent' is declared to stand in for softmax, and is no backend; known backends: " in done.stdout
    assert "None stands in" not in done.stdout
    assert "get: " not in done.stdout


def test_a_backend_without_a_kernel_of_its_own_fails(site: Path) -> None:
    done = suite(site, "--backend", "empty", "--kernel", "softmax")
    assert done.returncode == 1
    assert "backend 'empty' has not one kernel of its own" in done.stdout


def test_warnings_of_an_import_are_no_failures(site: Path) -> None:
    done = suite(site, "--backend", "small", "--kernel", "softmax")
    assert done.returncode == 0, done.stdout
    assert "'numpy' is declared to stand in for softmax" in done.stdout


@pytest.mark.slow
def test_the_report_of_a_failing_backend_is_short(site: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = suite(site, "--backend", "wrong", "--backend", "numpy", "--kernel", "relu", "--json", str(results))
    assert done.returncode == 1
    table, _, summary = done.stdout.rpartition("\nwrong failed:\n")
    assert "relu: shapes (float16, bfloat16, float32, float64): AssertionError: y" in summary
    (row, of_numpy) = (line.split() for line in table.splitlines() if line.startswith("relu "))
    assert row[-1] == "0/1"  # of the random calls
    assert of_numpy[-1] == "1/1"
    assert json.loads(results.read_text())["counts"]["failed"] > 10


def test_wrong_arguments_are_rejected_before_any_check_runs(site: Path) -> None:
    done = suite(site, "--backend", "bogus")
    assert done.returncode == 2
    assert "argument --backend: unknown backend 'bogus'; known backends: numpy, numba, cupy, " in done.stderr
    done = suite(site, "--backend", "numpy", "--json", str(site / "missing" / "results.json"))
    assert done.returncode == 2
    assert "argument --json: cannot write to" in done.stderr


def test_the_report_of_accuracy_names_the_reason_why_a_backend_cannot_run(site: Path) -> None:
    done = suite(site, "--accuracy", "--backend", "cupy")
    assert done.returncode == 1
    assert done.stdout.startswith("backend 'cupy' cannot run here: ")
    assert done.stderr == ""


@pytest.mark.parametrize("kernel", [kernel.name for kernel in accuracy.judged()])
def test_the_report_of_accuracy_has_every_kernel_with_a_budget(
    kernel: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "SPANS", (10.0,))
    monkeypatch.setattr(accuracy, "CLASSES", (3,))
    monkeypatch.setattr(accuracy, "DTYPES", (np.dtype(np.float32),))
    monkeypatch.setattr(accuracy, "ELEMENTS", 30)
    assert accuracy.report(["numpy"], [kernel]) == 0
    assert kernel in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_of_accuracy_marks_errors_above_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    (mutant,) = (m for m in MUTANTS if m.name == "sigmoid_by_the_hyperbolic_tangent")
    backends.register("mutant", mutant.module())
    assert accuracy.report(["numpy"], ["sigmoid"]) == 0
    assert "!" not in capsys.readouterr().out.partition("\n\n")[2]
    assert accuracy.report(["mutant"], ["sigmoid"]) == 1
    assert "!" in capsys.readouterr().out.partition("\n\n")[2]


# The first calls


def test_first_calls_of_every_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert first_calls.run("numpy", RECORDS, DTYPES) == 0
    printed = capsys.readouterr()
    assert printed.out.count(": passed, ") == len(RECORDS) * len(DTYPES)
    monkeypatch.setitem(backends.get("numpy").functions, "sigmoid", lambda x, y: y.fill(0.5))
    assert first_calls.run("numpy", ["relu", "sigmoid"], [FLOAT32]) == 1
    printed = capsys.readouterr()
    assert "relu float32 on numpy: passed" in printed.out
    assert "sigmoid float32 on numpy: failed" in printed.out
    assert "AssertionError: y" in printed.err
