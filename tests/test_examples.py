"""The examples do what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def digits(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return example("digits.py", *arguments, cwd=cwd, **environment)


def epochs(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("epoch")]


def test_digits_learns(tmp_path: Path) -> None:
    done = digits("--plot", "curves.png", cwd=tmp_path, PLUGRAD_BACKEND="numpy")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("backend: numpy   train: 1437   test: 360\n")
    assert len(epochs(done)) == 20
    accuracy = re.search(r"test accuracy ([\d.]+)%$", epochs(done)[-1])
    assert accuracy
    assert float(accuracy[1]) >= 96
    assert re.search(r"^\d+ us per step$", done.stdout, re.MULTILINE)
    assert "epoch 1:" in done.stderr, "no progress was shown"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_digits_repeats_itself(tmp_path: Path) -> None:
    runs = [digits("--epochs", "3", "--seed", seed, cwd=tmp_path) for seed in ("7", "7", "8")]
    assert epochs(runs[0]) == epochs(runs[1]) != epochs(runs[2])


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("--backend", "nubma"), {}, "set_default('nubma'): unknown backend 'nubma'; did you mean 'numba'?"),
        ((), {"PLUGRAD_BACKEND": "nubma"}, "PLUGRAD_BACKEND=nubma: unknown backend 'nubma'; did you mean 'numba'?"),
        (("--epochs", "0"), {}, "--epochs: expected at least 1"),
        (("--plot", "no/such/folder.png"), {}, "--plot: expected FILE.png in a folder that exists"),
    ],
)
def test_digits_tells_what_is_wrong(
    arguments: tuple[str, ...], environment: dict[str, str], told: str, tmp_path: Path
) -> None:
    done = digits(*arguments, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]


def test_words_learns_and_saves_memory(tmp_path: Path) -> None:
    done = example("words.py", "--steps", "40", cwd=tmp_path, PLUGRAD_BACKEND="numpy")
    assert done.returncode == 0, done.stderr
    told = re.match(r"backend: numpy   words: ([\d,]+)   vocabulary: ([\d,]+)\n", done.stdout)
    assert told
    assert int(told[2].replace(",", "")) >= 10_000
    perplexities = [
        float(number) for number in re.findall(r"held-out perplexity +([\d.]+)$", done.stdout, re.MULTILINE)
    ]
    assert len(perplexities) == 11
    assert perplexities[0] > perplexities[1] > perplexities[5] > perplexities[10] > 1
    assert perplexities[10] < perplexities[0] / 10
    assert "steps to 4:" in done.stderr, "no progress was shown"
    fused, composed = (int(number) for number in re.findall(r": (\d+) MB$", done.stdout, re.MULTILINE))
    assert fused < 40 < 200 < composed


def test_words_tells_what_is_wrong(tmp_path: Path) -> None:
    for arguments, told in ((("--steps", "0"), "--steps: expected at least 1"), (("--backend", "nubma"), "'numba'?")):
        done = example("words.py", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert told in done.stderr.splitlines()[-1]
