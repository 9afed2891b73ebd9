"""Formulas as MathML, which browsers draw themselves: no script and no network."""

import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

# Commands that the converter of docutils lacks.
_REPLACED = (
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*[(\[|])"), r"\\\1l"),
    (re.compile(r"\\(big|Big|bigg|Bigg)(?=\s*[)\]])"), r"\\\1r"),
    (re.compile(r"\\gt\b"), ">"),
    (re.compile(r"\\lt\b"), "<"),
    (re.compile(r"\\displaystyle\b"), ""),
)


def _mathml(node: nodes.Element, as_block: bool) -> str:
    text = node.astext()
    for command, replacement in _REPLACED:
        text = command.sub(replacement, text)
    return str(tex2mathml(text, as_block=as_block))


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
