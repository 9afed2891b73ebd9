"""The benchmarks: all sides compute the same results, and the commands print and write them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends
from plugrad.bench import curves, dispatch, loops, machine, measurements, processes, sides
from plugrad.bench.__main__ import COMMANDS, main
from plugrad.bench.cases import ALL_NAMES, DTYPES, TIMED, Case, as_dtype
from plugrad.bench.errors import TOLERANCE, as_tuple, difference, error
from plugrad.bench.measurements import Measurement, Results, Row
from plugrad.bench.processes import MeasuredSide
from plugrad.bench.sides import BRIDGES, PEERS, Side, copy, ours, products, textbook
from plugrad.bench.sizes import NAMES, STEP, sizes_of
from plugrad.bench.table import Table
from plugrad.kernels import KERNELS
from plugrad.tests.processes import PATIENCE


def kernels_of_peers() -> list[Any]:
    """Return each installed peer with each of its kernels; the quick tests have the textbook's formulas only."""
    return [
        pytest.param(peer, name, id=f"{peer}-{name}", marks=[] if peer == "textbook" else [pytest.mark.slow])
        for peer in (*PEERS, *(side for found in BRIDGES.values() for side in found))
        if sides.is_installed(peer)
        for name in sides.load(peer).NAMES
    ]


# Confident rows and large arguments, where the peers' losses are infinite and their sigmoid 0, are compared elsewhere.
FINITE = 1e30


def results(side: Any, case: Case) -> list[Any]:
    with backends.use("numpy"), np.errstate(all="ignore"):
        found = side.prepare(case)()
    return [np.asarray(array, np.float64) for array in (found if isinstance(found, list) else as_tuple(found))]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize(("peer", "name"), kernels_of_peers())
def test_all_sides_agree(peer: str, name: str, new: bool) -> None:
    side = sides.load(peer)
    if name == STEP:
        compare_steps(side, new)
        return
    kernel = KERNELS[name.partition("+")[0]]
    sizes = ["20x30", "20x5x7"] if "w" in kernel.arguments else ["20x30"]
    sizes += ["3x5x4x2"] if peer != "textbook" and "axis" in kernel.options else []
    for size in sizes:
        case = Case(name, size, new=new)
        for result, a, b in zip(kernel.results, results(ours, case), results(side, case), strict=True):
            if result == "indices":  # equal logits come in any order elsewhere
                continue
            finite = np.abs(b) < FINITE
            if case.is_random:
                finite &= (a != 0) & (b != 0)
            assert finite.any() or kernel.function.__name__.endswith(("cross_entropy", "value_and_grad"))
            np.testing.assert_allclose(a[finite], b[finite], rtol=3e-5, atol=1e-5)


def compare_steps(side: Side, new: bool) -> None:
    case = Case(STEP, "8-6-5-3", new=new)
    parameters = []
    with backends.use("numpy"):
        for each in (ours, side):
            step = each.prepare(case)
            for _ in range(3):
                last = step()
            parameters.append([np.asarray(parameter) for parameter in last])
    for a, b in zip(*parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_captured_step_is_that_of_plain_calls() -> None:
    with backends.use("numpy"):
        steps = [ours.prepare(Case(STEP, "8-6-5-3", captured=captured)) for captured in (False, True)]
        for _ in range(3):
            plain, captured = ([parameter.copy() for parameter in step()] for step in steps)
            for a, b in zip(plain, captured, strict=True):
                np.testing.assert_array_equal(a, b)
    for case in ({"name": "relu", "size": "8x6"}, {"name": STEP, "size": "8-6-5-3", "new": True}):
        with pytest.raises(ValueError, match="--captured: expected 'step', without --new"):
            Case(**case, captured=True)


def test_the_textbook_has_every_kernel() -> None:
    assert set(textbook.NAMES) == set(NAMES)
    assert set(ours.NAMES) == set(ALL_NAMES)


@pytest.mark.parametrize("name", TIMED)
def test_options_of_records_change_the_call(name: str) -> None:
    case = Case(name, "20x30")
    assert case.chosen()
    assert case.options.keys() >= case.chosen().keys()
    with backends.use("numpy"):
        plain, found = (as_tuple(ours.prepare(Case(each, "20x30"))())[0] for each in (case.kernel, name))
    assert not np.array_equal(plain, found)


def test_options_are_measured_beside_the_plain_kernels(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = ["gelu", "--options", "--sizes", "8x5", "--backend", "numpy", "--rounds", "1", "--seconds", "0.01"]
    assert main([*command, "--json", str(kept)]) == 0
    results = Results.read(kept)
    assert [row.case.name for row in results.rows] == ["gelu", "gelu+tanh"]
    assert main(["gelu+tanh", *command[2:], "--compare", str(kept)]) == 0


def test_all_sides_in_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any) -> Any:
        raise AssertionError("a process was started")

    kept, command = tmp_path / "kept.json", ["relu", "affine", "--together", "--sizes", "8x5", "--seconds", "0.01"]
    monkeypatch.setattr(MeasuredSide, "_process", refused)
    assert main([*command, "--backend", "numpy", "--peers", "textbook", "--rounds", "2", "--json", str(kept)]) == 0
    for row, bound in zip(Results.read(kept).rows, ("copy", "products"), strict=True):
        assert row.sides.keys() == {"numpy", "textbook", bound}
        assert all(len(side.medians) == 2 for side in row.sides.values())
    for more in ("--memory", "--curves"):
        with pytest.raises(SystemExit):
            main([*command, more])
        assert "--together: expected no --memory and no curves" in capsys.readouterr().err


def test_products_are_of_the_rows_that_count() -> None:
    t = Case("linear_cross_entropy+skipped", "40x6x5").arguments()[3]
    (z,) = products.prepare(Case("linear_cross_entropy+skipped", "40x6x5"))()
    assert z.shape == ((t >= 0).sum(), 5)
    assert 0 < len(z) < 40


@pytest.mark.slow  # SciPy is a package of the slow tests
def test_a_kernel_that_a_peer_lacks_is_not_measured() -> None:
    measured = [side.name for side in processes.measured_sides("relu", ["numpy"], ["textbook", "scipy"])]
    assert measured == ["numpy", "textbook"]
    found = Results([], "", {}, ["numpy"], ["scipy"])
    row = Row(Case("relu", "8x5"), {"numpy": Measurement([1.0], [1.0, 1.0, 1.0])})
    table = Table(found, set())
    assert table.cells(row)[table.columns.index("x scipy")] == "-"


def test_names_with_options_fit_their_column() -> None:
    table = Table(Results([], "", {}, ["numpy"], []), set(), cases=[Case(name, "8x5") for name in TIMED])
    sides = {"numpy": Measurement([1e-3], [1e-3, 1e-3, 1e-3])}
    lines = [table.heading(), *(table.line(Row(Case(name, "8x5"), sides)) for name in ("relu", *TIMED))]
    assert len({len(line) for line in lines}) == 1


def test_copying_moves_what_the_kernel_moves() -> None:
    assert Case("softmax", "512x64").bytes == 2 * 512 * 64 * 4
    assert Case("softmax_backward", "512x64", "float64").bytes == 3 * 512 * 64 * 8
    assert Case(STEP, "8-6-5-3").bytes is None
    for size in ("8x8", "4096x1024"):
        copy.prepare(Case("softmax", size))()
    with pytest.raises(ValueError, match="affine: not bound by memory"):
        copy.prepare(Case("affine", "8x8"))


def test_no_command_has_the_name_of_a_kernel() -> None:
    assert not {*COMMANDS} & {*NAMES}


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sotfmax", "2x3", "kernel: expected one of .*softmax, .*; got 'sotfmax'"),
        ("softmax", "2", "size: expected rows x classes, such as 4096x1024, for softmax, got '2'"),
        ("softmax", "2x0", "size: expected rows x classes, .*, got '2x0'"),
        ("softmax", "2xthree", "size: expected rows x classes, .*, got '2xthree'"),
        ("step", "2-3", "size: expected rows-inputs-hidden-classes, such as 64-784-128-10, for step, got '2-3'"),
        ("affine", "2x3x4x5", "size: expected rows x inputs x outputs, .* for affine, got '2x3x4x5'"),
    ],
)
def test_a_case_that_cannot_be_is_refused(name: str, size: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(name, size)


def test_arguments_of_images_are_those_of_their_pixels() -> None:
    x, t = Case("softmax_cross_entropy", "2x5x3x4").arguments()
    assert x.shape == (2, 5, 3, 4)
    assert t.shape == (2, 3, 4)
    rows, labels = Case("softmax_cross_entropy", "24x5").arguments()
    np.testing.assert_array_equal(np.moveaxis(x, 1, -1).reshape(24, 5), rows)
    np.testing.assert_array_equal(t.reshape(-1), labels)
    assert Case("softmax", "2x3", "bfloat16").arguments()[0].dtype == as_dtype("bfloat16") == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*KERNELS, STEP])
def test_results_are_compared_before_they_are_timed(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(name, "8-6-5-3" if name == STEP else "20x30", dtype)
    with backends.use("numpy"):
        assert difference(case) < TOLERANCE[dtype]
        prepare = ours.prepare
        wrong = [np.nan if name == "relu" else 1.02]

        def off(case: Case) -> Any:
            results = [np.asarray(array) for array in as_tuple(prepare(case)())]
            last = max(place for place, result in enumerate(results) if result.dtype.kind != "i")  # not class indices
            results[last] = results[last] * np.asarray(wrong[0] if len(wrong) else 1, results[last].dtype)
            wrong.clear()  # the second call computes the expected results
            return lambda: tuple(results)

        monkeypatch.setattr(ours, "prepare", off)
        if dtype in ("float32", "float64"):
            assert not difference(case) < TOLERANCE[dtype]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    short = [] if {"--seconds", "show"} & {*arguments} else ["--seconds", "0.01"]
    return subprocess.run(
        [sys.executable, "-m", *arguments, *short],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_one_side_by_itself() -> None:
    done = command("plugrad.bench.measure", "ours", "relu", "8x5")
    found = json.loads(done.stdout)
    assert 0 < found["quantiles"][0] <= found["quantiles"][1] <= found["quantiles"][2]
    assert found["first"] > 0
    assert 0 < found["processors"] < 1.3  # too small to be shared among threads
    assert found["memory"] < 1e6  # relu writes in place
    done = command("plugrad.bench.measure", "scipy", "affine", "8x5")
    assert "scipy: expected one of softmax, log_softmax, sigmoid; got 'affine'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_table_of_all_sides() -> None:
    arguments = ("relu", "step", "--backend", "numpy", "--peers", "textbook,no_such_peer", "--rounds", "1")
    assert (
        "--peers: expected one of textbook, torch, torch_compile, jax, scipy; got 'no_such_peer'"
        in command("plugrad.bench", *arguments).stderr
    )
    for wrong, message in (
        (("relu", "--sizes", "7"), "size: expected rows x classes"),
        (
            ("relu", "--dtypes", "float31"),
            "--dtypes: expected one of float16, bfloat16, float32, float64; got 'float3",
        ),
        (("relu", "--rounds", "0"), "--rounds: expected at least 1, got 0"),
        (("relu", "--backend", "nubma"), "unknown backend 'nubma'; did you mean 'numba'?"),
        (("relu", "--fail-above", "10%"), "--fail-above: expected --compare FILE with it"),
        (("relu", "--fail-above", "much"), "argument --fail-above: invalid share value: 'much'"),
        (("relu", "--fail-above", "10"), "argument --fail-above: expected a share such as 10% or 0.1, got 10"),
        (("sotfmax",), "kernel: expected one of affine, "),
        (("tun", "relu"), "kernel: expected one of affine, "),
        (("relu", "--backend", "auto"), "--backend: "),
        (("relu", "--seconds", "0"), "--seconds: expected more than 0, got 0"),
        (("relu", "--json", "x", "--html", "./x"), "--json, --html, --markdown and --png: expected a path of its own"),
        (("relu", "--compare", "no_such_file.json"), "no_such_file.json"),
        (("relu", "--compare", "README.md"), "--compare: README.md was not written by --json"),
        (("relu", "--json", "no/such/folder.json"), "--json: there is no folder for no/such/folder.json"),
        (("relu", "--html", "no/such/folder.html"), "--html: there is no folder for no/such/folder.html"),
    ):
        done = command("plugrad.bench", *wrong)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    done = command(
        "plugrad.bench", "relu", "--sizes", "8x5,9x6", "--backend", "numpy", "--peers", "textbook", "--rounds", "1"
    )
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()[2:]
    assert heading.split() == [
        "kernel",
        "size",
        "dtype",
        "numpy",
        "us",
        "+-",
        "%",
        "x",
        "textbook",
        "GB/s",
        "Mrows/s",
        "of",
        "bound",
        "CPUs",
    ]
    assert [row.split()[:3] for row in rows] == [["relu", "8x5", "float32"], ["relu", "9x6", "float32"]]
    assert "numpy" in done.stdout.splitlines()[0]


SMALL = ("relu", "affine", "--sizes", "64x32", "--backend", "numpy", "--rounds", "2")


@pytest.mark.slow
def test_results_are_written_and_compared(tmp_path: Path) -> None:
    kept, slower, faster = (tmp_path / f"{name}.json" for name in ("kept", "slower", "faster"))
    done = command("plugrad.bench", *SMALL, "--peers", "textbook", "--json", str(kept))
    assert done.returncode == 0, done.stderr
    found = json.loads(kept.read_text())
    assert found["complete"]
    assert found["command"][:2] == ["relu", "affine"]
    assert found["machine"]["versions"]["numpy"] == np.__version__
    assert found["machine"]["threads"] >= 1
    assert abs(datetime.fromisoformat(found["date"]) - datetime.now(UTC)) < timedelta(hours=1)
    relu, affine = found["rows"]
    assert set(relu["sides"]) == {"numpy", "textbook", "copy"}
    assert set(affine["sides"]) == {"numpy", "textbook", "products"}
    assert (affine["products"], affine["bytes"], relu["products"], relu["bytes"]) == (1, None, 0, 2 * 64 * 32 * 4)
    for side in (*relu["sides"].values(), *affine["sides"].values()):
        assert len(side["medians"]) == 2
        assert 0 < side["quantiles"][0] <= side["quantiles"][1] == min(side["medians"]) <= side["quantiles"][2]
        assert side["first"] > 0
    for path, factor in ((slower, 1e-3), (faster, 1e3)):
        changed = json.loads(kept.read_text())
        for side in changed["rows"][0]["sides"].values():
            side["medians"] = [median * factor for median in side["medians"]]
        changed["rows"].pop()
        path.write_text(json.dumps(changed))
    done = command("plugrad.bench", *SMALL, "--compare", str(slower), "--fail-above", "10%")
    assert done.returncode == 1
    assert "1 of 2 take more than 10% longer than before" in done.stderr
    heading, relu_line, affine_line = done.stdout.splitlines()[2:]
    assert heading.endswith("x before")
    assert relu_line.endswith("*")
    assert affine_line.endswith("new")
    done = command("plugrad.bench", "sigmoid", *SMALL[2:], "--compare", str(faster), "--fail-above", "10%")
    assert done.returncode == 1
    assert f"--fail-above: nothing that was measured is in {faster}" in done.stderr
    for part, nothing in (("sides", {}), ("sides", {"numpy": {"medians": [], "quantiles": []}})):
        changed["rows"][0][part] = nothing
        slower.write_text(json.dumps(changed))
        done = command("plugrad.bench", "show", str(slower))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
    done = command("plugrad.bench", *SMALL, "--compare", str(faster), "--fail-above", "10%")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[3].endswith("0.00*")


def test_an_interrupt_keeps_the_results_so_far(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    sizes = ",".join(f"{rows}x5" for rows in range(8, 48))
    arguments = ["relu", "--sizes", sizes, "--backend", "numpy", "--rounds", "1", "--seconds", "0.01"]
    code = (  # the background jobs of a shell ignore interrupts
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('plugrad.bench', run_name='__main__', alter_sys=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--json", str(kept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("relu"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted: the results above are complete, the rest is missing\n")
    found = json.loads(kept.read_text())
    assert not found["complete"]
    assert 1 <= len(found["rows"]) < 40


@pytest.mark.slow
def test_written_results_are_shown_again(tmp_path: Path) -> None:
    kept, page, pictures, document = (tmp_path / name for name in ("kept.json", "page.html", "pictures", "document.md"))
    sizes = ("softmax", "--sizes", "8x5", "--backend", "numpy", "--peers", "textbook", "--quick")
    done = command("plugrad.bench", *sizes, "--json", str(kept), "--html", str(page))
    assert done.returncode == 0, done.stderr
    assert page.read_text().startswith("<!doctype html>")
    found = json.loads(kept.read_text())
    errors = {name: side["ulp"] for name, side in found["rows"][0]["sides"].items()}
    assert 0 < errors["numpy"] < 100
    assert errors["copy"] is None
    against = {(curve["side"], curve["against"]) for curve in found["curves"]}
    assert against == {(name, what) for name in ("numpy", "textbook") for what in ("rows", "classes", "threads")}
    for curve in found["curves"]:
        assert len(curve["numbers"]) == len(curve["sizes"]) == len(curve["seconds"])
        assert min(curve["seconds"]) > 0
        measured = {key: value for key, value in curve.items() if key != "exponent"}
        assert curve["exponent"] == curves.Curve(**measured).exponent
    again = [line for line in done.stdout.splitlines() if line.startswith(("softmax ", "      rows"))]
    shown = command("plugrad.bench", "show", str(kept), "--png", str(pictures), "--markdown", str(document))
    assert shown.returncode == 0, shown.stderr
    assert all(line in shown.stdout for line in again)
    assert {path.stem for path in pictures.iterdir()} >= {"overview", "roofline", "accuracy", "growth-rows-softmax"}
    text = document.read_text()
    assert "$ python -m plugrad.bench softmax --sizes 8x5" in text
    assert "| softmax | 8x5 | float32 |" in text
    assert "softmax float32, us against rows (8x100 to " in text
    for wrong in ("README.md", str(tmp_path / "none.json")):
        done = command("plugrad.bench", "show", wrong)
        assert done.returncode == 2
        assert wrong in done.stderr
        assert "Traceback" not in done.stderr
    done = command("plugrad.bench", *sizes, "--compare", str(kept))
    assert done.returncode == 0, done.stderr
    assert "new" not in done.stdout.splitlines()[3]


@pytest.mark.slow
def test_files_that_cannot_be_written_are_reported_before_and_after(tmp_path: Path) -> None:
    small = ("relu", "--sizes", "8x5", "--backend", "numpy", "--rounds", "1")
    (tmp_path / "file").touch()
    for option, target, message in (
        ("--json", tmp_path, "--json: expected a file, but"),
        ("--markdown", tmp_path, "--markdown: expected a file, but"),
        ("--png", tmp_path / "file", "--png: expected a folder, but"),
    ):
        done = command("plugrad.bench", *small, option, str(target))
        assert done.returncode == 2
        assert message in done.stderr
    other, old = tmp_path / "table.md", tmp_path / "old.json"
    done = command("plugrad.bench", *small, "--json", "/dev/full", "--markdown", str(other))
    assert done.returncode == 1
    assert "/dev/full could not be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "| relu | 8x5 |" in other.read_text()
    old.write_text("before")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            measurements.replace(old, "after")
    assert old.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_reader_of_the_table_may_leave(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    small = ["relu", "--sizes", "8x5,9x5,10x5", "--backend", "numpy", "--rounds", "1", "--seconds", "0.01"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "plugrad.bench", *small, "--json", str(kept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    with process.stderr:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.wait(PATIENCE) == 1
    assert "Traceback" not in errors
    assert not json.loads(kept.read_text())["complete"]


def test_errors_are_measured_in_units_in_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Off:
        """A side that rounds correctly, and then adds so many ulp, or NaN, to one element."""

        NAMES = NAMES
        to_numpy = staticmethod(np.asarray)

        def __init__(self, by: float, at: int) -> None:
            self.by, self.at = by, at

        def prepare(self, case: Case) -> Any:
            exact = [np.array(result, np.float64) for result in as_tuple(ours.computed_in_float64(case))]
            rounded = [np.atleast_1d(result.astype(np.float32)) for result in exact]
            flat = rounded[-1].reshape(-1)
            place = np.argsort(np.abs(flat))[self.at]
            flat[place] += self.by * np.spacing(np.abs(flat[place]))
            return lambda: tuple(rounded)

    with backends.use("numpy"):
        for name in ("softmax", "sigmoid", "softmax_backward"):
            case = Case(name, "20x30")
            assert error(case, Off(0, 0)) <= 0.5  # type: ignore[operator]
            assert error(case, Off(7, -1)) == pytest.approx(7, abs=0.5)
            assert error(case, Off(np.nan, -1)) == float("inf")
        small = error(Case("softmax", "20x30"), Off(7, 0)), error(Case("softmax_backward", "20x30"), Off(7, 0))
        assert small[0] == pytest.approx(7, abs=0.5)
        assert small[1] is not None
        assert small[1] <= 0.5  # relative to the largest element
        half = Case("softmax_cross_entropy", "20x30", "float16")  # whose loss is float32

        class OffInTheLoss:
            to_numpy = staticmethod(np.asarray)

            @staticmethod
            def prepare(case: Case) -> Any:
                loss, y = ours.computed_in_float64(case)
                off = np.float32(loss) + 5 * np.spacing(np.float32(loss))
                return lambda: (off, y)

        assert error(half, OffInTheLoss) == pytest.approx(5, abs=0.5)
        for case in (Case("softmax", "20x30", "float64"), Case(STEP, "8-6-5-3"), Case("softmax", "4097x4097")):
            assert error(case, Off(0, 0)) is None


def test_operations_and_bytes_of_the_roofline() -> None:
    assert Case("softmax", "20x30").operations == 5 * 20 * 30
    assert Case("affine_backward", "2x3x5").operations == 2 * (2 * 3 * 5) * 2
    assert Case(STEP, "2-3-5-7").operations == 2 * (2 * (2 * 3 * 5) + 3 * (2 * 5 * 7))
    x, w, b, y = 2 * 3, 3 * 5, 5, 2 * 5
    assert Case("affine", "2x3x5").least_bytes == 4 * (x + w + b + y)
    assert Case("affine_backward", "2x3x5", "float64").least_bytes == 8 * (y + x + w + x + w + b)
    assert Case("linear_cross_entropy", "2x3x5").least_bytes == 4 * (x + w + b)  # the logits are never held
    assert Case("linear_cross_entropy_value_and_grad", "2x3x5", "float16").least_bytes == 2 * 2 * (x + w + b)
    assert Case(STEP, "2-3-5-7").elements == 2 * (5 + 7)
    assert (Case("affine", "2x3x5").elements, Case("relu", "2x3").elements) == (10, 6)


@pytest.mark.slow
def test_threads_are_bound_for_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from plugrad.backends import threads; print(threads.count())"
    environment = {**os.environ, **dict.fromkeys(processes.BOUND_BY, "1")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    monkeypatch.setattr(processes, "UNBOUND", ("scipy",))
    job = processes.curves(Case("sigmoid", "8x5"), "threads", ["numpy"], ["textbook", "scipy"], 1, 0.01)
    numbers = [number for number, _ in curves.points("sigmoid", "threads")]
    assert numbers[0] == 1
    found = job.run(lambda: None)
    assert [curve.side for curve in found] == ["numpy", "textbook"]
    assert all(curve.numbers == numbers for curve in found)


@pytest.mark.slow
def test_quick_measures_less() -> None:
    done = command("plugrad.bench", "relu", "sigmoid", "--backend", "numpy", "--quick")
    assert done.returncode == 0, done.stderr
    assert [row.split()[:2] for row in done.stdout.splitlines()[3:]] == [
        [name, size] for name in ("relu", "sigmoid") for size in sizes_of(name).quick
    ]


def test_products_are_those_of_the_kernel() -> None:
    for name, count in (("affine", 1), ("affine_backward", 2), ("linear_cross_entropy_value_and_grad", 3)):
        for dtype in ("float16", "float64"):
            case = Case(name, "6x4x5", dtype)
            assert case.products == count
            results = products.prepare(case)()
            assert len(results) == count
            given = dict(zip(KERNELS[name].arguments, case.arguments(), strict=True))
            x, w = given["x"].astype(np.float64), given["w"].astype(np.float64)
            z = x @ w
            expected = {1: [z], 2: [z @ w.T, x.T @ z], 3: [z, z @ w.T, x.T @ z]}[count]
            for found, exact in zip(results, expected, strict=True):
                np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)
    shapes = [array.shape for array in products.prepare(Case(STEP, "8-6-5-3"))()]
    assert shapes == [(8, 5), (8, 3), (5, 3), (8, 5), (6, 5)]
    with pytest.raises(ValueError, match="relu: not bound by products"):
        products.prepare(Case("relu", "6x4"))


@pytest.mark.slow
def test_the_suite_for_pytest_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    chosen = "float32 and numpy and (32x10 or 32x16x10 or 32-16-32-10)"
    options = ["--benchmark-max-time=0.001", "--benchmark-min-rounds=1", f"--benchmark-json={path}", "-k", chosen]
    group = "--benchmark-group-by=param:kernel,param:dtype"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench", *options, group],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},  # not a worker
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())["benchmarks"]
    names = {benchmark["params"]["kernel"] for benchmark in found}
    assert names == {*KERNELS, STEP}
    assert {benchmark["params"]["results"] for benchmark in found} == {"out", "new"}
    assert all(benchmark["extra_info"]["first call with preparations, s"] > 0 for benchmark in found)


def test_the_table_of_the_parts_of_a_call() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plugrad.bench.dispatch", "relu", "affine", "--backend", "numpy", "--rounds", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    heading, *rows = (line.split() for line in done.stdout.splitlines())
    assert " ".join(heading) == "kernel backend call out= compute selection checks overhead by hand torch us"
    assert [row[:2] for row in rows] == [["relu", "numpy"], ["affine", "numpy"]]
    for row in rows:
        call, with_out, compute, selection, _, overhead, by_hand = map(float, row[2:-1])
        assert min(call, with_out, compute, selection, by_hand) > 0
        assert overhead == pytest.approx(with_out - compute, abs=0.011)


def test_layers_and_optimizers_are_among_the_small_calls() -> None:
    with backends.use("numpy"):
        for call, by_hand in dispatch.steps().values():
            call()
            by_hand()
        calls = dispatch.steps()
        for name, place in (
            ("layers.Affine.forward", ...),
            ("layers.Affine.backward", 0),
            ("layers.Relu.forward", ...),
        ):
            call, by_hand = calls[name]
            expected = by_hand() if place is ... else by_hand()[place]
            np.testing.assert_allclose(call(), expected, rtol=1e-4, atol=1e-6)
        call, by_hand = calls["layers.SoftmaxWithLoss"]
        np.testing.assert_allclose(call()[1], by_hand()[1], rtol=1e-5, atol=1e-7)


def test_loops_by_hand_and_ported() -> None:
    sizes = ("--sizes", "8-6-5-3,8-6-5-4-3", "--backend", "numpy", "--rounds", "1", "--seconds", "0.01")
    done = command("plugrad.bench", "loops", *sizes)
    assert done.returncode == 0, done.stderr
    _, _, heading, *rows = done.stdout.splitlines()
    assert heading.split()[-8:] == ["numpy", "plain", "numpy", "out=", "numpy", "layers", "numpy", "captured"]
    assert [row.split()[0] for row in rows] == ["8-6-5-3", "8-6-5-4-3"]
    assert all(float(cell) > 0 for row in rows for cell in row.split()[1:])


@pytest.mark.parametrize("style", loops.STYLES)
def test_ported_loops_have_the_losses_of_the_loop_by_hand(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "RATE", 0.5)
    expected = loops.Side("numpy", loops.by_hand("20-6-5-4-3")).losses()
    assert expected[-1] < 0.95 * expected[0]
    with backends.use("numpy"):
        side = loops.Side("numpy", loops.STYLES[style]("20-6-5-4-3"))
    np.testing.assert_allclose(side.losses(), expected, rtol=1e-5)


def test_a_wrong_size_of_a_loop_is_refused() -> None:
    done = command("plugrad.bench", "loops", "--sizes", "8-6")
    assert done.returncode == 2
    assert "expected rows-inputs-hidden-classes, such as 32-64-100-10, got '8-6'" in done.stderr


def test_the_parts_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the plain call, that with out=, its computation, the selection, the empty call, and by hand, in two rounds.
    seconds = iter([(9, 10, 4, 1, 5, 3), (11, 8, 5, 2, 6, 2)])
    parts: Iterator[float] = iter(())
    computed: list[bool] = []

    def timed(part: Callable[[], Any], number: int) -> float:
        nonlocal parts
        before = len(called)
        part()
        computed.append(len(called) > before)
        if (time := next(parts, None)) is None:
            parts = iter(next(seconds))
            time = next(parts)
        return time * number

    monkeypatch.setattr(dispatch.timeit, "timeit", timed)
    monkeypatch.setattr(sides, "is_installed", lambda peer: False)
    with backends.use("numpy"):
        functions = backends.current().functions
        function, called = functions["relu"], list[Any]()
        monkeypatch.setitem(functions, "relu", lambda *given: called.append(given) or function(*given))
        counting = functions["relu"]
        found = dispatch.measured("relu", rounds=2)
        assert functions["relu"] is counting
    assert found[:-1] == pytest.approx((9, 8, 4, 1, 5, 2))
    assert found.torch is None
    assert (found.overhead, found.checks) == pytest.approx((4, 4))
    assert computed == [True, True, True, False, False, False] * 2


@pytest.mark.slow
def test_memory_beside_arguments_and_results() -> None:
    name = "linear_cross_entropy_value_and_grad"
    sizes = ("--sizes", "3000x64x5000", "--backend", "numpy", "--peers", "textbook", "--rounds", "1", "--memory")
    done = command("plugrad.bench", name, *sizes)
    assert done.returncode == 0, done.stderr
    heading, row = done.stdout.splitlines()[2:]
    assert heading.split()[-4:] == ["numpy", "MB", "textbook", "MB"]
    ours, logits = float(row.split()[-2]), 3000 * 5000 * 4 / 1e6
    assert float(row.split()[-1]) > 2 * logits
    assert 0 < ours < 1.5 * 64 < 2 * logits


@pytest.mark.slow
@pytest.mark.needs("torch")
def test_bridges_stand_beside_their_peers(capsys: pytest.CaptureFixture[str]) -> None:
    small = "relu --sizes 8x5 --backend numpy --peers torch,textbook --bridges --rounds 1 --seconds 0.01"
    assert main(small.split()) == 0
    heading, row = capsys.readouterr().out.splitlines()[2:]
    assert re.search("x torch +x torch_chunked +x torch_bridge +x textbook", heading)
    assert re.search(r"% +[\d.]+ +- +[\d.]+ +[\d.]+ ", row)


def test_bridges_need_a_peer_that_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["relu", "--peers", "textbook", "--bridges"])
    assert "--bridges: expected --peers with one of torch" in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sides, "find_spec", lambda name: None)
    small = "relu --sizes 8x5 --backend numpy --peers torch --rounds 1 --seconds 0.01"
    assert main(small.split()) == 0
    assert "torch is not installed, and left out" in capsys.readouterr().out


def test_the_line_about_the_machine_has_what_slows_numpy_down(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    plain = machine.in_a_line(machine.describe(["numpy"], []))
    assert "OPENBLAS" not in plain
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    found = machine.describe(["numpy"], [])
    assert machine.in_a_line(found).endswith(", OPENBLAS_CORETYPE=Haswell")
    del found["variables"]  # as in results of earlier versions
    assert "OPENBLAS" not in machine.in_a_line(found)
