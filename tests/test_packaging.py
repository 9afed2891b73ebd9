"""The distribution: what is in it, and that it works from anywhere once it is installed."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import plugrad
from plugrad.tests import processes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "backends", "bridges", "tests", "bench", "distributed")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and sdist, built as a release would be: the wheel from the sdist."""
    target = tmp_path_factory.mktemp("dist")
    copy = target / "repository"  # a build leaves files behind
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".checks", "build", "dist", "*.egg-info")
    )
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, copy]
    subprocess.run(command, check=True, capture_output=True)
    return {"sdist": next(target.glob("*.tar.gz")), "wheel": next(target.glob("*.whl"))}


def sources() -> set[str]:
    """The files that have to be installed."""
    return {"__init__.py", "py.typed"} | {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".ini", ".html", ".cu", ".cuh")
        and not {"plugin_example", "cuda_on_cpu"} & set(path.parts)
    }


def test_the_wheel_holds_every_file_and_no_top_level_package_but_plugrad(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"plugrad", f"plugrad-{plugrad.__version__}.dist-info"}
    assert {name for name in names if name.startswith("plugrad/")} == {f"plugrad/{name}" for name in sources()}


def test_the_sdist_holds_what_the_tests_need(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    needed = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "setup.cfg", ".ci/run"} | {
        "SECURITY.md"
    }
    assert sources() | needed | {"examples/digits.py", "bench/results/numpy.md"} <= names


def python(code: str, folder: Path, *options: str) -> str:
    """The output of a new process that runs in `folder`."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plugrad_imports_its_subpackages_at_their_first_use(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import plugrad
print(sorted(set(sys.modules) - before))
assert set(dir(plugrad)) >= {"__version__", "backends", "bench", "bridges", "distributed", "kernels", "tests"}
print("numpy" in sys.modules, plugrad.kernels.relu(1.0), plugrad.backends.current.__name__)
print(plugrad.bench.__name__, plugrad.bridges.__name__, plugrad.tests.__name__)
try:
    plugrad.nothing
except AttributeError as error:
    print(error)
"""
    assert python(code, tmp_path).splitlines() == [
        "['plugrad']",
        "False 1.0 current",
        "plugrad.bench plugrad.bridges plugrad.tests",
        "module 'plugrad' has no attribute 'nothing'",
    ]


def test_python_may_be_started_in_the_folder_above_a_clone(tmp_path: Path) -> None:
    clone = tmp_path / "plugrad"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    code = "import plugrad; from plugrad import kernels as K; print(plugrad.__version__, K.relu(1.0), K.__file__)"
    version, result, _ = python(code, tmp_path).split()
    assert (version, result) == (plugrad.__version__, "1.0")
    # Without the finders that packages add, such as that of an editable install: only the folder itself has plugrad.
    own_finders = "import sys; from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder; "
    alone = own_finders + "sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]; " + code
    assert python(alone, tmp_path).split()[2] == str(clone / "kernels" / "__init__.py")


def test_importing_the_kernels_adds_little_to_numpy(tmp_path: Path) -> None:
    code = "import sys, numpy; before = set(sys.modules); import plugrad.kernels; print(*(set(sys.modules) - before))"
    added = {name.partition(".")[0] for name in python(code, tmp_path).split()}
    slow = {"numba", "cupy", "ml_dtypes", "asyncio", "concurrent", "decimal", "fractions", "inspect"}
    slow |= {"importlib", "json", "logging", "platform", "signal", "subprocess", "tomllib", "unittest", "urllib"}
    assert not added & slow


def test_it_works_from_an_archive_and_keeps_what_it_compiles(distributions: dict[str, Path], tmp_path: Path) -> None:
    archive = tmp_path / "plugrad.zip"
    shutil.copy(distributions["wheel"], archive)
    code = """
        import warnings
        warnings.simplefilter("error")
        import plugrad
        from plugrad import backends, kernels as K
        print(plugrad.__file__)
        for name in ("numpy", "numba"):
            with backends.use(name):
                print(K.softmax([[0.0, 0.0]]))
        """
    first, second = (
        processes.python(code, archive, XDG_CACHE_HOME=str(tmp_path / "cache"), NUMBA_CACHE_DIR="") for _ in "12"
    )
    assert first.stdout == second.stdout == f"{archive}/plugrad/__init__.py\n[[0.5 0.5]]\n[[0.5 0.5]]\n", first.stderr
    assert "the code is kept for next time" in first.stderr
    assert second.stderr == ""


def test_what_ci_installs_is_pinned_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(one for name in ("dev", "slow", "test", "bench", "mpi") for one in _extra(project, name)),
    ]
    locked = {
        entry.partition("==")[0]: entry.count("--hash=sha256:")
        for entry in re.split(r"\n(?=\S)", (ROOT / ".ci" / "requirements.txt").read_text())
        if "==" in entry
    }
    assert len(locked) > 50
    assert all(locked.values())
    missing = {re.split(r"[^\w-]", one)[0] for one in wanted} - {*locked, "plugrad"}
    assert not missing, "write it anew with the command in its first lines"


def _extra(project: dict[str, Any], name: str) -> list[str]:
    found: list[str] = project["optional-dependencies"][name]
    return found


def test_it_works_installed_in_a_fresh_environment(distributions: dict[str, Path], tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", distributions["wheel"]], check=True, capture_output=True)
    code = (
        "import sys, plugrad.kernels as K, plugrad.backends, plugrad.bench, plugrad.bridges, plugrad.tests;"
        "assert 'site-packages' in K.__file__, K.__file__;"
        "print(K.softmax([[0.0, 0.0]]).tolist())"
    )
    done = subprocess.run(
        [python, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[[0.5, 0.5]]", done.stderr
    for module in FOLDERS:
        done = subprocess.run(
            [python, "-c", f"import {module}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert "ModuleNotFoundError" in done.stderr, f"{module} is installed at top level"
    listed = subprocess.run(
        [python, "-m", "plugrad.backends"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "numba is not installed; install it with: python -m pip install 'plugrad[numba]'" in listed.stdout
    assert "cupy is not installed; install it with: python -m pip install 'plugrad[cuda13]'" in listed.stdout
