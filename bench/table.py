"""The table of what was measured, in a terminal and in a document."""

from plugrad.bench import growth
from plugrad.bench.report import Results, Row, change

LEAST_WIDTH = 8


class Table:
    """The columns, and the cells of a row.

    `options` are those of the command that add columns: ``memory`` and ``accuracy``. Errors that were told are shown
    in any case.
    """

    def __init__(self, results: Results, options: set[str], earlier: Results | None = None) -> None:
        self.backends, self.peers, self.earlier, self.options = results.backends, results.peers, earlier, options
        if any(side.ulp is not None for row in results.rows for side in row.sides.values()):
            self.options = {*options, "accuracy"}
        self.on_gpu = self.backends[0] == "cupy"
        names = (*self.backends, *self.peers)
        self.columns = [f"{name} us" for name in self.backends] + ["host us"] * self.on_gpu
        self.columns += ["+- %", *(f"x {peer}" for peer in self.peers), "GB/s", "Mrows/s", "of bound", "CPUs"]
        self.columns += [f"{name} MB" for name in names] if "memory" in options else []
        self.columns += [f"{name} ulp" for name in names] if "accuracy" in self.options else []
        self.columns += ["x before"] if earlier else []
        self.widths = [max(LEAST_WIDTH, len(column)) for column in self.columns]

    def cells(self, row: Row) -> list[str]:
        """What stands in the columns."""
        case, ours = row.case, row.sides[self.backends[0]]
        cells = [f"{row.sides[name].best * 1e6:.1f}" if name in row.sides else "-" for name in self.backends]
        cells += [f"{(ours.host or 0) * 1e6:.1f}"] if self.on_gpu else []
        cells += [f"{ours.spread:.1%}"]
        cells += [f"{row.sides[peer].best / ours.best:.2f}" if peer in row.sides else "-" for peer in self.peers]
        cells += [f"{case.bytes / ours.best / 1e9:.1f}" if case.bytes else "-", f"{case.rows / ours.best / 1e6:.2f}"]
        cells += [f"{row.bound.best / ours.best:.0%}" if row.bound else "-", f"{ours.processors:.1f}"]
        sides = [row.sides.get(name) for name in (*self.backends, *self.peers)]
        if "memory" in self.options:
            cells += [f"{side.memory / 1e6:.1f}" if side else "-" for side in sides]
        if "accuracy" in self.options:
            cells += ["-" if side is None or side.ulp is None else f"{side.ulp:.3g}" for side in sides]
        if self.earlier:
            changed = change(self.earlier, row, self.backends[0])
            cells += ["new" if changed is None else f"{changed[0]:.2f}{'*' if changed[1] else ' '}"]
        return cells

    def heading(self) -> str:
        """The names of the columns, in a line."""
        return self._line("kernel", "size", "dtype", self.columns)

    def line(self, row: Row) -> str:
        """A row, in a line."""
        return self._line(row.case.name, row.case.size, row.case.dtype, self.cells(row))

    def _line(self, kernel: str, size: str, dtype: str, cells: list[str]) -> str:
        filled = (f"{cell:>{width}}" for cell, width in zip(cells, self.widths, strict=True))
        return " ".join([f"{kernel:37} {size:>14} {dtype:>8}", *filled])


def document(results: Results) -> str:
    """All that was measured, in Markdown."""
    table = Table(results, set())
    head = ["kernel", "size", "dtype", *table.columns]
    lines = [f"| {' | '.join(head)} |", f"|---|---|---|{'---:|' * len(table.columns)}"]
    for row in results.rows:
        lines.append(f"| {' | '.join([row.case.name, row.case.size, row.case.dtype, *table.cells(row)])} |")
    text = [
        f"# Measured on {results.date[:10]}",
        "",
        f"{results.about}, {results.machine['system']}. By",
        "",
        "```text",
        f"$ {results.shell_command}",
        "```",
        "",
        *([] if results.is_whole else ["**The run was interrupted: what is here is whole, the rest is missing.**", ""]),
        EXPLANATION,
        "",
        *lines,
    ]
    if results.curves:
        text += ["", "## How time grows", "", GROWTH, "", "```text"]
        text += [*growth.lines(results.curves, results.backends)[1:], "```"]
    return "\n".join(text) + "\n"


EXPLANATION = """\
Each side ran alone in a process of its own, in turn. Times are the best medians of these processes; `+- %` is half of
the way from the 20 % to the 80 % quantile; `x PEER` is how many times as long a peer takes as the first backend: below
1 the peer is faster. `of bound` is how long it takes to copy as many bytes as the kernel moves at the least, or to
multiply its matrices, as a share of what the kernel takes. `CPUs` is how many processors were busy, waiting threads
included. `MB` is the most memory beside arguments and results. `ulp` is the largest error in units in the last place,
of each element for softmax, ReLU and sigmoid, else of the largest element; float64 has nothing to be compared with.
`+- %` and what follows the peers are those of the first backend."""

GROWTH = """\
Rows have 100 classes, classes are those of 64 rows, threads share 4096 x 1024; layers have the sizes that are given.
The exponent is k of the curve c + a n^k that fits best, where c is the time of the call itself, and - if the time
hardly grows or was disturbed; for threads, without c, -1 is perfect."""
