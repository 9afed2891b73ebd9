"""The Markdown files of the repository outside of ``docs/`` as pages of the site."""

from collections.abc import Mapping
from pathlib import Path

from links import DOCS, for_site, pages
from sphinx.application import Sphinx


def write(folder: Path, contents: Mapping[str, str]) -> None:
    """Write pages that have changed into a folder, and remove others from it."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.name not in contents:
            file.unlink()
    for name, content in contents.items():
        file = folder / name
        if not file.exists() or file.read_text() != content:  # else Sphinx would read it again
            file.write_text(content)


def _write(app: Sphinx) -> None:
    contents = {page: _titled(for_site(file.read_text(), file, page), file) for file, page in pages().items()}
    for folder in (DOCS / "project", DOCS / "results"):
        write(folder, {page.name: text for page, text in contents.items() if page.parent == folder})


def _titled(text: str, file: Path) -> str:
    """The text, with the name of the file in a title that many tables of benchmarks share."""
    return text.replace("# Measured on", f"# Times on {file.stem},", 1) if text.startswith("# Measured on") else text


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
