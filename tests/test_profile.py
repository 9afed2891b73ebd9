"""The profile of `auto`: its contents, when it is used, and damaged profiles."""

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.backends import profile, registry, selection, threads
from plugrad.backends.backend import Unavailable
from plugrad.backends.choice import AUTO_ORDER
from plugrad.bench import curves
from plugrad.bench.__main__ import main
from plugrad.bench.curves import Curve
from plugrad.bench.tune import steps_of, steps_of_curves

SMALL_ON_NUMPY = {"relu": {"float32": [[0, "numpy"], [1000, "numba"]], "float64": [[0, "numpy"]]}}

Writer = Callable[..., Path]


@pytest.fixture
def write_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """A function that writes a profile, and makes plugrad read it."""

    def write(kernels: Any = SMALL_ON_NUMPY, **other: Any) -> Path:
        path = tmp_path / "profile.json"
        machine = {"processor": profile.processor(), "threads": threads.count()}
        path.write_text(json.dumps({"format": profile.FORMAT, "machine": machine, "kernels": kernels, **other}))
        monkeypatch.setenv(profile.VARIABLE, str(path))
        profile.read.cache_clear()
        return path

    monkeypatch.setenv("PLUGRAD_BACKEND", "auto")
    yield write
    profile.read.cache_clear()


def runs_on(kernel: Any, *arrays: Any) -> str | None:
    return backends.explain(kernel, *arrays).backend


def test_auto_selects_the_fastest_backend_for_the_size(write_profile: Writer) -> None:
    path = write_profile()
    small, large = np.ones((9, 100), np.float32), np.ones((10, 100), np.float32)
    assert runs_on(K.relu, small) == "numpy"
    assert runs_on(K.relu, large) == "numba"
    assert runs_on(K.relu, large.astype(np.float64)) == "numpy"
    for unmeasured in (large.astype(np.float16), [1.0]):
        assert runs_on(K.relu, unmeasured) == "numba"
    assert (
        "where the profile says nothing of float16"
        in backends.explain(K.relu, large.astype(np.float16)).reasons["numba"]
    )
    assert runs_on(K.softmax, small) == runs_on(K.relu) == "numba"
    explanation = backends.explain(K.relu, small)
    assert explanation.origin == f"PLUGRAD_BACKEND=auto, with the profile {path}"
    assert explanation.reasons["numpy"] == f"selected by {explanation.origin}, the fastest for 900 elements of float32"
    assert explanation.reasons["numba"] == "numpy is faster, by the profile"
    assert backends.explain(K.softmax, small).reasons["numpy"] == "numba comes first"


def test_calls_run_on_the_backend_that_explain_names(write_profile: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile()
    called = []
    for name in AUTO_ORDER["numpy"]:
        functions = backends.get(name).functions
        monkeypatch.setitem(functions, "relu", lambda x, y, name=name: called.append((name, x.size)))
    for size in (999, 1000, 999):
        K.relu(np.ones(size, np.float32))
    K.relu(np.ones(5, np.float16))
    assert called == [("numpy", 999), ("numba", 1000), ("numpy", 999), ("numba", 5)]


def test_results_of_each_are_right(write_profile: Writer) -> None:
    names = {name: {"float32": [[0, "numpy"], [50, "numba"]]} for name in ("softmax", "softmax_backward")}
    write_profile(names | {"softmax_cross_entropy_value_and_grad": {"float32": [[0, "numba"], [50, "numpy"]]}})
    for rows in (3, 30):
        x = np.random.default_rng(0).normal(size=(rows, 10)).astype(np.float32)
        t = np.arange(rows) % 10
        y = K.softmax(x)
        loss, dx = K.softmax_cross_entropy_value_and_grad(x, t)
        assert loss == pytest.approx(-np.log(y[np.arange(rows), t]).mean(), rel=1e-5)
        np.testing.assert_allclose(dx, (y - np.eye(10)[t]) / rows, atol=1e-6)


@pytest.mark.parametrize("choice", ["numpy", "numba", "numba,numpy"])
def test_a_named_backend_overrides_the_profile(write_profile: Writer, choice: str) -> None:
    write_profile()
    first = choice.partition(",")[0]
    with backends.use(choice):
        for size in (1, 10_000):
            assert runs_on(K.relu, np.ones(size, np.float32)) == first
        assert "profile" not in str(backends.explain(K.relu, np.ones(1, np.float32)))


def test_a_scope_of_auto_uses_the_profile(write_profile: Writer) -> None:
    write_profile()
    with backends.use("numba"), backends.use("auto"):
        assert runs_on(K.relu, np.ones(1, np.float32)) == "numpy"
        assert str(backends.current()) == "numba"


def test_profiles_of_other_machines_are_not_used(write_profile: Writer) -> None:
    for other in ({"processor": "Z80", "threads": threads.count()}, {"processor": profile.processor(), "threads": 99}):
        path = write_profile(machine=other)
        explanation = backends.explain(K.relu, np.ones(1, np.float32))
        assert explanation.backend == "numba"
        measured = f"{other['processor']} with {other['threads']} threads"
        assert explanation.origin.endswith(f"the profile {path} is not used: it was measured on {measured}")
        selection._default = None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 0}, "expected format 1, got 0"),
        ({"machine": {}}, "KeyError: 'processor'"),
        ({"kernels": []}, "AttributeError"),
        ({"kernels": {"relu": {"float32": [[0, "cupy"]]}}}, "expected backends out of numba, numpy, got 'cupy'"),
        ({"kernels": {"relu": {"float31": [[0, "numpy"]]}}}, "got 'float31'"),
        ({"kernels": {"relu": {"float32": [[5, "numpy"]]}}}, r"expected numbers of elements from 0 upwards, got \[5\]"),
        ({"kernels": {"relu": {"float32": [[0, "numpy"], [0, "numba"]]}}}, r"got \[0, 0\]"),
        ({"kernels": {"relu": {"float32": [[0.0, "numpy"]]}}}, "got \\[0.0\\]"),
        ({"kernels": {"relu": {"float32": [7]}}}, "TypeError"),
        ({"kernels": json.loads('{"a":' * 900 + "1" + "}" * 900)}, "'a'"),
    ],
)
def test_an_invalid_profile_is_reported_and_not_used(
    write_profile: Writer, changed: dict[str, Any], message: str
) -> None:
    path = write_profile(**changed)
    with pytest.warns(RuntimeWarning, match=message) as warned:
        assert runs_on(K.relu, np.ones(1, np.float32)) == "numba"
    assert len(warned) == 1
    assert f"the profile {path} is not used" in str(warned[0].message)
    assert "python -m plugrad.bench tune" in str(warned[0].message)
    assert K.relu(np.ones(1, np.float32)) == 1  # no second warning


def test_a_missing_file_or_one_that_is_not_json(write_profile: Writer) -> None:
    path = write_profile()
    path.write_bytes(b"\xff{")
    with pytest.warns(RuntimeWarning, match="is not used: UnicodeDecodeError"):
        assert runs_on(K.relu, np.ones(1, np.float32)) == "numba"
    path.unlink()
    profile.read.cache_clear()
    selection._default = None
    with pytest.warns(RuntimeWarning, match="is not used: FileNotFoundError"):
        assert runs_on(K.relu, np.ones(1, np.float32)) == "numba"


def test_unreadable_files_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_profile: Writer) -> None:
    (tmp_path / "plugrad").touch()  # not a folder
    long = tmp_path / ("x" * 300)
    for folder in (tmp_path, long):
        monkeypatch.delenv(profile.VARIABLE, raising=False)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
        profile.read.cache_clear()
        selection._default = None
        assert runs_on(K.relu, np.ones(1, np.float32)) == "numba"
        assert backends.explain(K.relu).origin == "PLUGRAD_BACKEND=auto"
    deep = write_profile()
    deep.write_text("[" * 100_000)
    with pytest.warns(RuntimeWarning, match="is not used: RecursionError"):
        profile.read(AUTO_ORDER["numpy"])
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        monkeypatch.setenv(profile.VARIABLE, str(endless))
        profile.read.cache_clear()
        with pytest.warns(RuntimeWarning, match=f"{endless} is not used: .*it is not a regular file"):
            profile.read(AUTO_ORDER["numpy"])


def test_without_a_profile_nothing_more_is_asked(write_profile: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = selection.chosen()
    K.relu(np.ones(3, np.float32))
    assert choice.by_type[np.ndarray] is backends.get("numba")
    write_profile({"relu": {"float32": [[0, "numba"]]}})  # the same as without a profile
    selection._default = None
    K.relu(np.ones(3, np.float32))
    assert np.ndarray in selection.chosen().by_type


def test_backends_are_looked_for_once(write_profile: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_profile({"relu": {"float32": [[0, "numba"], [10, "numpy"]]}})
    asked = []
    usable = registry.usable

    def without_numba(name: str) -> Any:
        asked.append(name)
        return Unavailable("gone") if name == "numba" else usable(name)

    monkeypatch.setattr(registry, "usable", without_numba)
    assert runs_on(K.relu, np.ones(3, np.float32)) == "numpy"
    asked.clear()
    for size in (3, 30):
        assert K.relu(np.ones(size, np.float32)).size == size
        assert K.softmax(np.ones((size, 2))).size == 2 * size
    assert asked == []
    assert str(path) in selection.chosen().description


def test_a_scope_keeps_what_it_has_found(write_profile: Writer) -> None:
    write_profile()
    with backends.use("auto"):
        first = K.relu(np.ones(3000, np.float32))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(registry, "_loaded", {**registry._loaded})
            patched.setattr(registry, "usable", lambda name: pytest.fail("asked again"))
            np.testing.assert_array_equal(K.relu(np.ones(3000, np.float32)), first)
            K.softmax(np.ones((3, 4), np.float32))


def test_explain_and_the_kernel_use_the_size_of_the_same_array(write_profile: Writer) -> None:
    write_profile({"softmax_cross_entropy_backward": {"float32": [[0, "numpy"], [100, "numba"]]}})
    y, t = np.full((40, 10), 0.1, np.float32), np.zeros(40, int)
    assert runs_on(K.softmax_cross_entropy_backward, np.ones(40, np.float32), y, t) == "numba"
    assert runs_on(K.softmax_cross_entropy_backward, 1.0, y[:5], t[:5]) == "numpy"


def test_the_path_of_the_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(profile.VARIABLE, "off")
    assert profile.location() is None
    monkeypatch.delenv(profile.VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert profile.location() == tmp_path / "plugrad" / "profile.json"
    monkeypatch.setenv("XDG_CONFIG_HOME", "not/absolute")  # to be ignored, by the XDG Base Directory Specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile.location() == tmp_path / ".config" / "plugrad" / "profile.json"
    profile.read.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert profile.read(AUTO_ORDER["numpy"]) == (None, "")
    profile.read.cache_clear()
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert profile.location() is None


def test_steps_lose_the_least() -> None:
    def seconds(a: float, b: float) -> dict[str, float]:
        return {"a": a, "b": b}

    assert steps_of([(10, seconds(1, 2)), (1000, seconds(9, 5))]) == [(0, "a"), (100, "b")]
    assert steps_of([(10, seconds(2, 1)), (1000, seconds(5, 9))]) == [(0, "b"), (100, "a")]
    assert steps_of([(10, seconds(1, 2)), (1000, seconds(1, 5))]) == [(0, "a")]
    assert steps_of([(10, seconds(2, 1)), (1000, seconds(5, 1))]) == [(0, "b")]
    # A wrong measurement moves nothing, and equal sizes with other shapes may differ.
    wrong = [
        (10, seconds(1, 2)),
        (40, seconds(1.1, 1)),
        (90, seconds(1, 2)),
        (90, seconds(1, 3)),
        (1000, seconds(9, 5)),
    ]
    assert steps_of(wrong) == [(0, "a"), (300, "b")]


def test_where_curves_cross_and_how_they_grow() -> None:
    def curve(side: str, seconds: list[float], kernel: str = "relu", against: str = "rows") -> Curve:
        numbers = [10 * 10**i for i in range(len(seconds))]
        return Curve(kernel, "float32", side, against, [f"{n}x100" for n in numbers], numbers, seconds)

    slow_call, slow_work = curve("numba", [5, 6, 10, 60]), curve("numpy", [1, 4, 40, 400])
    ((at, name),) = curves.crossings(slow_work, slow_call)
    assert name == "numba"
    assert 100 < at < 1000
    assert curves.crossings(slow_call, slow_work) == [(pytest.approx(at), "numba")]
    assert curves.crossings(curve("a", [1, 1.01, 1]), curve("b", [1.01, 1, 1.01])) == []  # noise
    assert curve("a", [1e-6, 1e-5, 1e-4, 1e-3]).exponent == pytest.approx(1)
    for k in (0.5, 1, 2):
        for call in (0.0, 1e-7, 1e-6):  # the cost of a call itself does not matter
            seconds = [call + 1e-7 * n**k for n in (10, 100, 1000, 10_000)]
            assert curve("a", seconds).exponent == pytest.approx(k, abs=0.01)
    assert curve("a", [1e-6, 1.1e-6, 1.2e-6, 1.3e-6]).exponent is None
    assert curve("a", [4e-6, 2e-6], against="threads").exponent == pytest.approx(-np.log10(2))
    assert steps_of_curves([slow_call, slow_work]) == {"relu": {"float32": [(0, "numpy"), (31623, "numba")]}}
    text = "\n".join(curves.lines([slow_call, slow_work], ["numba", "numpy"]))
    assert f"numba overtakes at {at:,.0f} rows" in text


@pytest.mark.slow
def test_tuning_writes_the_profile_of_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    monkeypatch.setenv(profile.VARIABLE, str(path))
    monkeypatch.delenv("PLUGRAD_BACKEND", raising=False)
    here = {"processor": profile.processor(), "threads": threads.count()}
    before = {"softmax": {"float64": [[0, "numpy"]]}, "relu": {"float32": [[0, "numpy"]]}}
    path.write_text(json.dumps({"format": profile.FORMAT, "machine": here, "kernels": before}))
    options = ["--rounds", "1", "--seconds", "0.01", "--dtypes", "float32,float64"]
    done = subprocess.run(
        [sys.executable, "-m", "plugrad.bench", "tune", "relu", *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    tuned = json.loads(path.read_text())
    assert set(tuned["kernels"]) == {"relu", "softmax"}  # which was measured before
    assert tuned["kernels"]["softmax"] == {"float64": [[0, "numpy"]]}
    assert set(tuned["kernels"]["relu"]) == {"float32", "float64"}
    assert str(path) in done.stdout
    profile.read.cache_clear()
    found, about = profile.read(AUTO_ORDER["numpy"])
    assert found is not None
    assert about == f"with the profile {path}"
    steps = tuned["kernels"]["relu"]["float32"]
    assert runs_on(K.relu, np.ones(1, np.float32)) == steps[0][1]
    code = "from plugrad import backends; import numpy as np; print(backends.explain('relu', np.ones(1, 'f4')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"with the profile {path}" in done.stdout
    profile.read.cache_clear()


def test_a_file_that_is_not_a_profile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"mine": 1}')
    monkeypatch.setenv(profile.VARIABLE, str(other))
    with pytest.raises(SystemExit):
        main(["tune"])
    assert "exists, and is no profile" in capsys.readouterr().err
    assert other.read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["affine"], "here.json", "kernel: expected one of .*softmax, .*; got 'affine'"),
        (["--dtypes", "bfloat16"], "here.json", "--dtypes: expected one of float16, .*; got 'bfloat16'"),
        ([], "off", "expected PLUGRAD_PROFILE to name a file"),
        (["relu", "--peers=torch", "--sizes=8x5"], "here.json", "unrecognized arguments: --peers=torch --sizes=8x5"),
    ],
)
def test_kernels_that_cannot_be_tuned_are_rejected(
    arguments: list[str], variable: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv(profile.VARIABLE, variable)
    with pytest.raises(SystemExit):
        main(["tune", *arguments])
    assert re.search(message, capsys.readouterr().err)
