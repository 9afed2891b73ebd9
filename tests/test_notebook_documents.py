"""The notebooks among the documents run, and print what is committed with them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from plugrad.tests.processes import PATIENCE

pytestmark = pytest.mark.slow

DOCUMENTS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
# The largest error in a report of gradcheck, if it is one of rounding: another one on each machine.
ROUNDING = re.compile(r"(?<=largest error )\d(\.\d+)?e-(0[789]|[1-9]\d)\b")


class ThisPython(AsyncKernelManager):
    """Starts the Python that runs the tests, whichever kernels are installed where."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings, histories and caches in a folder that goes away; no setting for plots or kernels from outside."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
            folder = home / variable.lower()
            folder.mkdir()
            patch.setenv(variable, str(folder))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        for variable in ("MPLBACKEND", "MATPLOTLIBRC", "PLUGRAD_BACKEND", "PLUGRAD_CHECK"):
            patch.delenv(variable, raising=False)
        # Matplotlib looks for fonts when it first starts, and says so on stderr if it takes long.
        subprocess.run([sys.executable, "-c", "import matplotlib.font_manager"], check=True, capture_output=True)
        yield


def read(path: Path) -> NotebookNode:
    document = nbformat.read(path, as_version=nbformat.NO_CONVERT)  # type: ignore[no-untyped-call]
    assert isinstance(document, NotebookNode)
    return document


def code(document: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in document.cells if cell.cell_type == "code"]


def shown(cell: NotebookNode) -> list[tuple[str, str]]:
    """What the outputs of a cell show, in order: kind and text, of images the first bytes, which tell their format.

    How many pieces a stream comes in is up to chance.
    """
    found: list[tuple[str, str]] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            before = found.pop()[1] if found and found[-1][0] == output.name else ""
            found.append((output.name, before + output.text))
        elif output.output_type == "error":
            found.append(("error", f"{output.ename}: {output.evalue}"))
        else:
            found += [
                (kind, text[:8] if kind.startswith("image/") else text) for kind, text in sorted(output.data.items())
            ]
    return found


def assert_same_text(actual: str, committed: str) -> None:
    """Numbers may differ by what another processor or NumPy rounds differently, and spaces with their digits."""
    actual, committed = (ROUNDING.sub("0", text) for text in (actual, committed))
    assert "".join(NUMBER.sub("#", actual).split()) == "".join(NUMBER.sub("#", committed).split()), (actual, committed)
    numbers, expected = ([float(number) for number in NUMBER.findall(text)] for text in (actual, committed))
    np.testing.assert_allclose(numbers, expected, rtol=1e-6, atol=1e-9, err_msg=f"{actual}\n{committed}")


def test_there_are_five() -> None:
    assert [path.name.split("-")[0] for path in DOCUMENTS] == list("12345")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom(path: Path) -> None:
    document = read(path)
    nbformat.validate(document)
    assert (document.nbformat, document.nbformat_minor) == (4, 5)
    assert document.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert not any(cell.metadata for cell in document.cells)
    cells = code(document)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {kind for cell in cells for kind, _ in shown(cell)}
    assert "stdout" in kinds
    assert not kinds & {"stderr", "error"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_it_prints_what_is_committed(path: Path, tmp_path: Path) -> None:
    committed = code(read(path))
    document = read(Path(shutil.copy(path, tmp_path)))
    for cell in code(document):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(
        document,
        timeout=PATIENCE,
        startup_timeout=PATIENCE,
        kernel_manager_class=ThisPython,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    for cell, before in zip(code(document), committed, strict=True):
        assert [kind for kind, _ in shown(cell)] == [kind for kind, _ in shown(before)], cell.source
        for (_, text), (_, expected) in zip(shown(cell), shown(before), strict=True):
            assert_same_text(text, expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("actual", "committed"),
    [
        ("loss 0.5", "loss 0.500001"),
        ("loss 0.5", "error 0.5"),
        ("[1. 2.]", "[1. 2. 3.]"),
        ("[1. 2.]", "[1. nan]"),
        ("1e-3", "1e-4"),
        ("largest error 1e-05", "largest error 2e-11"),
        ("", "1"),
    ],
)
def test_another_text_is_noticed(actual: str, committed: str) -> None:
    with pytest.raises(AssertionError):
        assert_same_text(actual, committed)


def test_the_same_numbers_with_other_spaces_are_the_same_text() -> None:
    assert_same_text("[ 0.1  -0.2 ]\nlargest error 2e-11", "[0.1000000001 -0.2]\nlargest error 3.1e-08")
