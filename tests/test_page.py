"""The page of the results, in a browser: it draws, sorts and filters, by keyboard too, and fetches nothing."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from plugrad.bench import page as pages
from plugrad.bench.cases import Case
from plugrad.bench.charts import _lines_of_roof, _roofs, plots
from plugrad.bench.curves import Curve
from plugrad.bench.measurements import Measurement, Results, Row
from plugrad.tests.processes import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=alert(1)>"
COUNT = "document.querySelectorAll('#overview svg g.role-mark.mark-symbol path').length"
KERNELS = ("softmax", "relu", "affine")

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium"), pytest.mark.xdist_group("page")]


def side(seconds: float, ulp: float | None) -> Measurement:
    return Measurement(
        [seconds, seconds * 1.1], [seconds * 0.9, seconds, seconds * 1.2], seconds * 2, 1e6, 1.5, ulp=ulp
    )


@pytest.fixture(scope="module")
def results() -> Results:
    """The results of a run with all options."""
    machine = {"processor": "Z80 & co", "threads": 2, "system": "CP/M", "python": "3.11.7", "versions": {"numpy": "2"}}
    found = Results(["--json", HOSTILE], "2026-01-02T03:04:05+00:00", machine, ["numba", "numpy"], ["torch", "scipy"])
    for i, name in enumerate(KERNELS):
        for j, size in enumerate(("64x784x128", "256x1024x1024") if name == "affine" else ("32x10", "4096x1024")):
            for dtype in ("float32", "float16"):
                factor = (1 + i) * 10.0**j
                case = Case(name, size, dtype)
                sides = {
                    "numba": side(2e-6 * factor, 1.5),
                    "numpy": side(4e-6 * factor, 60.0),
                    "torch": side(1e-6 * factor**1.2, float("inf")),
                    "products" if name == "affine" else "copy": side(1e-6, None),
                }
                if name == "softmax":
                    sides["scipy"] = side(9e-6 * factor, 60.0)
                found.rows.append(Row(case, sides))
        for against in ("rows", "classes", "threads"):
            for name_of_side, factor in (("numba", 1.0), ("numpy", 0.5)):
                seconds = [factor * 1e-6 + i * 1e-7 + n * 1e-8 / factor**2 for n in (8, 128, 2048)]
                sizes = [f"{n}x100" for n in (8, 128, 2048)]
                found.curves.append(Curve(name, "float32", name_of_side, against, sizes, [8, 128, 2048], seconds))
    found.is_whole = True
    return found


@pytest.fixture(scope="module")
def file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    pages.write(path, results)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "expected Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        # Its sandbox needs rights that containers do not give; the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1e3 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Page]:
    """The page as it opens; an error on the page fails the test."""
    yield from _opened(browser, file)


def _opened(browser: Browser, file: Path, **options: Any) -> Iterator[Page]:
    page = browser.new_page(**options)
    page.set_default_timeout(1e3 * PATIENCE)  # milliseconds
    wrong: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("document.documentElement.dataset.drawn")
    yield page
    page.close()
    assert wrong == []
    assert requests == [file.as_uri()]


def column(page: Page, table: str, index: int) -> list[str]:
    cells = f"#{table} tbody tr:not([hidden]) td:nth-child({index + 1})"
    return page.locator(cells).all_inner_texts()


def test_everything_is_drawn(opened: Page, results: Results) -> None:
    names = [plot.name for plot in plots(results)]
    assert names == ["overview", "bars", "roofline", "growth-rows", "growth-classes", "growth-threads", "accuracy"]
    for name in names:
        assert opened.locator(f"#{name} svg").count() == 1
        assert opened.locator(f"#{name} svg g.role-mark path").count() > 2
    assert len(column(opened, "rows", 0)) == len(results.rows)
    text = opened.inner_text("header")
    assert "Z80 & co" in text
    assert HOSTILE in text  # as text, not as an element
    assert opened.locator("img").count() == 0


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_tables_are_sorted(opened: Page, by_keyboard: bool) -> None:
    header = opened.locator("#rows th", has_text="numba us")

    def press() -> None:
        if by_keyboard:
            header.locator("button").focus()
            opened.keyboard.press("Enter")
        else:
            header.locator("button").click()

    index = opened.locator("#rows th").all_inner_texts().index(header.inner_text())
    before = column(opened, "rows", index)
    press()
    assert header.get_attribute("aria-sort") == "ascending"
    numbers = [float(text) for text in column(opened, "rows", index)]
    assert numbers == sorted(float(text) for text in before)
    assert before != column(opened, "rows", index)
    press()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(opened, "rows", index)] == numbers[::-1]
    opened.locator("#rows th button").first.click()
    assert column(opened, "rows", 0) == sorted(column(opened, "rows", 0))
    assert header.get_attribute("aria-sort") == "none"


def test_what_was_not_measured_is_sorted_to_the_end(opened: Page) -> None:
    header = opened.locator("#rows th", has_text="x scipy")
    index = opened.locator("#rows th").all_inner_texts().index(header.inner_text())
    for _ in range(2):
        header.locator("button").click()
        assert set(column(opened, "rows", index)[-8:]) == {"-"}
        assert "-" not in column(opened, "rows", index)[:4]


def test_kernels_and_dtypes_are_chosen(opened: Page, results: Results) -> None:
    points = opened.locator("#overview svg g.role-mark.mark-symbol path")
    everything = points.count()
    assert opened.locator("#growth-rows .role-title-text").text_content() == "softmax"
    opened.select_option("#kernel", "relu")
    opened.wait_for_function("document.querySelector('#bars .role-title-text').textContent === 'relu'")
    assert set(column(opened, "rows", 0)) == set(column(opened, "curves", 0)) == {"relu"}
    assert opened.locator("#growth-rows .role-title-text").text_content() == "relu"
    assert 0 < points.count() < everything
    of_kernel = points.count()
    opened.select_option("#dtype", "float16")
    opened.wait_for_function(
        f"document.querySelectorAll('#overview g.mark-symbol.role-mark path').length < {of_kernel}"
    )
    assert set(column(opened, "rows", 2)) == {"float16"}
    assert len(column(opened, "rows", 2)) == 2
    for name in ("#kernel", "#dtype"):
        opened.select_option(name, "")
    assert len(column(opened, "rows", 0)) == len(results.rows)
    opened.wait_for_function(
        f"document.querySelectorAll('#overview g.mark-symbol.role-mark path').length == {everything}"
    )


def test_plots_show_what_was_measured(opened: Page, results: Results) -> None:
    found = {plot.name: plot.chart.to_dict() for plot in plots(results)}

    def values(name: str, layer: int | None = None) -> list[dict[str, Any]]:
        chart = found[name] if layer is None else found[name]["layer"][layer]
        inline = chart["data"].get("values")
        return inline if inline is not None else found[name]["datasets"][chart["data"]["name"]]

    def one(shown: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
        (only,) = (value for value in shown if wanted.items() <= value.items())
        return only

    wanted = {"kernel": "softmax", "case": "32x10 float32"}
    assert one(values("overview", 1), **wanted, side="torch")["ratio"] == pytest.approx(0.5)
    assert one(values("bars", 1), **wanted, side="numpy")["ratio"] == pytest.approx(2)
    point = one(values("roofline", 1), **wanted, side="numba")
    assert point["intensity"] == pytest.approx(5 / 8)
    assert point["rate"] == pytest.approx(5 * 320 / 2e-6 / 1e9)
    output = one(values("accuracy"), kernel="softmax", case="32x10 float32", side="torch")
    assert (output["ns"], output["ulp"]) == (pytest.approx(1e-6 / 320 * 1e9), "infinite")
    last = one(values("growth-rows"), kernel="softmax", side="numba", number=2048)
    assert last["us"] == pytest.approx(1 + 20.48)
    cells = [column(opened, "crossings", i) for i in range(5)]
    # numba takes 1 us and 0.01 for each, numpy 0.5 and 0.04, relu and affine 0.1 more each on both.
    assert cells[0] == [kernel for kernel in KERNELS for _ in ("rows", "classes")]
    assert set(cells[2]) == {"numba"}
    assert all(10 < float(number) < 100 for number in cells[4])


def test_the_roof_is_where_memory_and_products_end(results: Results) -> None:
    def ends(roof: dict[str, float], low: float, high: float) -> list[tuple[str, float, float]]:
        return [(e["roof"], e["intensity"], e["rate"]) for e in _lines_of_roof("float32", roof, low, high)]

    both = {"copy": 10e9, "products": 100e9}  # as much at 10 operations for each byte
    copy = [("copy", 1, 10), ("copy", 10, 100)]
    assert ends(both, 1, 50) == [*copy, ("products", 10, 100), ("products", 50, 100)]
    assert ends(both, 1, 5) == [*copy, ("products", 10, 100), ("products", 10, 100)]
    assert ends(both, 20, 50)[:2] == [("copy", 10, 100), ("copy", 10, 100)]
    assert ends({"copy": 10e9}, 1, 5) == [("copy", 1, 10), ("copy", 5, 50)]
    assert ends({"products": 100e9}, 1, 5) == [("products", 1, 100), ("products", 5, 100)]
    roofs = _roofs(results)["float32"]  # those of the largest arrays
    assert roofs["copy"] == pytest.approx(2 * 4096 * 1024 * 4 / 1e-6)
    assert roofs["products"] == pytest.approx(2 * 256 * 1024 * 1024 / 1e-6)


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2.2, of a colour as browsers tell it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(browser: Browser, file: Path, scheme: Any) -> None:
    for page in _opened(browser, file, color_scheme=scheme):
        back = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (back > 0.5) == (scheme == "light")
        found = page.evaluate(
            """[...document.querySelectorAll("p, td, th button, select, svg .role-axis-label text, "
               + "svg .role-axis-title text, svg .role-legend-label text")].map(element => {
                 const style = getComputedStyle(element);
                 return element.closest("svg") ? style.fill : style.color;
               })"""
        )
        for colour in set(found):
            light, dark = sorted([luminance(colour), back], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, colour  # WCAG 2.2, 1.4.3
        drawn = page.evaluate("document.querySelector('#bars svg').outerHTML")
        page.locator("#scheme").click()
        page.wait_for_function(
            "was => document.querySelector('#bars svg') && document.querySelector('#bars svg').outerHTML != was",
            arg=drawn,
        )
        assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.5) != (back > 0.5)


def test_a_telephone_shows_all_of_it(browser: Browser, file: Path) -> None:
    for page in _opened(browser, file, viewport={"width": 360, "height": 740}):
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for plot in page.locator(".plot svg").all():
            box = plot.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
        sizes = page.evaluate(
            "[...document.querySelectorAll('p, td, button, svg text')]"
            ".map(element => parseFloat(getComputedStyle(element).fontSize))"
        )
        assert min(sizes) >= 10


def test_the_keyboard_reaches_everything(opened: Page) -> None:
    reached = []
    for _ in range(8):
        opened.keyboard.press("Tab")
        reached.append(
            opened.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")
        )
    assert reached[:4] == ["kernel", "dtype", "scheme", "All results"]
    outline = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    opened.locator("#kernel").focus()
    opened.keyboard.press("ArrowDown")
    opened.wait_for_function("document.querySelector('#kernel').value === 'softmax'")
    assert set(column(opened, "rows", 0)) == {"softmax"}


def test_a_quick_change_of_colours_draws_once(opened: Page, results: Results) -> None:
    for _ in range(3):
        opened.evaluate("document.getElementById('scheme').click()")
    opened.wait_for_function("document.documentElement.dataset.drawn")
    assert opened.evaluate("views.length") == len(plots(results))
    assert opened.locator("#bars svg").count() == 1


def test_infinite_errors_are_sorted_as_the_largest(opened: Page) -> None:
    header = opened.locator("#rows th", has_text="torch ulp")
    index = opened.locator("#rows th").all_inner_texts().index(header.inner_text())
    assert set(column(opened, "rows", index)) == {"inf"}
    opened.evaluate(f"document.querySelector('#rows tbody tr').cells[{index}].textContent = '3'")
    opened.evaluate(f"document.querySelector('#rows tbody tr:nth-child(2)').cells[{index}].textContent = '-'")
    header.locator("button").click()
    assert column(opened, "rows", index)[:2] == ["3", "inf"]
    assert column(opened, "rows", index)[-1] == "-"
    header.locator("button").click()
    assert column(opened, "rows", index)[0] == "inf"


def test_the_first_kernel_with_bars_is_shown(results: Results) -> None:
    only_scipy = Results(**{**vars(results), "backends": ["numba"], "peers": ["scipy"]})
    only_scipy.rows = results.rows[::-1]  # affine first, which SciPy has not
    bars = next(plot for plot in plots(only_scipy) if plot.name == "bars")
    assert "'softmax'" in bars.chart.to_dict()["title"]["text"]["expr"]


def test_a_page_of_one_row(browser: Browser, tmp_path: Path, results: Results) -> None:
    rows = [Row(Case("relu", "8x5"), {"numba": side(1e-6, None)})]
    little = Results(["relu"], results.date, results.machine, ["numba"], [], rows)
    path = tmp_path / "little.html"
    pages.write(path, little)
    for page in _opened(browser, path):
        assert "interrupted" in page.inner_text("header")
        assert column(page, "rows", 0) == ["relu"]
        assert page.locator("#curves").count() == 0


def test_pictures(results: Results, tmp_path: Path) -> None:
    written = pages.write_pictures(tmp_path / "new", results)
    names = {path.stem for path in written}
    one_at_a_time = ("bars", "growth-rows", "growth-classes", "growth-threads")
    expected = {f"{name}-{kernel}" for name in one_at_a_time for kernel in KERNELS}
    assert names == expected | {"overview", "roofline", "accuracy"}
    content = [path.read_bytes() for path in written]
    assert all(data.startswith(b"\x89PNG") for data in content)
    assert len(set(content)) == len(content)  # each shows something else
