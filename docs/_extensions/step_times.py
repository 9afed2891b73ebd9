"""The directive ``step-times``: the time of a training step in each style, measured while the site is built."""

from collections.abc import Mapping
from html import escape

from bars import HEIGHT, Bar, Columns, bars
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from plugrad.backends import registry
from plugrad.bench import loops, machine

BACKENDS = ("numpy", "numba")
COLUMNS = Columns(labels=115, bars=265, numbers=80)  # narrow, for a phone


def chart(times: Mapping[tuple[str, str], float]) -> str:
    """Bars with the times in microseconds, as an SVG that takes the colours of the page."""
    longest = max(times.values())
    rows = [
        Bar(f"{backend} {style}".strip(), seconds / longest, f"{seconds * 1e6:,.0f} µs", backend or "hand")
        for (backend, style), seconds in times.items()
    ]
    box = f"0 0 {COLUMNS.width} {HEIGHT * len(rows)}"
    drawn = "".join(bars(rows, COLUMNS))
    return f'<svg class="step-times" role="img" aria-label="Time of a step" viewBox="{box}">{drawn}</svg>'


class StepTimes(SphinxDirective):
    """``.. step-times:: 32-64-100-10`` measures a network by its rows, inputs, hidden layers and classes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Measure, and return the chart with the description of the machine."""
        names = [name for name in BACKENDS if registry.usable(name)]
        times = loops.measured(self.arguments[0], names, rounds=8, seconds=0.03)
        caption = f"A step of {self.arguments[0]}, measured on {machine.in_a_line(machine.describe(names, ()))}."
        figure = f"<figure>{chart(times)}<figcaption>{escape(caption)}</figcaption></figure>"
        return [nodes.raw("", figure, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("step-times", StepTimes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
