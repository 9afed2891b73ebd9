"""The directive ``step-times``: the time of a training step in each style, measured while the site is built."""

from collections.abc import Mapping
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from plugrad.backends import registry
from plugrad.bench import loops, machine

BACKENDS = ("numpy", "numba")
HEIGHT = 26  # of a bar with the space below it
LABELS, BARS, NUMBERS = 140, 460, 80  # the widths of the three columns


def chart(times: Mapping[tuple[str, str], float]) -> str:
    """Bars with the times in microseconds, as an SVG that takes the colours of the page."""
    longest = max(times.values())
    lines = []
    for row, ((backend, style), seconds) in enumerate(times.items()):
        y, label, width = row * HEIGHT, escape(f"{backend} {style}".strip()), seconds / longest * BARS
        lines += [
            f'<text x="{LABELS - 10}" y="{y + 15}" text-anchor="end">{label}</text>',
            f'<rect class="{backend or "hand"}" x="{LABELS}" y="{y}" width="{width:.1f}" height="20"/>',
            f'<text x="{LABELS + width + 8:.1f}" y="{y + 15}">{seconds * 1e6:,.0f} µs</text>',
        ]
    box = f"0 0 {LABELS + BARS + NUMBERS} {HEIGHT * len(times)}"
    return f'<svg class="step-times" role="img" aria-label="Time of a step" viewBox="{box}">{"".join(lines)}</svg>'


class StepTimes(SphinxDirective):
    """``.. step-times:: 32-64-100-10`` measures a network by its rows, inputs, hidden layers and classes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Measure, and return the chart with the description of the machine."""
        names = [name for name in BACKENDS if registry.usable(name)]
        times = loops.measured(self.arguments[0], names, rounds=4, seconds=0.05)
        caption = f"A step of {self.arguments[0]}, measured on {machine.in_a_line(machine.describe(names, ()))}."
        figure = f"<figure>{chart(times)}<figcaption>{escape(caption)}</figcaption></figure>"
        return [nodes.raw("", figure, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("step-times", StepTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
