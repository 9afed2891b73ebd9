"""The site of the documentation builds without a warning, its links lead somewhere, and every kernel has its page."""

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from plugrad.backends import contract
from plugrad.backends.registry import BUILTIN
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.processes import PATIENCE
from plugrad.tests.records import RECORDS, Mistake

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"^(https?:|mailto:|data:|javascript:)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, from a copy of the repository: the build writes pages into it."""
    copy = tmp_path_factory.mktemp("site") / "plugrad"
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build", "*.egg-info", "__pycache__", "_build")
    shutil.copytree(ROOT, copy, ignore=ignored)
    for folder in ("kernels", "project", "results"):  # of an earlier build
        shutil.rmtree(copy / "docs" / folder, ignore_errors=True)
    built = copy / "docs" / "_build" / "html"
    line = re.search(r"`python (-m sphinx [^`]*)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert line
    command = [sys.executable, *line[1].split()]
    done = subprocess.run(command, cwd=copy, check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


class Page(HTMLParser):
    """The anchors of a page, and what it links to or loads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.anchors: set[str] = {"", "top"}
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text: list[str] = []
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect from one tag."""
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        target = given.get("src") or (given.get("href") if tag in ("a", "link") else None)
        if target:
            (self.links if tag == "a" else self.loaded).append(target)

    def handle_data(self, data: str) -> None:
        """Collect the text."""
        self.text.append(data)


@cache
def read(file: Path) -> Page:
    return Page(file)


def html(site: Path) -> Iterator[tuple[Path, Page]]:
    for file in sorted(site.rglob("*.html")):
        if not file.is_relative_to(site / "_static"):  # templates of the theme
            yield file, read(file)


def test_every_link_and_anchor_leads_somewhere(site: Path) -> None:
    broken, count = [], 0
    for file, page in html(site):
        for link in page.links:
            if OUTSIDE.match(link):
                continue
            count += 1
            parts = urlsplit(link)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append(f"{file.relative_to(site)}: {link}: there is no such file")
            elif target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
                broken.append(f"{file.relative_to(site)}: {link}: the page has no such anchor")
    assert count > 1000
    assert not broken, "\n".join(broken)


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for file, page in html(site):
        for source in page.loaded:
            assert not re.match(r"(https?:)?//", source), f"{file.relative_to(site)}: {source}"
            path = urlsplit(source).path
            assert OUTSIDE.match(source) or (file.parent / unquote(path)).exists(), (
                f"{file.relative_to(site)}: {source}"
            )


def test_every_page_can_be_reached_from_the_first(site: Path) -> None:
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        file = waiting.pop()
        if file not in reached and file.suffix == ".html":
            reached.add(file)
            local = (link for link in read(file).links if not OUTSIDE.match(link) and urlsplit(link).path)
            waiting += [(file.parent / unquote(urlsplit(link).path)).resolve() for link in local]
    documents = {file for file, _ in html(site) if not file.is_relative_to(site / "_modules")}
    unreached = documents - reached - {site / "genindex.html", site / "search.html", site / "py-modindex.html"}
    assert not unreached


@pytest.fixture(scope="module")
def searched(site: Path) -> Iterator[Callable[[str], list[str]]]:
    """The function that searches the site in a browser without network, and returns the pages, the best first."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the pages are our own.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()

        def search(query: str) -> list[str]:
            page.goto(f"{(site / 'search.html').as_uri()}?q={quote(query)}")
            page.wait_for_function("Search.title?.innerText === 'Search Results'", timeout=60_000)  # it has ended
            hrefs = page.locator("#search-results ul.search > li > a").evaluate_all("all => all.map(a => a.href)")
            return [href.partition("/html/")[2].partition(".html")[0] for href in hrefs]

        yield search
        browser.close()


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("ignore padding rows", "how-to/ignore-padding-rows"),
        ("why was numba not chosen", "how-to/why-this-backend"),
        ("bound memory 50,000 classes", "how-to/many-classes"),
        ("use from PyTorch", "pytorch"),
        ("expected labels in [0, 3)", "how-to/errors"),
        ("resume training", "how-to/store-and-resume"),
        ("multi-label", "how-to/several-labels"),
        ("multilabel", "how-to/several-labels"),
        ("class weights", "how-to/sample-weights"),
        ("eval mode", "how-to/dropout"),
        ("write a kernel", "adding-a-kernel"),
        ("environment variables", "how-to/environment-variables"),
    ],
)
def test_the_search_finds_the_page_that_answers(searched: Callable[[str], list[str]], query: str, answer: str) -> None:
    assert answer in searched(query)[:6]


@pytest.mark.needs("chromium")
def test_the_search_finds_nothing_of_a_word_that_is_nowhere(searched: Callable[[str], list[str]]) -> None:
    assert searched("xylophone") == []


@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_has_its_page(site: Path, name: str) -> None:
    page = read(site / "kernels" / f"{name}.html")
    text = "".join(page.text)
    assert f"plugrad.kernels.{name}" in page.anchors
    assert KERNELS[name].formula in text
    for part in ("Examples", "Parameters", "Dtypes", "Errors", "Speed and accuracy", "Source"):
        assert part in text, part
    assert all(f"{part}" in text for part in (*KERNELS[name].options, *KERNELS[name].results))
    for backend, module in BUILTIN.items():
        folder = "/".join(module.split(".")[1:])
        assert f"{backend}: {folder}/" in text, f"the page has no source of {backend}"


def test_a_kernel_that_is_added_has_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    pages = importlib.import_module("kernel_pages")

    def softplus(x: Any, *, out: Any = None) -> Any:
        """The softplus function."""
        return KERNELS["relu"].function(x, out=out)

    kernel = Kernel(softplus, contract.Elementwise, "y = log(1 + exp(x))", ("y",))
    monkeypatch.setitem(KERNELS, "softplus", kernel)
    wrong = Mistake({"x": [1j]}, TypeError, "expected float16")
    monkeypatch.setitem(RECORDS, "softplus", replace(RECORDS["relu"], function=softplus, mistakes=(wrong,)))
    text = pages.page(kernel)
    assert "y = log(1 + exp(x))" in text
    assert ".. autofunction:: softplus" in text
    assert "expected float16, bfloat16, float32, float64" in text
    assert "python -m plugrad.bench softplus" in text
    assert "softplus" in pages.index()


@pytest.mark.parametrize("command", ["", "$ python -m plugrad.bench relu\n", "$ python -m plugrad.bench relu --new\n"])
def test_printed_tables_are_read_but_those_of_new_arrays(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    pages = importlib.import_module("kernel_pages")
    text = f"{command}kernel   size    dtype    numba us     x torch\nrelu     256x10  float32   6.9        -\n"
    found = list(pages._tables(text))
    row = ["relu", "256x10", "float32", "6.9", "-"]
    assert found == ([] if "--new" in command else [(["kernel", "size", "dtype", "numba us", "x torch"], [row])])


def test_every_command_has_its_help(site: Path) -> None:
    text = "".join(read(site / "reference" / "commands.html").text)
    for main in ROOT.glob("*/__main__.py"):
        assert f"python -m plugrad.{main.parent.name}" in text


@pytest.mark.parametrize("bridge", ["torch", "jax"])
def test_the_bridges_have_their_functions(site: Path, bridge: str) -> None:
    page = read(site / "reference" / f"{bridge}.html")
    source = (ROOT / "bridges" / f"{bridge}.py").read_text()
    names = re.search(r"^__all__ = (\[.*?\])", source, re.MULTILINE | re.DOTALL)
    assert names
    for name in ast.literal_eval(names[1]):
        assert f"plugrad.bridges.{bridge}.{name}" in page.anchors


def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("confident_rows", ROOT / "docs" / "explanation" / "confident_rows.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figure_of_confident_rows_shows_what_the_page_says(tmp_path: Path) -> None:
    rows: Any = figure()
    usual, shifted, accurate = rows.errors().values()
    assert accurate.max() < 1e-6
    for error in (usual, shifted):
        assert error.max() == pytest.approx(1)
        assert np.all(error[rows.MARGINS > 20] == 1)  # the loss is 0
    rows.draw(tmp_path / "figure.svg")
    drawn, committed = (
        re.findall(r"<text[^>]*>([^<]*)", file.read_text())
        for file in (tmp_path / "figure.svg", ROOT / "docs" / "explanation" / "confident-rows.svg")
    )
    assert drawn == committed, "run python docs/explanation/confident_rows.py"
