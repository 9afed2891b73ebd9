"""The results as a page, in one file that needs no network, and as a PNG for each plot."""

import json
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert
from markupsafe import Markup

from plugrad.bench import curves
from plugrad.bench.charts import Plot, plots
from plugrad.bench.curves import Curve
from plugrad.bench.measurements import Results, replace
from plugrad.bench.table import LEGEND, LEGEND_OF_CURVES, Table

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
PNG_WIDTH, PNG_SCALE = 760, 2.0


def write(path: Path, results: Results) -> None:
    """Write the page to a file."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["breakable"] = lambda text: Markup("_<wbr>").join(text.split("_"))
    found = plots(results)
    table = Table(results, {"memory", "accuracy"})
    text = environment.get_template("page.html").render(
        results=results,
        plots=found,
        specifications=_embedded({plot.name: _specification(plot) for plot in found}),
        columns=["kernel", "size", "dtype", *table.columns],
        rows=[[row.case.title, row.case.size, row.case.dtype, *table.cells(row)] for row in results.rows],
        curves=[_cells(curve) for curve in results.curves if len(curve.numbers) > 1],
        crossings=_crossings(results),
        legend=LEGEND,
        legend_of_curves=LEGEND_OF_CURVES,
        kernels=list(dict.fromkeys([*(r.case.name for r in results.rows), *(c.kernel for c in results.curves)])),
        dtypes=list(dict.fromkeys([*(r.case.dtype for r in results.rows), *(c.dtype for c in results.curves)])),
        bundle=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).replace(
            "</script", "<\\/script"
        ),
    )
    replace(path, text)


def write_pictures(folder: Path, results: Results) -> list[Path]:
    """Write the plots to a folder, made if missing; a plot of one kernel at a time becomes a file for each kernel."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(results):
        specification = plot.chart.properties(width=PNG_WIDTH, padding=16, background="white").to_dict()
        parameter = next(given for given in specification["params"] if given["name"] == "kernel")
        for kernel in plot.kernels or ("",):
            parameter["value"] = kernel
            path = folder / f"{'-'.join(filter(None, (plot.name, kernel)))}.png"
            path.write_bytes(vl_convert.vegalite_to_png(specification, vl_version=VEGA_LITE, scale=PNG_SCALE))
            written.append(path)
    return written


def _specification(plot: Plot) -> dict[str, Any]:
    found: dict[str, Any] = plot.chart.properties(width="container").to_dict()
    return found


def _embedded(content: Any) -> str:
    """Return data for a script element, which no text in the data can close."""
    return json.dumps(content).replace("<", "\\u003c")


def _cells(curve: Curve) -> list[str]:
    """Return the row of a curve in the table: the first and the last time, and the exponent."""
    return [
        curve.kernel,
        curve.dtype,
        curve.side,
        curve.against,
        f"{curve.numbers[0]} to {curve.numbers[-1]}",
        f"{curve.seconds[0] * 1e6:.1f}",
        f"{curve.seconds[-1] * 1e6:.1f}",
        curve.shown_exponent,
    ]


def _crossings(results: Results) -> list[list[str]]:
    """Return a row of the table for each point where one of our backends overtakes another."""
    return [
        [kernel, dtype, name, against, f"{number:.0f}"]
        for (kernel, dtype, against), group in curves.groups(results.curves).items()
        if against != "threads"
        for number, name in curves.overtaking(group, results.backends)
    ]
