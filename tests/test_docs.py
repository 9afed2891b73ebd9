"""The documents run: every snippet, every docstring, and the table of kernels."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

import plugrad
from plugrad import backends, distributed, kernels
from plugrad.backends import contract
from plugrad.kernels import KERNELS, gradcheck, jacobians, layers, optim
from plugrad.kernels.__main__ import table
from plugrad.tests.ranks import Rank, Ranks

ROOT = Path(__file__).parent.parent
# The pages of the site but those that it makes of other files; test_site.py builds it.
PAGES = [
    str(path.relative_to(ROOT))
    for glob in ("*.md", "explanation/*.md", "how-to/*.md", "reference/*.md", "tutorials/*.md")
    for path in sorted((ROOT / "docs").glob(glob))
]
WITH_LIBRARIES = ["docs/arrays.md"]  # their snippets need PyTorch or JAX
ELSEWHERE = {"docs/pytorch.md", "docs/larger-than-memory.md"}  # their own tests run them
# They name files and functions.
MAPS = ["CONTRIBUTING.md", "docs/adding-a-kernel.md", "docs/architecture.md", "docs/glossary.md"]
RECORDS = ("Entry", "Gradient", "Report")  # of gradcheck
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: str, *languages: str) -> list[str]:
    """The fenced blocks of a document in these languages."""
    found = FENCE.findall((ROOT / document).read_text())
    return [text for language, text in found if language in languages]


DOCUMENTS = [
    "README.md",
    *(page for page in PAGES if page not in {*ELSEWHERE, *WITH_LIBRARIES} and blocks(page, "python")),
]

public = {f"kernels.{name}": kernel.function for name, kernel in KERNELS.items()}
public["Workspace"] = kernels.Workspace
for module in (distributed, gradcheck, jacobians, layers, optim):
    name = module.__name__.rpartition(".")[2]
    public |= {f"{name}.{item}": getattr(module, item) for item in module.__all__ if callable(getattr(module, item))}
# Self-explanatory, or not constructed by users.
for item in (
    "distributed.Communicator",
    "layers.Layer",
    "layers.Loss",
    "optim.Optimizer",
    "optim.Schedule",
    *(f"gradcheck.{n}" for n in RECORDS),
):
    public.pop(item, None)
public |= {f"backends.{name}": getattr(backends, name) for name in backends.__all__ if name.islower()}


@pytest.fixture
def known() -> dict[str, Any]:
    """The names that the snippets of the documents expect to be imported."""
    return {"np": np, "K": kernels, "backends": backends}


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples of several processes run on one, without MPI."""
    monkeypatch.setattr(distributed, "mpi", lambda *_, **__: Rank(Ranks(1), 0))


@pytest.mark.parametrize("name", public)
def test_docstrings(name: str, known: dict[str, Any]) -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(public[name], name, globs={})
    assert test.examples, f"{name} has no example"
    with backends.use("numpy"):
        assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("name", public)
def test_docstrings_tell_arguments_results_and_errors(name: str) -> None:
    text = public[name].__doc__ or ""
    if not name.startswith("backends.") and isinstance(public[name], FunctionType):
        assert re.search(r"^ *Parameters\n *-+$", text, re.MULTILINE), name
        assert re.search(r"^ *Returns\n *-+$", text, re.MULTILINE), name
        assert re.search(r"^ *Raises\n *-+$", text, re.MULTILINE), name


@pytest.mark.parametrize("backend", ["numpy", pytest.param("auto", marks=pytest.mark.slow)])  # auto: numba compiles
@pytest.mark.parametrize(
    "document",
    [
        *DOCUMENTS,
        *(
            pytest.param(d, marks=[pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.needs("jax")])
            for d in WITH_LIBRARIES
        ),
    ],
)
def test_python_snippets(document: str, backend: str, known: dict[str, Any]) -> None:
    snippets = blocks(document, "python")
    assert snippets
    backends.set_default(backend)
    for snippet in snippets:
        if snippet.startswith(">>>"):
            test = doctest.DocTestParser().get_doctest(snippet, known, document, document, 0)
            assert doctest.DocTestRunner(verbose=False).run(test, clear_globs=False).failed == 0
            known.update(test.globs)
        else:
            exec(compile(snippet, document, "exec"), known)


def sequences() -> list[Any]:
    """The commands of a block, one after another: some read what another one has written.

    They are those of the environment of the README. Without the two that build it, which .ci/run takes from there.
    """
    found = []
    for document in ("README.md", *PAGES):
        for text in blocks(document, "sh"):
            if ".venv/bin/python" not in text:
                continue
            lines = [line for line in text.splitlines() if not line.startswith("python3 -m venv")]
            marks = [pytest.mark.needs("g++")] if "PLUGRAD_BACKEND=cupy" in text else []
            marks += [pytest.mark.needs("mpiexec")] if "mpiexec" in text else []
            if lines:
                found.append(pytest.param(lines, id=lines[0].removeprefix(".venv/bin/python "), marks=marks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("lines", sequences())
def test_commands(lines: list[str], tmp_path: Path) -> None:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    on_cpu = {"PYTHONPATH": str(ROOT / "tests" / "cuda_on_cpu" / "stand_in"), "CUPY_CACHE_DIR": str(tmp_path)}
    for line in lines:
        command = line.replace(".venv/bin/python", shlex.quote(sys.executable))
        environment = variables | on_cpu if "PLUGRAD_BACKEND=cupy" in line else variables  # there may be no GPU
        done = subprocess.run(
            command, shell=True, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_ci_runs_the_commands_that_build_an_environment() -> None:
    lines = [line for text in blocks("README.md", "sh") for line in text.splitlines() if "venv &&" in line]
    assert len(lines) == 2
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_table_of_kernels_is_that_of_the_records() -> None:
    text = (ROOT / "docs/reference/calling-kernels.md").read_text()
    shown = re.search(r"<!-- kernels: .*? -->\n(.*?)\n<!-- /kernels -->", text, re.DOTALL)
    assert shown
    assert shown[1] == table(), "paste what `python -m plugrad.kernels` prints into docs/reference/calling-kernels.md"
    printed = subprocess.run([sys.executable, "-m", "plugrad.kernels"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == table()


def test_the_tables_of_the_guide_are_those_of_the_contract() -> None:
    text = (ROOT / "docs/adding-a-backend.md").read_text()
    for name, expected in (("forms", contract.forms_table()), ("hooks", contract.hooks_table())):
        shown = re.search(rf"<!-- {name}: .*? -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
        assert shown
        assert shown[1] == expected, f"paste the table of {name} that `python -m plugrad.backends.contract` prints"
    command = [sys.executable, "-m", "plugrad.backends.contract"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"{contract.forms_table()}\n\n{contract.hooks_table()}"


def test_the_page_of_environment_variables_lists_those_that_are_read() -> None:
    page = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/how-to/environment-variables.md").read_text(), re.MULTILINE))
    folders = ("backends", "bench", "bridges", "distributed", "kernels")
    code = "\n".join(file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py"))
    prefix = "(?:PLUGRAD|NUMBA|CUPY|XDG)"
    read = set(re.findall(rf'"({prefix}_[A-Z_]+)"', code)) | set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', code))
    assert len(read) >= 4
    assert read <= page
    assert page <= set(re.findall(rf"\b{prefix}_[A-Z_]+", code))


def test_the_changelog_has_this_version() -> None:
    assert f"\n## {plugrad.__version__} " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("document", ["README.md", *PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
        assert (ROOT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("document", MAPS)
def test_files_and_functions_are_where_the_document_says(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"`((?:kernels|backends|tests|bench|docs|examples)/[\w./]*)`", text):
        assert path == "tests/test_x.py" or (ROOT / path).exists(), path
    for name, path in re.findall(r"`([\w.]+)`\s\(`([\w/]+\.py)`", text):
        last = name.rpartition(".")[2]
        assert re.search(rf"(def|class) {last}\b|^{last}\b.* = ", (ROOT / path).read_text(), re.MULTILINE), (name, path)
