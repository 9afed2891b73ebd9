"""The README is short, and its picture shows the tables in ``bench/results``."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PICTURES = ["what-it-buys-dark.svg", "what-it-buys-light.svg"]

TABLES = {
    "loops.md": """
| rows-inputs-hidden-classes | by hand, us | numpy plain | captured | numba plain | captured |
|---|---|---|---|---|---|
| 1-2-3 | 54 | 1.13-1.15 | 0.95-0.96 | 0.84-0.85 | 0.25-0.75 |
""",
    "intel-xeon.md": """
| kernel | size | dtype | numba us | x torch | x jax | x textbook |
|---|---|---|---:|---:|---:|---:|
| relu | 1024x1024 | float32 | 7.6 | 3.10 | 8.66 | 3.63 |
| softmax_cross_entropy_value_and_grad | 256x10 | float32 | 7.6 | 3.10 | 8.66 | 3.63 |
| softmax_cross_entropy_value_and_grad | 1024x1024 | float32 | 7.6 | 0.5 | 7 | 8 |
""",
    "linear_cross_entropy.md": """
| rows x in x classes | numba | numpy | PyTorch |
|---|---|---|---|
| 1024 x 768 x 50257 | 0.88 s, 51 MB | 0.92 s, 51 MB | 1.02 s, 517 MB |
| 4096 x 512 x 32000 | 1.62 s, 11 MB | 1.72 s, 58 MB | 2.29 s, 2,200 MB |
""",
}


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("what_it_buys", ROOT / "docs" / "what_it_buys.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(picture: str) -> dict[str, tuple[float, str]]:
    """The width of each bar and its number, by its label."""
    text = r'<text x="[\d.]+" y="[\d.]+"'
    bar = rf'{text} text-anchor="end">(.*?)</text>\n<rect [^>]*width="([\d.]+)"[^>]*/>\n{text}>(.*?)</text>'
    return {label: (float(width), number) for label, width, number in re.findall(bar, picture)}


def test_the_picture_is_that_of_the_tables(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == PICTURES
    for name in PICTURES:
        committed = (ROOT / "docs" / name).read_text()
        assert (tmp_path / name).read_text() == committed, "run python docs/what_it_buys.py"


def test_bars_have_the_numbers_of_the_tables(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, table in TABLES.items():
        (tmp_path / name).write_text(table)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    longest = script.COLUMNS.bars
    numbers = drawn(script.picture("light"))
    assert numbers["1-2-3"] == (longest / 2, "0.25–0.75 ×")
    assert numbers["JAX, compiled"] == (pytest.approx(longest * 7 / 8, abs=0.1), "7 ×")
    assert numbers["plugrad"] == (pytest.approx(longest / 200, abs=0.1), "11 MB")  # of the last panel
    assert numbers["PyTorch"] == (longest, "2,200 MB")


def test_the_text_for_those_who_do_not_see_the_picture_has_its_numbers() -> None:
    shown = re.search(r'<img src="docs/what-it-buys-light.svg"[^>]* alt="([^"]*)"', README)
    assert shown
    picture = (ROOT / "docs" / PICTURES[1]).read_text()
    numbers = re.findall(r"\d[\d.,]*\d", shown[1])
    assert len(numbers) > 5
    for number in numbers:
        assert re.search(rf">(?:[\d.]+–)?{re.escape(number)}\b", picture), number


def test_the_page_about_speed_has_the_table_of_the_loops() -> None:
    table = re.compile(r"^\| rows-inputs-hidden-classes \|.*\n(?:\|.*\n)+", re.MULTILINE)
    page, results = ((ROOT / file).read_text() for file in ("docs/explanation/speed.md", "bench/results/loops.md"))
    shown, measured = table.search(page), table.search(results)
    assert shown
    assert measured
    assert shown[0] == measured[0], "paste the first table of bench/results/loops.md into docs/explanation/speed.md"


def test_the_readme_is_short_and_shows_both_pictures() -> None:
    assert len(README.splitlines()) < 120
    assert all(f"docs/{name}" in README for name in PICTURES)
