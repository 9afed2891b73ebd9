"""Horizontal bars as SVG: labels on the left, numbers on the right of each bar."""

from collections.abc import Iterable
from html import escape
from typing import NamedTuple

HEIGHT = 26  # of a bar with the space below it


class Bar(NamedTuple):
    """A bar: its label, its length as a share of the longest, its number as text, and its class of CSS."""

    label: str
    share: float
    number: str
    kind: str


class Columns(NamedTuple):
    """The widths of the labels, of the longest bar and of the numbers."""

    labels: int
    bars: int
    numbers: int

    @property
    def width(self) -> int:
        """The width of all three."""
        return sum(self)


def bars(rows: Iterable[Bar], columns: Columns, top: float = 0) -> list[str]:
    """Elements of an SVG, one row below the other, whose colours its style sheet gives."""
    lines = []
    for row, bar in enumerate(rows):
        y, width = top + row * HEIGHT, bar.share * columns.bars
        lines += [
            f'<text x="{columns.labels - 10}" y="{y + 15:g}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="{bar.kind}" x="{columns.labels}" y="{y:g}" width="{width:.1f}" height="20" rx="2"/>',
            f'<text x="{columns.labels + width + 8:.1f}" y="{y + 15:g}">{escape(bar.number)}</text>',
        ]
    return lines
