"""The messages of the logger ``plugrad``, and the remark on a variable that changed after it was read."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plugrad import backends, kernels as K
from plugrad.kernels import _arguments


def lines(program: str, **variables: str) -> list[str]:
    """The lines about plugrad that a process prints, with all messages of the logger."""
    start = "import logging, os; logging.basicConfig(level=logging.DEBUG, stream=__import__('sys').stdout)\n"
    done = subprocess.run(
        [sys.executable, "-c", start + program],
        env={name: value for name, value in os.environ.items() if name != "PLUGRAD_BACKEND"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "plugrad" in line]


def test_a_choice_is_logged_once() -> None:
    program = "import numpy as np; from plugrad import kernels as K\nfor _ in range(3): K.relu(np.ones(3))"
    (line,) = lines(program, PLUGRAD_BACKEND="numpy")
    assert line == "DEBUG:plugrad:numpy computes on arrays of numpy.ndarray: PLUGRAD_BACKEND=numpy"


def test_a_choice_says_why_not_the_others() -> None:
    program = "import numpy as np; from plugrad import kernels as K; K.relu(np.ones(3))"
    found = lines(program, PLUGRAD_BACKEND="cupy,numpy", CUDA_VISIBLE_DEVICES="")
    assert found[0].startswith(
        "DEBUG:plugrad:numpy computes on arrays of numpy.ndarray: PLUGRAD_BACKEND=cupy,numpy; not"
    )
    assert "; not cupy: " in found[0]


@pytest.mark.slow
def test_what_is_compiled_is_logged(tmp_path: Path) -> None:
    program = "import numpy as np; from plugrad import kernels as K; K.relu(np.ones(3, 'f4'))"
    found = lines(program, PLUGRAD_BACKEND="numba", NUMBA_CACHE_DIR=str(tmp_path))
    assert "DEBUG:plugrad:numba compiles _relu for float32" in found


def test_a_misspelt_variable_is_named() -> None:
    program = "import numpy as np; from plugrad import kernels as K; K.relu(np.ones(3))"
    found = lines(program, PLUGRAD_BACKEND="numpy", PLUGRAD_BACKENDS="numba")
    assert found[0].startswith("WARNING:plugrad:the environment variable PLUGRAD_BACKENDS is not one of plugrad's: ")


def test_a_variable_that_changed_after_it_was_read_is_named() -> None:
    program = (
        "import numpy as np; from plugrad import backends, kernels as K; K.relu(np.ones(3))\n"
        "assert 'changed' not in str(backends.explain('relu'))\n"
        "os.environ['PLUGRAD_BACKEND'] = 'numba'\n"
        "print('plugrad', backends.explain('relu').origin); print('plugrad', backends.current(), flush=True)\n"
        "backends.set_default('numpy'); print('plugrad', backends.explain('relu').origin)"
    )
    _, origin, warning, current, _, default = lines(program, PLUGRAD_BACKEND="numpy")
    remark = (
        "PLUGRAD_BACKEND has changed to 'numba' since it was read, at the first call; call "
        "plugrad.backends.set_default('numba') to select that"
    )
    assert origin == f"plugrad PLUGRAD_BACKEND=numpy; {remark}"
    assert (warning, current) == (f"WARNING:plugrad:{remark}", "plugrad numpy")
    assert "changed" not in default


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_loss_over_one_class_is_0_and_told_once(shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    _arguments._warn_of_one_class.cache_clear()
    with caplog.at_level(logging.WARNING, "plugrad"), backends.use("numpy"):
        for _ in range(2):
            loss, dx = K.softmax_cross_entropy_value_and_grad(np.ones((*shape, 1)), np.zeros(shape, int))
            assert (loss, dx.any()) == (0, False)
            assert K.cross_entropy(np.ones((*shape, 1)), np.ones((*shape, 1))) == 0
    assert [record.message for record in caplog.records] == [
        "a loss over a single class is always 0; two classes by one output want sigmoid_cross_entropy"
    ]
