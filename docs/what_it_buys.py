"""Draw the picture of the README from the tables in ``bench/results``: ``python docs/what_it_buys.py``.

It writes ``what-it-buys-light.svg`` and ``what-it-buys-dark.svg``, or the same into the folder that is given.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "bench" / "results"
sys.path.insert(0, str(DOCS / "_extensions"))

from bars import HEIGHT, Bar, Columns, bars  # noqa: E402  (of the folder above)

COLUMNS = Columns(labels=165, bars=215, numbers=100)  # narrow, for a phone
HEAD = 58  # the height of the two lines above a panel
SPACE = 22  # between panels
NETWORKS = "rows-inputs-hidden-classes"
LOSS = "softmax_cross_entropy_value_and_grad", "1024x1024"
LAYER = "4096 x 512 x 32000"
PEERS = {"jax": "JAX, compiled", "torch": "PyTorch", "textbook": "NumPy, by hand"}
COLOURS = {
    "light": {"text": "#1f2328", "muted": "#59636e", "ours": "#1a7f5a", "theirs": "#b4bcc6"},
    "dark": {"text": "#f0f6fc", "muted": "#9198a1", "ours": "#3fb98a", "theirs": "#565f6b"},
}


class Panel(NamedTuple):
    """Bars below a title and a line that says what they show."""

    title: str
    text: str
    bars: list[Bar]


def rows(file: str, first: str) -> Iterator[list[tuple[str, str]]]:
    """The rows of all tables of a file whose first column has this head, as pairs of head and cell."""
    for table in re.findall(r"(?:^\|.*\n)+", (RESULTS / file).read_text(), re.MULTILINE):
        heads, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        if heads[0] == first:
            yield from (list(zip(heads, cells, strict=True)) for cells in lines)


def _middle(numbers: str) -> float:
    """The middle of a range such as ``0.57-0.59``."""
    found = [float(number) for number in numbers.split("-")]
    return sum(found) / len(found)


def steps() -> Panel:
    """The time of captured steps of training on numba, relative to the same loops by hand."""
    cells = [(row[0][1], [cell for head, cell in row if head == "captured"][-1]) for row in rows("loops.md", NETWORKS)]
    ours = [Bar(network, _middle(share), f"{share} ×".replace("-", "–"), "ours") for network, share in cells]
    return Panel(
        "Time of a training step",
        f"captured, for {NETWORKS}",
        [Bar("NumPy, by hand", 1, "1 ×", "theirs"), *ours],
    )


def loss() -> Panel:
    """The times of a loss with its gradient, relative to that of numba."""
    rows_of, classes = (f"{int(number):,}" for number in LOSS[1].split("x"))
    (row,) = (dict(row) for row in rows("intel-xeon.md", "kernel") if (row[0][1], row[1][1]) == LOSS)
    times = {"plugrad": 1.0} | {text: float(row[f"x {peer}"]) for peer, text in PEERS.items()}
    drawn = [
        Bar(name, time / max(times.values()), f"{time:g} ×", "theirs" if name != "plugrad" else "ours")
        for name, time in times.items()
    ]
    return Panel("Time of softmax, loss and gradient", f"{rows_of} rows of {classes} classes, float32", drawn)


def memory() -> Panel:
    """The memory of the last layer, its loss and gradients."""
    *_, row = (dict(row) for row in rows("linear_cross_entropy.md", "rows x in x classes") if row[0][1] == LAYER)
    texts = {"plugrad": row["numba"].split(", ")[1], "PyTorch": row["PyTorch"].split(", ")[1]}
    sizes = {name: float(text.removesuffix(" MB").replace(",", "")) for name, text in texts.items()}
    drawn = [
        Bar(name, sizes[name] / max(sizes.values()), text, "theirs" if name != "plugrad" else "ours")
        for name, text in texts.items()
    ]
    rows_of, _, classes = (f"{int(number):,}" for number in LAYER.split(" x "))
    return Panel("Memory of the last layer and its loss", f"{rows_of} rows, {classes} classes, with gradients", drawn)


def picture(theme: str) -> str:
    """The picture in the colours of a theme, as SVG."""
    colours, lines, top = COLOURS[theme], [], 0
    for panel in (steps(), loss(), memory()):
        lines += [
            f'<text class="title" x="0" y="{top + 18}">{panel.title}</text>',
            f'<text class="muted" x="0" y="{top + 41}">{panel.text}</text>',
            *bars(panel.bars, COLUMNS, top + HEAD),
        ]
        top += HEAD + HEIGHT * len(panel.bars) + SPACE
    style = (
        f"text{{font:15px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:{colours['text']}}}"
        f".title{{font-weight:600;font-size:18px}}.muted{{fill:{colours['muted']}}}"
        f".ours{{fill:{colours['ours']}}}.theirs{{fill:{colours['theirs']}}}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS.width} {top - SPACE}" role="img">'
    return "\n".join([head, f"<style>{style}</style>", *lines, "</svg>", ""])


def main(folder: Path) -> None:
    """Write the picture in the colours of each theme."""
    for theme in COLOURS:
        (folder / f"what-it-buys-{theme}.svg").write_text(picture(theme))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
