"""The benchmarks: every side computes the same, and the command says what it measured."""

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from plugrad import backends
from plugrad.bench.__main__ import PEERS, TOLERANCE
from plugrad.bench.cases import DTYPES, STEP, Case, as_dtype
from plugrad.bench.measure import as_tuple, disagreement
from plugrad.bench.sides import copy, ours
from plugrad.kernels import KERNELS

peers = pytest.mark.parametrize(
    "peer",
    [
        pytest.param(
            peer, marks=pytest.mark.skipif(find_spec(peer) is None and peer != "textbook", reason="not installed")
        )
        for peer in PEERS
    ],
)
# Confident rows and large arguments, where the peers' losses are infinite and their sigmoid 0, are compared elsewhere.
FINITE = 1e30


def results(side: Any, case: Case) -> list[Any]:
    with backends.use("numpy"), np.errstate(all="ignore"):
        found = side.prepare(case)()
    return [np.asarray(array, np.float64) for array in (found if isinstance(found, list) else as_tuple(found))]


@peers
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_all_sides_agree(peer: str, name: str, new: bool) -> None:
    side = import_module(f"plugrad.bench.sides.{peer}")
    sizes = ["20x30", "20x5x7"] if name.startswith("affine") else ["20x30"]
    sizes += ["3x5x4x2"] if peer != "textbook" and "axis" in KERNELS[name].options else []
    for size in sizes:
        case = Case(name, size, new=new)
        for a, b in zip(results(ours, case), results(side, case), strict=True):
            finite = np.abs(b) < FINITE
            assert finite.any() or name.endswith(("cross_entropy", "value_and_grad"))
            np.testing.assert_allclose(a[finite], b[finite], rtol=3e-5, atol=1e-5)


@peers
@pytest.mark.parametrize("new", [False, True])
def test_all_training_steps_agree(peer: str, new: bool) -> None:
    case = Case(STEP, "8-6-5-3", new=new)
    parameters = []
    with backends.use("numpy"):
        for side in (ours, import_module(f"plugrad.bench.sides.{peer}")):
            step = side.prepare(case)
            for _ in range(3):
                last = step()
            parameters.append([np.asarray(parameter) for parameter in last])
    for a, b in zip(*parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_copying_moves_what_the_kernel_moves() -> None:
    assert Case("softmax", "512x64").bytes == 2 * 512 * 64 * 4
    assert Case("softmax_backward", "512x64", "float64").bytes == 3 * 512 * 64 * 8
    assert Case(STEP, "8-6-5-3").bytes is None
    for size in ("8x8", "4096x1024"):
        copy.prepare(Case("softmax", size))()
    with pytest.raises(ValueError, match="affine: not bound by memory"):
        copy.prepare(Case("affine", "8x8"))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sotfmax", "2x3", "kernel: expected one of softmax, .*; got 'sotfmax'"),
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
        assert disagreement(case) < TOLERANCE[dtype]
        prepare = ours.prepare
        wrong = [np.nan if name == "relu" else 1.02]

        def off(case: Case) -> Any:
            results = [np.asarray(array) for array in as_tuple(prepare(case)())]
            results[-1] = results[-1] * np.asarray(wrong[0] if len(wrong) else 1, results[-1].dtype)
            wrong.clear()  # the second call is for comparison
            return lambda: tuple(results)

        monkeypatch.setattr(ours, "prepare", off)
        if dtype in ("float32", "float64"):
            assert not disagreement(case) < TOLERANCE[dtype]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments, "--seconds", "0.01"], capture_output=True, text=True, check=False
    )


def test_one_side_by_itself() -> None:
    done = command("plugrad.bench.measure", "ours", "relu", "8x5")
    told = json.loads(done.stdout)
    assert 0 < told["quantiles"][0] <= told["quantiles"][1] <= told["quantiles"][2] < 1
    assert told["first"] > 0


def test_a_table_of_all_sides() -> None:
    arguments = ("relu", "step", "--backend", "numpy", "--peers", "textbook,no_such_peer", "--rounds", "1")
    assert (
        "--peers: expected some of textbook, torch, jax; got 'no_such_peer'"
        in command("plugrad.bench", *arguments).stderr
    )
    for wrong, message in (
        (("relu", "--sizes", "7"), "size: expected rows x classes"),
        (("relu", "--dtypes", "float31"), "dtype: expected one of float16, bfloat16, float32, float64; got 'float31'"),
        (("relu", "--rounds", "0"), "--rounds and --seconds: expected more than 0"),
        (("relu", "--backend", "nubma"), "unknown backend 'nubma'; did you mean 'numba'?"),
    ):
        done = command("plugrad.bench", *wrong)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    done = command(
        "plugrad.bench", "relu", "--sizes", "8x5,9x6", "--backend", "numpy", "--peers", "textbook", "--rounds", "1"
    )
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()[2:]
    assert heading.split() == ["kernel", "size", "dtype", "numpy", "us", "x", "textbook", "GB/s", "of", "copy"]
    assert [row.split()[:3] for row in rows] == [["relu", "8x5", "float32"], ["relu", "9x6", "float32"]]
    assert "numpy" in done.stdout.splitlines()[0]


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


def test_a_peer_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from plugrad.bench import __main__ as bench

    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "bench",
            "relu",
            "--sizes",
            "8x5",
            "--backend",
            "numpy",
            "--peers",
            "torch",
            "--rounds",
            "1",
            "--seconds",
            "0.01",
        ],
    )
    bench.main()
    assert "torch is not installed, and left out" in capsys.readouterr().out
