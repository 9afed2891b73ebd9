"""A backend in a distribution of its own is installed, selected by the environment and held to the whole suite."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from plugrad.kernels import KERNELS

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("plugin_example")]

EXAMPLE = Path(__file__).parent / "plugin_example"
Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process that has the example installed, which this process has not."""
    source, site = tmp_path_factory.mktemp("source") / "example", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)  # a build leaves files beside what it builds
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": str(site), "PLUGRAD_BACKEND": "arrayapi"}


def python(arguments: list[str], environment: Mapping[str, str], folder: Path) -> Run:
    """Run Python from a folder that has nothing of the repository."""
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def test_it_is_selected_by_the_environment(installed: Mapping[str, str], tmp_path: Path) -> None:
    code = """
from plugrad import backends, kernels as K
print(backends.current(), backends.explain(K.softmax, [1.0]).backend, K.softmax([0.0, 0.0]), K.relu.__module__)
"""
    done = python(["-c", code], installed, tmp_path)
    assert done.stdout.startswith("arrayapi arrayapi [0.5 0.5] "), done.stderr
    listed = python(["-m", "plugrad.backends", "arrayapi"], installed, tmp_path)
    assert "array-api-compat" in listed.stdout, listed.stderr


def test_it_passes_the_suite(installed: Mapping[str, str], tmp_path: Path) -> None:
    """In two dtypes where a check is made in several: its functions are the same for all."""
    path = tmp_path / "results.json"
    dtypes = {**installed, "PYTEST_ADDOPTS": "--dtype=bfloat16 --dtype=float32"}
    done = python(["-m", "plugrad.tests", "--backend", "arrayapi", "--json", str(path)], dtypes, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    results = json.loads(path.read_text())
    assert set(results["backends"]) == {"arrayapi"}
    assert results["counts"]["failed"] == results["counts"]["skipped"] == 0
    assert {result["kernel"] for result in results["results"]} >= set(KERNELS)


def test_without_it_the_name_is_unknown(installed: Mapping[str, str], tmp_path: Path) -> None:
    without = {name: value for name, value in installed.items() if name != "PYTHONPATH"}
    done = python(["-c", "from plugrad import kernels as K; K.relu(1.0)"], without, tmp_path)
    assert done.returncode == 1
    assert "arrayapi" in done.stderr
    assert "known" in done.stderr
