"""Links of the site: of documents, which lead through the folders of the repository, and of names in code."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent

# A fence, a code span, or a link. Only links are rewritten.
_PIECE = re.compile(r"^```.*?^```$|`[^`]+`(?!\])|\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL)


def pages() -> dict[Path, Path]:
    """File outside of ``docs/`` -> its page, for the Markdown files of the repository that are pages of the site.

    The README is none: the first page says the same, with links of the site.
    """
    texts = [ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")]
    tables = (ROOT / "bench" / "results").glob("*.md")
    return {file: DOCS / "project" / file.name.lower() for file in texts} | {
        file: DOCS / "results" / file.name for file in sorted(tables)
    }


def for_site(text: str, file: Path, page: Path) -> str:
    """The text of `file` with its links as `page`, a file in ``docs/``, needs them."""

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or target.startswith(("#", "http:", "https:", "mailto:")):
            return match[0]
        path, mark, anchor = target.partition("#")
        found = (file.parent / path).resolve()
        if found == DOCS / "notebooks":
            found = DOCS / "tutorials.md"
        elif found.is_dir():
            return match["text"]
        found = pages().get(found, found)
        return f"[{match['text']}]({os.path.relpath(found, page.parent)}{mark}{anchor})"

    return _PIECE.sub(replaced, text)


def _read(app: Sphinx, name: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(name)).resolve()
    if page.suffix == ".ipynb":  # Jupyter keeps the capitals of a heading in its anchor
        lower: Callable[[re.Match[str]], str] = lambda match: match[0].lower()  # noqa: E731
        content[0] = re.sub(r"\]\(#[\w-]+\)", lower, content[0])
    elif page.suffix == ".md" and page not in pages().values():
        content[0] = for_site(content[0], page, page)


# A name in code, such as `K.softmax(x)`, and the modules by the names that documents import them by. On pages about the
# code of the library a bare name may be that of another function.
_NAME = re.compile(r"(?:(\w+)\.)?(\w+(?:\.\w+)?)(?:\(.*\))?", re.DOTALL)
_MODULES = {"K": "plugrad.kernels", "backends": "plugrad.backends", "distributed": "plugrad.distributed"} | {
    name: f"plugrad.kernels.{name}" for name in ("gradcheck", "jacobians", "layers", "optim")
}
_OF_CODE = ("adding-a-", "architecture", "glossary", "project/", "results/")


def _link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Make the first mention of a documented name on a page a link to its description."""
    objects = app.env.domains.python_domain.objects
    linked: set[str] = set()
    for literal in list(doctree.findall(nodes.literal)):
        found = _NAME.fullmatch(literal.astext())
        if found is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        module = _MODULES.get(found[1] or ("" if page.startswith(_OF_CODE) else "K"))
        target = objects.get(f"{module}.{found[2]}")
        if target is None or target.docname == page or target.node_id in linked:
            continue
        linked.add(target.node_id)
        uri = f"{app.builder.get_relative_uri(page, target.docname)}#{target.node_id}"
        link = nodes.reference("", "", refuri=uri, internal=True)
        literal.replace_self(link)
        link += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Rewrite links as pages are read, and add those of names when all pages are known."""
    app.connect("source-read", _read)
    app.connect("doctree-resolved", _link_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
