"""The table of results, as text for a terminal and in a Markdown document."""

from collections.abc import Sequence

from plugrad.bench import curves
from plugrad.bench.cases import Case
from plugrad.bench.comparison import change
from plugrad.bench.measurements import Results, Row

LEAST_WIDTH, LEAST_NAME_WIDTH = 8, 37

LEGEND = """\
Each side ran alone in a process of its own, in turn, or with `--together` in one process with the others. Times are the
least of the medians of these processes or turns. `+- %` is half the distance between the 20 % and 80 % quantiles. `x
PEER` is the ratio of the peer's time to the first backend's: below 1 the peer is faster; `-` where it lacks the kernel.
`of bound` is the time to copy as many bytes as the kernel moves at the least, or to multiply its matrices, as a share
of the kernel's time. `CPUs` is the average number of busy processors, waiting threads included. `MB` is the peak of
memory beyond arguments and results. `ulp` is the largest error in units in the last place: of each element where the
kernel promises it, otherwise of the largest element; float64 has no more exact result to compare with. `x before` is
the ratio to the time in an earlier run, with a star beyond the noise. On a GPU, its events time the calls, with no
array of theirs in its caches; `host us` is the time until a call returns. From `+- %` on, all but the ratios to peers
describe the first backend."""

LEGEND_OF_CURVES = """\
Rows have 100 classes, classes belong to 64 rows, threads share 4096 x 1024; layers and steps have the sizes shown.
The exponent is k of the best fit c + a n^k, where c is the time of the call itself; `-` where time hardly grows or was
disturbed. For threads c is 0, and -1 is perfect scaling."""


class Table:
    """The columns of the table, and the cells of its rows.

    Parameters
    ----------
    results : Results
        The results; rows may be added later.
    options : set of str
        The optional columns: ``"memory"`` and ``"accuracy"``. Errors that were measured are shown in any case.
    earlier : Results, optional
        The results to compare with.
    cases : sequence of Case
        The cases of rows that are added later, for the width of their names.
    """

    def __init__(
        self, results: Results, options: set[str], earlier: Results | None = None, cases: Sequence[Case] = ()
    ) -> None:
        self.backends, self.peers, self.earlier, self.options = results.backends, results.peers, earlier, options
        if any(side.ulp is not None for row in results.rows for side in row.sides.values()):
            self.options = {*options, "accuracy"}
        named = (*cases, *(row.case for row in results.rows))
        self.name_width = max([LEAST_NAME_WIDTH, *(len(case.title) for case in named)])
        self.on_gpu = self.backends[0] == "cupy"
        names = (*self.backends, *self.peers)
        self.columns = [f"{name} us" for name in self.backends] + ["host us"] * self.on_gpu
        self.columns += ["+- %", *(f"x {peer}" for peer in self.peers), "GB/s", "Mrows/s", "of bound", "CPUs"]
        self.columns += [f"{name} MB" for name in names] if "memory" in options else []
        self.columns += [f"{name} ulp" for name in names] if "accuracy" in self.options else []
        self.columns += ["x before"] if earlier else []
        self.widths = [max(LEAST_WIDTH, len(column)) for column in self.columns]

    def cells(self, row: Row) -> list[str]:
        """Return the text of each column; ``-`` where there is no value."""
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
        """Return the names of the columns as a line."""
        return self._line("kernel", "size", "dtype", self.columns)

    def line(self, row: Row) -> str:
        """Return a row as a line."""
        return self._line(row.case.title, row.case.size, row.case.dtype, self.cells(row))

    def _line(self, kernel: str, size: str, dtype: str, cells: list[str]) -> str:
        filled = (f"{cell:>{width}}" for cell, width in zip(cells, self.widths, strict=True))
        return " ".join([f"{kernel:{self.name_width}} {size:>14} {dtype:>8}", *filled])


def document(results: Results) -> str:
    """Return all results in Markdown."""
    table = Table(results, set())
    head = ["kernel", "size", "dtype", *table.columns]
    lines = [f"| {' | '.join(head)} |", f"|---|---|---|{'---:|' * len(table.columns)}"]
    for row in results.rows:
        lines.append(f"| {' | '.join([row.case.title, row.case.size, row.case.dtype, *table.cells(row)])} |")
    text = [
        f"# Measured on {results.date[:10]}",
        "",
        f"{results.about}, {results.machine['system']}. By",
        "",
        "```text",
        f"$ {results.shell_command}",
        "```",
        "",
        *([] if results.is_whole else ["**The run was interrupted: the rest of the results is missing.**", ""]),
        LEGEND,
        "",
        *lines,
    ]
    if results.curves:
        text += ["", "## Growth of time", "", LEGEND_OF_CURVES, "", "```text"]
        text += [*curves.lines(results.curves, results.backends)[1:], "```"]
    return "\n".join(text) + "\n"
