"""The pages of the kernels, in ``docs/kernels/``: made of the table of kernels, their records and stored measurements.

Nothing here names a kernel. A kernel that enters `plugrad.kernels.KERNELS` has its page.
"""

import ast
import inspect
import itertools
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from docutils import nodes
from links import DOCS, ROOT
from project_pages import write
from sphinx.application import Sphinx

from plugrad import backends
from plugrad.backends.options import COMPUTE, is_supported
from plugrad.backends.registry import BUILTIN
from plugrad.kernels import KERNELS, Kernel
from plugrad.tests.records import RECORDS, Record

# The bound of a budget, by the number of whose last place it is a multiple; see `plugrad.tests.records.Budget`.
BOUNDS = {
    "result": "of the exact result, in float32 and float64",
    "exponent": "of the exact result; in float64 times ``max(1, |log|y / x||)``, since squares of the argument round",
    "logits": "of the largest of 1, the logits and the logarithm of the sum of exponentials, in float32 and float64",
    "formula": "more than the error of the textbook formula, in float32",
    "upstream": "of the larger of the exact result and the upstream gradient, in float32 and float64",
}

# ---------------------------------------------------------------------------------------------------------------------
# The source of a backend's function
# ---------------------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """A piece of a file of the repository: the lines from first to last, and one line more if it is not 0."""

    path: Path
    first: int
    last: int
    more: int = 0


@cache
def _texts(backend: str) -> dict[Path, str]:
    folder = ROOT.joinpath(*BUILTIN[backend].split(".")[1:])
    return {path: path.read_text() for path in sorted(folder.rglob("*")) if path.suffix in (".py", ".cu")}


def source(backend: str, kernel: Kernel) -> Source | None:
    """The definition of the backend's function, found without importing the backend; None where it has none.

    Helpers may have the kernel's name too: best is a function with as many parameters as the kernel's form, then a line
    ``MAP(relu, Relu)`` of a CUDA source, then a function that a decorator makes such a function.
    """
    count = len(inspect.signature(kernel.form.__call__).parameters) - 1
    found = [
        ranked
        for path, text in _texts(backend).items()
        if re.search(rf"\b{kernel.name}\b", text)
        for ranked in (
            _of_python(path, text, kernel.name, count) if path.suffix == ".py" else _of_cuda(path, text, kernel.name)
        )
    ]
    return min(found)[1] if found else None


def _of_python(path: Path, text: str, name: str, count: int) -> Iterator[tuple[int, Source]]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield 0 if len(node.args.args) == count else 2, Source(path, first, node.end_lineno or first)
        elif isinstance(node, ast.Assign):
            names = {item.id for target in node.targets for item in ast.walk(target) if isinstance(item, ast.Name)}
            if name in names:
                yield 0, Source(path, node.lineno, node.end_lineno or node.lineno)


def _of_cuda(path: Path, text: str, name: str) -> Iterator[tuple[int, Source]]:
    for macro in re.finditer(rf"^MAP\w*\({name}, (\w+)\)", text, re.MULTILINE):
        struct = re.search(rf"^template [^\n]*\bstruct {macro[1]} {{\n.*?^}};", text, re.MULTILINE | re.DOTALL)
        line = _line(text, macro.start())
        if struct:
            yield 1, Source(path, _line(text, struct.start()), _line(text, struct.end()), line)
        else:
            yield 1, Source(path, line, line)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Stored measurements
# ---------------------------------------------------------------------------------------------------------------------


CASE = ("size", "dtype", "classes", "span")  # the columns that say what was measured


class Table(NamedTuple):
    """The rows of one kernel in a table of ``bench/results``: its file, machine, heads and rows."""

    file: Path
    machine: str
    heads: list[str]
    rows: list[list[str]]

    def columns(self, wanted: str) -> "Table":
        """The columns that name the case and those whose head matches, without those that are empty."""
        case = [i for i, head in enumerate(self.heads) if head in CASE]
        filled = [i for i, _ in enumerate(self.heads) if any(row[i] not in ("-", "") for row in self.rows)]
        numbers = [i for i in filled if re.search(wanted, self.heads[i])]
        rows = [[row[i] for i in (*case, *numbers)] for row in self.rows if any(row[i] != "-" for i in numbers)]
        return self._replace(heads=[self.heads[i] for i in (*case, *numbers)], rows=rows)


# Tables of Markdown, and as the command prints them, after a line with the command or none.
_OF_MARKDOWN = re.compile(r"^\| kernel \|.*\n\|[-:|]+\|\n(?:\|.*\n)+", re.MULTILINE)
_AS_PRINTED = re.compile(r"(?:^\$ (?P<command>.*)\n)?(?P<table>^kernel +(?:size|dtype) .*\n(?:^\w.*\n)+)", re.MULTILINE)


def measured(kernel: str) -> Iterator[Table]:
    """The tables that have rows of a kernel, with results in ``out=``."""
    for file in sorted((ROOT / "bench" / "results").glob("*.md")):
        text = file.read_text()
        machine = text.split("\n\n")[1].partition(". ")[0].replace("\n", " ")
        own: dict[tuple[str, ...], list[list[str]]] = {}
        for heads, rows in _tables(text):
            own.setdefault(tuple(heads[1:]), []).extend(row[1:] for row in rows if row[0].rstrip("*") == kernel)
        for heads, rows in own.items():
            if rows:
                yield Table(file, machine, list(heads), rows)


def _tables(text: str) -> Iterator[tuple[Sequence[str], list[list[str]]]]:
    """The heads and the rows of each table in the text of a file."""
    for found in _OF_MARKDOWN.finditer(text):
        heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines())
        yield heads, rows
    for found in _AS_PRINTED.finditer(text):
        if "--new" not in (found["command"] or ""):
            heads, *rows = (re.split(r" {2,}", line.strip()) for line in found["table"].splitlines())
            yield heads, [row for row in rows if len(row) == len(heads)]


# ---------------------------------------------------------------------------------------------------------------------
# Calls that are refused
# ---------------------------------------------------------------------------------------------------------------------


def refused(record: Record) -> Iterator[tuple[str, str, str]]:
    """The changed arguments of each mistake, the class of its error, and the message after the kernel's name."""
    seen = set()
    for mistake in record.mistakes:
        sample = record.sample(np.random.default_rng(0), 2, 3, np.dtype(np.float32))
        with backends.use("numpy"):
            try:
                record.function(**{**sample, **record.given, **mistake.changed})
            except mistake.error as error:
                kind, message = type(error).__name__, str(error).removeprefix(f"{record.name}: ")
            else:
                raise AssertionError(f"{record.name}: expected {mistake.error.__name__} for {mistake.changed}")
        if message not in seen:
            seen.add(message)
            yield ", ".join(f"{name}={_shown(value)}" for name, value in mistake.changed.items()), kind, message


def _shown(value: Any) -> str:
    """A value as a reader recognises it: a large array by its shape."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, np.ndarray) and value.size > 4:
        return f"<{value.dtype} {value.shape}>"
    if isinstance(value, np.ndarray):
        return f"{value.tolist()!r}" if value.dtype != object else f"<objects {value.shape}>"
    return re.sub(r" at 0x\w+", "", reprlib.repr(value))


# ---------------------------------------------------------------------------------------------------------------------
# reStructuredText
# ---------------------------------------------------------------------------------------------------------------------


def _heading(text: str, mark: str) -> list[str]:
    return [text, mark * len(text), ""]


def _escaped(text: str) -> str:
    return re.sub(r"([\\\\_*|`])", r"\\\1", text)


def _code(text: str) -> str:
    return f"``{text}``" if text else ""


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _function(name: str) -> str:
    return f":py:func:`~plugrad.kernels.{name}`"


def _table(rows: Iterable[Iterable[str]], kind: str, widths: str = "auto", heads: bool = True) -> list[str]:
    lines = [
        ".. list-table::",
        f"   :class: {kind}",
        f"   :widths: {widths}",
        *(["   :header-rows: 1"] if heads else []),
        "",
    ]
    for row in rows:
        lines += [f"   {'  -' if i else '* -'} {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def _related(kernel: Kernel) -> str:
    """The gradient of a kernel, the kernel of a gradient, and the kernels that compute both."""
    stem = kernel.name.removesuffix("_backward").removesuffix("_value_and_grad")
    family = [stem, f"{stem}_backward", f"{stem}_value_and_grad"]
    return ", ".join(_function(name) for name in family if name in KERNELS and name != kernel.name)


def _facts(kernel: Kernel, record: Record, sources: dict[str, Source]) -> list[str]:
    share = "the largest of the sums of the magnitudes of its terms" if record.terms else "the largest exact result"
    rows = {
        "Call": _code(f"{kernel.name}({', '.join(kernel.arguments)})"),
        "Results": _codes(kernel.results),
        "Options": _codes((*kernel.options, "out")),
        "Related": _related(kernel),
        "Dtypes": _codes(dtype.name for dtype in _dtypes()),
        "Backends": ", ".join(sources),
        "Largest error": f"{record.tolerance:g} times the machine epsilon, relative to {share}"
        if record.tolerance
        else "none: results are exact",
        "Budget": f"{record.budget.ulp:g} ulp {BOUNDS.get(record.budget.of, record.budget.of)}"
        if record.budget
        else "",
        "Form": f":py:class:`~plugrad.backends.contract.{kernel.form.__name__}`, for authors of backends",
    }
    return _table(((f"**{head}**", cell) for head, cell in rows.items() if cell), "facts", "20 80", heads=False)


def _dtypes() -> list[np.dtype[Any]]:
    """All dtypes that kernels compute on."""
    import ml_dtypes

    is_supported(np.dtype(ml_dtypes.bfloat16))  # joins the table when it is first asked for
    return sorted(COMPUTE, key=lambda dtype: (dtype.itemsize, dtype.name != "float16"))


def _errors(record: Record) -> list[str]:
    cases = list(refused(record))
    if not cases:
        return []
    return [
        *_heading("Errors", "-"),
        "Each row is a call on a 2 x 3 sample with one argument changed. The message begins with the kernel's name.",
        "",
        *_table(
            [
                ("changed", "error", "message"),
                *((_code(changed), kind, _code(message)) for changed, kind, message in cases),
            ],
            "errors",
            "30 15 55",
        ),
    ]


def _measurements(kernel: Kernel) -> list[str]:
    lines = _heading("Speed and accuracy", "-")
    found = list(measured(kernel.name))
    for head, wanted, text in (
        (
            "Time",
            r" us$|^x ",
            "Microseconds of each backend; ``x PEER`` is the peer's time divided by that of the first backend.",
        ),
        (
            "Error",
            r" ulp$|^(budget|numba|numpy|textbook|SciPy|PyTorch)$",
            "The largest error in units in the last place. ``budget`` is the largest that is allowed; ``span`` lies "
            "between the smallest and the largest element of a row.",
        ),
    ):
        tables = [table for table in (entry.columns(wanted) for entry in found) if table.rows]
        if tables:
            lines += [f".. rubric:: {head}", "", text, ""]
        for (file, machine), of_file in itertools.groupby(tables, lambda table: (table.file, table.machine)):
            for table in of_file:
                lines += _table([table.heads, *table.rows], "measured")
            lines += [f"{machine}; :doc:`all measurements </results/{file.stem}>`.", ""]
    if not found:
        lines += ["The stored tables have no row of this kernel.", ""]
    lines += [
        "These commands measure both on your machine:",
        "",
        ".. code-block:: text",
        "",
        f"   python -m plugrad.bench {kernel.name} --peers textbook,torch,jax",
    ]
    if RECORDS[kernel.name].budget:
        lines.append(f"   python -m plugrad.tests --accuracy --kernel {kernel.name}")
    return [*lines, ""]


def _listings(sources: dict[str, Source]) -> list[str]:
    lines = _heading("Source", "-")
    for backend, (path, first, last, more) in sources.items():
        shown = path.relative_to(ROOT)
        language = "python" if path.suffix == ".py" else "cuda"
        lines += [
            ".. raw:: html",
            "",
            f"   <details><summary><code>{backend}</code>: <code>{shown}</code>, line {first}</summary>",
            "",
            f".. literalinclude:: /../{shown}",
            f"   :language: {language}",
            f"   :lines: {first}-{last}{f',{more}' if more else ''}",
            "",
            ".. raw:: html",
            "",
            "   </details>",
            "",
        ]
    return lines


def page(kernel: Kernel) -> str:
    """The page of a kernel."""
    sources = {name: found for name in BUILTIN if (found := source(name, kernel))}
    return "\n".join(
        [
            *_heading(kernel.name, "="),
            ".. rst-class:: formula",
            "",
            _escaped(kernel.formula),
            "",
            *_facts(kernel, RECORDS[kernel.name], sources),
            ".. py:currentmodule:: plugrad.kernels",
            "",
            f".. autofunction:: {kernel.name}",
            "",
            *_errors(RECORDS[kernel.name]),
            *_measurements(kernel),
            *_listings(sources),
        ]
    )


def index() -> str:
    """The page that lists the kernels."""
    rows = [(_function(k.name), _escaped(k.formula)) for k in KERNELS.values()]
    kinds = [
        (_code(dtype.name), _code(compute.name), _code(compute.name))
        for dtype, compute in ((d, COMPUTE[d]) for d in _dtypes())
    ]
    return "\n".join(
        [
            *_heading("Kernels", "="),
            "``from plugrad import kernels as K``. Each function is pure: it returns new arrays, or writes to ``out``.",
            "The upstream gradient is the first argument, followed by the arrays that the forward pass saved. Options",
            "are keyword-only.",
            "",
            *_table([("kernel", "formula"), *rows], "kernels"),
            *_heading("Dtypes", "-"),
            "Results have the promoted dtype of the floating arguments. Integers are promoted as by NumPy's ``@``;",
            "alone they become float64.",
            "",
            *_table([("arrays", "computed in", "loss"), *kinds], "facts"),
            ".. toctree::",
            "   :hidden:",
            "",
            *(f"   {name}" for name in KERNELS),
            "",
        ]
    )


def _write(app: Sphinx) -> None:
    write(DOCS / "kernels", {"index.rst": index(), **{f"{name}.rst": page(kernel) for name, kernel in KERNELS.items()}})


def _break_title(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Let lines of a title that is the name of a kernel end after an underscore."""
    if name.startswith("kernels/"):
        for title in doctree.findall(nodes.title):
            first, *others = title.astext().split("_")
            parts = [nodes.Text(first)]
            for other in others:
                parts += [nodes.Text("_"), nodes.raw("", "<wbr>", format="html"), nodes.Text(other)]
            title.children = []
            title += parts


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    app.connect("doctree-resolved", _break_title)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
