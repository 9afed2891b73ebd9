"""Several processes by MPI: one start of ``mpiexec`` for each number of ranks makes all checks of `mpi_checks.py`."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plugrad.tests import mpi_checks
from plugrad.tests.processes import PATIENCE, python

pytestmark = [pytest.mark.slow, pytest.mark.needs("mpiexec"), pytest.mark.xdist_group("mpi")]

# Messages stay on this machine: processes are forked, and messages go through memory.
LOCAL = {"UCX_TLS": "self,sm", "PLUGRAD_NUM_THREADS": "1"}
EXAMPLES = Path(__file__).parent.parent / "examples"


def mpiexec(ranks: int, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments on each of some ranks."""
    program = str(Path(sys.executable).parent / "mpiexec")
    program = program if shutil.which(program) else "mpiexec"
    command = [program, "-launcher", "fork", "-localhost", "localhost", "-n", str(ranks), sys.executable, *arguments]
    return subprocess.run(
        command,
        env={**os.environ, **LOCAL, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_checks_pass(ranks: int) -> None:
    done = mpiexec(ranks, "-m", "plugrad.tests.mpi_checks")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"^passed: (\w+)$", done.stdout, re.MULTILINE)
    assert passed == [check.__name__ for check in mpi_checks.CHECKS]


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback() -> None:
    done = mpiexec(3, "-m", "plugrad.tests.mpi_checks", "raises")
    assert done.returncode == 1
    assert "rank 2 of 3 failed, and the job ends:\nTraceback (most recent call last):" in done.stderr
    assert 'raise ArithmeticError("the last rank has had enough")' in done.stderr
    assert "ArithmeticError: the last rank has had enough" in done.stderr


def test_an_exit_of_one_rank_ends_the_job_with_its_status() -> None:
    done = mpiexec(3, "-m", "plugrad.tests.mpi_checks", "exits")
    assert done.returncode == 7
    assert "Traceback" not in done.stderr


def test_a_rank_with_fewer_calls_ends_the_job_with_an_error() -> None:
    done = mpiexec(3, "-m", "plugrad.tests.mpi_checks", "has_fewer_batches")
    assert done.returncode == 1
    message = "call: expected the same on all ranks, but rank 0 has sum_gradients and rank 2 has the end of guard"
    assert f"ValueError: sum_gradients: {message}" in done.stderr or f"the end of guard: {message}" in done.stderr


def test_a_rank_that_is_killed_ends_the_job_with_a_line_that_names_a_process() -> None:
    """Which one, of the killed rank and of those that mpiexec kills in turn, depends on the order in which they end."""
    done = mpiexec(3, "-m", "plugrad.tests.mpi_checks", "killed")
    assert done.returncode == signal.SIGKILL
    ranks = dict(re.findall(r"^rank (\d) of 3 is process (\d+) on ", done.stderr, re.MULTILINE))
    assert sorted(ranks) == ["0", "1", "2"], done.stderr
    ended = re.search(r"PID (\d+) RUNNING AT", done.stdout + done.stderr)
    assert ended, done.stdout + done.stderr
    assert ended[1] in ranks.values()


@pytest.mark.parametrize(
    ("name", "arguments", "number"),
    [
        ("digits.py", ("--epochs", "2"), r"^epoch .* loss ([\d.]+)"),
        ("words.py", ("--steps", "3"), r"perplexity +([\d.]+)"),
    ],
)
def test_examples_on_two_ranks_print_what_they_print_on_one(name: str, arguments: tuple[str, ...], number: str) -> None:
    runs = [mpiexec(ranks, str(EXAMPLES / name), *arguments, "--backend", "numpy", "--distributed") for ranks in (1, 2)]
    assert [done.returncode for done in runs] == [0, 0], runs[1].stderr
    one, two = (np.array(re.findall(number, done.stdout, re.MULTILINE), float) for done in runs)
    assert len(one) >= 2
    np.testing.assert_allclose(two, one, rtol=1e-3)  # float32 is summed in another order


def test_the_benchmark_counts_the_bytes_of_the_formula() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "plugrad.bench", "--distributed", "--seconds", "0.05", "--ranks", "1,3"],
        env={**os.environ, **LOCAL},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(r"^(rows|classes) +(\d+) .* ([\d,]+) +([\d,]+)$", done.stdout, re.MULTILINE)
    assert [row[:2] for row in table] == [("rows", "1"), ("rows", "3"), ("classes", "1"), ("classes", "3")]
    assert all(counted == formula for *_, counted, formula in table)


@pytest.mark.needs("g++")
def test_arrays_of_a_device_go_by_nccl_or_not_at_all(tmp_path: Path) -> None:
    """On the emulated device, with a stand-in for NCCL."""
    folder = Path(__file__).parent / "cuda_on_cpu"
    environment = {"PYTHONPATH": str(folder / "stand_in"), "CUPY_CACHE_DIR": str(tmp_path), "PLUGRAD_BACKEND": "cupy"}
    done = mpiexec(2, str(folder / "nccl_checks.py"), **environment)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^passed: (\w+)$", done.stdout, re.MULTILINE) == [
        "messages",
        "losses",
        "wrong_labels",
        "training",
    ]


def test_without_mpi4py_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no such package')")
    done = python("from plugrad import distributed; distributed.mpi()", tmp_path)
    assert "ImportError: mpi: mpi4py cannot be used (no such package)" in done.stderr
    assert "python -m pip install 'plugrad[mpi]'" in done.stderr
