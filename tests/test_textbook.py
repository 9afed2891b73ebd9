"""The benchmark against the textbook formulas measures the same results on both sides."""

import json
import subprocess
import sys

import numpy as np
import pytest

from plugrad import backends
from plugrad.bench import textbook
from plugrad.kernels import KERNELS
from plugrad.tests.conformance.subject import as_tuple


@pytest.mark.parametrize("name", KERNELS)
def test_both_sides_agree(name: str) -> None:
    with backends.use("numpy"), np.errstate(all="ignore"):
        ours = as_tuple(textbook.kernel_step("ours", name, "20x30")())
        theirs = as_tuple(textbook.kernel_step("textbook", name, "20x30")())
    for a, b in zip(ours, theirs, strict=True):
        finite = np.isfinite(b)  # the textbook's loss is infinite where a probability is too small for float32
        assert finite.any() or name.startswith("softmax_cross_entropy")
        np.testing.assert_allclose(np.asarray(a)[finite], np.asarray(b)[finite], rtol=2e-5, atol=1e-5)


def test_both_training_steps_agree() -> None:
    with backends.use("numpy"):
        parameters = []
        for side in ("ours", "textbook"):
            step = textbook.training_step(side, "8-6-5-3")
            for _ in range(3):
                last = step()
            parameters.append(last)
    for a, b in zip(*parameters, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_command_measures_each_side_and_compares_them() -> None:
    command = [sys.executable, "-m", "plugrad.bench.textbook", "--seconds", "0.01", "relu", "8x5"]
    one_side = subprocess.run([*command, "--side", "ours"], capture_output=True, text=True, check=True)
    assert 0 < json.loads(one_side.stdout) < 1
    both = subprocess.run([*command, "--rounds", "1"], capture_output=True, text=True, check=True)
    assert both.stdout.splitlines()[1].split()[:2] == ["relu", "8x5"]
