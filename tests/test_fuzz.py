"""The fuzzer finds nothing in what there is, and what is planted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugrad import backends
from plugrad.tests.__main__ import main as command
from plugrad.tests.conformance import fuzz
from plugrad.tests.conformance.subject import Subject

SECONDS = 10


@pytest.mark.filterwarnings("default")
def test_nothing_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "record.json"
    status = command(["--fuzz", str(SECONDS), "--seed", "20261127", "--json", str(record)])
    told = json.loads(record.read_text())
    assert (status, told["findings"]) == (0, []), capsys.readouterr().out
    assert told["calls"] > 100 * SECONDS
    assert told["seed"] == 20261127


def test_a_call_is_repeated_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    subjects = [Subject("numpy")]
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Subject, "call_on", lambda self, kernel, arrays, options, check=False: made.append(arrays))
        for _ in range(2):
            fuzz.attempt(subjects, ["relu", "softmax"], 5, 17)
    assert repr(made[0]) == repr(made[1])
    assert command(["--fuzz", "0", "--seed", "5", "--call", "17", "--backend", "numpy"]) == 0
    for seconds in ("0", "-1", "nan", "inf"):  # in which nothing could be found, or which never end
        with pytest.raises(SystemExit):
            command(["--fuzz", seconds])
    assert "1 calls" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command(["--fuzz", "1", "--call", "17"])


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


@pytest.mark.parametrize("planted", [_nearly, _index_error, _greedy, _warns, _late])
def test_what_is_planted_is_found(planted: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.get("numpy").functions, "relu", planted)
    subjects = [Subject("numpy")]
    assert any(fuzz.attempt(subjects, ["relu"], 1, number) for number in range(300))


@pytest.mark.parametrize("kernel", ["softmax", "affine_backward", "linear_cross_entropy_value_and_grad"])
def test_what_is_spoiled_is_tried(kernel: str) -> None:
    """Refused calls and accepted ones both occur, else the fuzzer would try too little."""
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
