"""The plots of the results, as Vega-Lite specifications.

Each has the parameters ``kernel`` and ``dtype``, by which a page selects one; empty text selects all of them.
"""

import math
from dataclasses import dataclass
from typing import Any

import altair as alt

from plugrad.bench.curves import AGAINST
from plugrad.bench.measurements import COPY, PRODUCTS, Results

# Colours for colour-blind readers, after Okabe and Ito, "Color universal design", 2008, in tones that are legible on
# white and on black.
COLOURS = ("#2b83ba", "#e07b2a", "#2a9d6f", "#c45a9a", "#8a7a2c", "#7a74c9")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")

_OF_DTYPE = "(dtype == '' || datum.dtype == dtype)"
_CHOSEN = f"{_OF_DTYPE} && (kernel == '' || datum.kernel == kernel)"
_ONE = "(kernel == '' ? '{}' : kernel)"  # for plots in which all kernels together would be illegible

FEW_DECADES = 5  # an axis of so many decades has three numbers in each
NAME_HEIGHT = 20  # of the name above a row, in pixels

# A step is the height of a row, whatever number of sides it has.
_FOR_POSITION: Any = {"for": "position"}

Values = list[dict[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A plot, its title, its text, and the kernels of which it shows one at a time."""

    name: str
    title: str
    text: str
    chart: Any  # an Altair chart
    kernels: tuple[str, ...] = ()


def plots(results: Results) -> list[Plot]:
    """Return the plots for which there are results."""
    found = [_overview(results), _bars(results), _roofline(results)]
    found += [_growth(results, against) for against in AGAINST]
    found += [_accuracy(results)]
    return [plot for plot in found if plot is not None]


def _kernels(values: Values) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value["kernel"] for value in values))


def _parameters() -> list[alt.Parameter]:
    return [alt.param(name="kernel", value=""), alt.param(name="dtype", value="")]


def _scales(results: Results, shown: Values) -> tuple[alt.Color, alt.Shape]:
    """Return a colour and a shape for each side, the same in all plots; the legend has only the sides of this plot."""
    names = [*results.backends, *results.peers]
    there = [i for i, name in enumerate(names) if any(value["side"] == name for value in shown)]
    domain = [names[i] for i in there]
    colours, shapes = ([series[i % len(series)] for i in there] for series in (COLOURS, SHAPES))
    return (
        alt.Color("side:N", title=None, sort=domain, scale=alt.Scale(domain=domain, range=colours)),
        alt.Shape("side:N", title=None, sort=domain, scale=alt.Scale(domain=domain, range=shapes)),
    )


def _along(title: str, values: Values, name: str, padding: int = 12) -> dict[str, Any]:
    """Return a logarithmic axis with a few round numbers, for the field `name` of the values."""
    least, most = (f(value[name] for value in values) for f in (min, max))
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = (1, 2, 5) if high - low <= FEW_DECADES else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    label = "datum.value >= 1e5 ? format(datum.value, '.0e') : format(datum.value, '~g')"
    axis = alt.Axis(title=title, labelExpr=label, values=ticks, labelSeparation=6)
    narrow: dict[str, Any] = {"domain": [least / 3, most * 3]} if most < 2 * least else {}
    return {"scale": alt.Scale(type="log", nice=False, padding=padding, **narrow), "axis": axis}


def _rows(values: Values, name: str, sides: int, height: int) -> tuple[alt.Y, alt.Step]:
    """Return rows with their names above them, which leaves them the whole width, on a telephone too."""
    inner = sides * height
    step = inner + NAME_HEIGHT
    axis = alt.Axis(
        labelAlign="left", labelBaseline="bottom", labelPadding=-4, labelOffset=-inner / 2, labelLimit=1000,
        ticks=False, domain=False, title=None, grid=False,
    )  # fmt: skip
    share = NAME_HEIGHT / step
    order = list(dict.fromkeys(value[name] for value in values))  # the same for any selection
    y = alt.Y(f"{name}:N", sort=order, axis=axis, scale=alt.Scale(paddingInner=share, paddingOuter=share))
    return y, alt.Step(step, **_FOR_POSITION)


def _ratios(results: Results) -> Values:
    return [
        {
            "kernel": row.case.name,
            "dtype": row.case.dtype,
            "case": f"{row.case.size} {row.case.dtype}",
            "side": peer,
            "ratio": row.sides[peer].best / row.sides[results.backends[0]].best,
        }
        for row in results.rows
        for peer in (*results.backends[1:], *results.peers)
        if peer in row.sides
    ]


def _ratio_axis(results: Results, values: Values) -> alt.X:
    ours = results.backends[0]
    title = f"time / time of {ours} (right of 1: {ours} is faster)"
    return alt.X("ratio:Q", **_along(title, values, "ratio", padding=40))


_DASHES = alt.Legend(orient="bottom", symbolType="stroke", symbolSize=400)
_TOOLTIP = [alt.Tooltip("kernel:N"), alt.Tooltip("case:N"), alt.Tooltip("side:N")]


def _one(results: Results, values: Values) -> Any:
    """Return a line where both sides are equally fast."""
    return (
        alt.Chart(alt.Data(values=[{"ratio": 1}]))
        .mark_rule(strokeDash=[4, 3], color="#888")
        .encode(x=_ratio_axis(results, values))
    )


def _overview(results: Results) -> Plot | None:
    values = _ratios(results)
    if not values:
        return None
    colour, shape = _scales(results, values)
    y, step = _rows(values, "kernel", len({value["side"] for value in values}), 9)
    points = (
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=55, opacity=0.8)
        .encode(
            x=_ratio_axis(results, values),
            y=y,
            yOffset=alt.YOffset("side:N", sort=None),
            color=colour,
            shape=shape,
            tooltip=[*_TOOLTIP, alt.Tooltip("ratio:Q", format=".2f")],
        )
        .transform_filter(_CHOSEN)
    )
    chart = alt.layer(_one(results, values), points).properties(height=step).add_params(*_parameters())
    text = "Each point is one size and dtype. Points left of the line are cases in which the other side is faster."
    return Plot("overview", "All kernels against each peer", text, chart)


def _bars(results: Results) -> Plot | None:
    values = _ratios(results)
    if not values:
        return None
    names, first = list(dict.fromkeys(value["side"] for value in values)), values[0]["kernel"]
    colour, _ = _scales(results, values)
    base = alt.Chart(alt.Data(values=[{**value, "one": 1} for value in values])).transform_filter(
        f"{_OF_DTYPE} && datum.kernel == {_ONE.format(first)}"
    )
    y, step = _rows(values, "case", len(names), 15)
    offset = alt.YOffset("side:N", sort=names)
    bars = base.mark_bar(height=11).encode(
        x=_ratio_axis(results, values),
        x2="one:Q",
        y=y,
        yOffset=offset,
        color=colour,
        tooltip=[*_TOOLTIP, alt.Tooltip("ratio:Q", format=".2f")],
    )
    numbers = base.mark_text(align="left", dx=4, fontSize=10).encode(
        x=alt.X("shown:Q"), y=y, yOffset=offset, text=alt.Text("ratio:Q", format=".2f"),
        color=alt.value("#888"),
    ).transform_calculate(shown="max(datum.ratio, 1)")  # fmt: skip
    chart = (
        alt.layer(_one(results, values), bars, numbers)
        .properties(height=step, title=_title(first))
        .add_params(*_parameters())
    )
    text = "The kernel selected above. Bars to the left: the other side is faster."
    return Plot("bars", "One kernel against each peer", text, chart, _kernels(values))


def _title(first: str) -> alt.TitleParams:
    """Return a title with the name of the shown kernel."""
    return alt.TitleParams(text=alt.ExprRef(_ONE.format(first)), anchor="start", fontSize=13)


def _roofs(results: Results) -> dict[str, dict[str, float]]:
    """Return the rates of this machine for each dtype: bytes copied, and operations of products, per second.

    The largest case sets each rate: smaller copies stay in the caches.
    """
    found: dict[str, dict[str, float]] = {}
    for row in sorted(results.rows, key=lambda row: row.case.bytes or row.case.operations):
        if row.bound is not None and (counted := row.case.bytes or row.case.operations):
            name = COPY if COPY in row.sides else PRODUCTS
            found.setdefault(row.case.dtype, {})[name] = counted / row.bound.best
    return found


def _lines_of_roof(dtype: str, roof: dict[str, float], low: float, high: float) -> Values:
    """Return the roof from `low` to `high` operations per byte: bounded by memory first, then by products."""
    bandwidth, peak = roof.get(COPY), roof.get(PRODUCTS)
    if bandwidth and peak:
        ridge = peak / bandwidth
        low, high = min(low, ridge), max(high, ridge)
    else:
        ridge = high if bandwidth else low
    ends = [(COPY, at, bandwidth * at) for at in (low, ridge)] if bandwidth else []
    ends += [(PRODUCTS, at, peak) for at in (ridge, high)] if peak else []
    return [{"roof": name, "dtype": dtype, "intensity": at, "rate": rate / 1e9} for name, at, rate in ends]


def _roofline(results: Results) -> Plot | None:
    values: Values = [
        {
            "kernel": row.case.name,
            "dtype": row.case.dtype,
            "case": f"{row.case.size} {row.case.dtype}",
            "side": name,
            "intensity": row.case.operations / (row.case.bytes or row.case.least_bytes),
            "rate": row.case.operations / row.sides[name].best / 1e9,
        }
        for row in results.rows
        if row.case.operations
        for name in results.backends
    ]
    roofs = _roofs(results)
    if not values or not roofs:
        return None
    low, high = (f(value["intensity"] for value in values) for f in (min, max))
    lines = [line for dtype, roof in roofs.items() for line in _lines_of_roof(dtype, roof, low, high * 1.01)]
    colour, shape = _scales(results, values)
    x = alt.X("intensity:Q", **_along("operations per byte moved at the least", [*values, *lines], "intensity"))
    y = alt.Y("rate:Q", **_along("billion operations per second", [*values, *lines], "rate"))
    rate = alt.Tooltip("rate:Q", format=".3g")
    points = (
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=55, opacity=0.75)
        .encode(x=x, y=y, color=colour, shape=shape, tooltip=[*_TOOLTIP, rate])
        .transform_filter(_CHOSEN)
    )
    roof = (
        alt.Chart(alt.Data(values=lines))
        .mark_line(strokeWidth=2, color="#888")
        .encode(x=x, y=y, detail=["roof:N", "dtype:N"], tooltip=["roof:N", "dtype:N", rate])
        .transform_filter(_OF_DTYPE)
    )
    labels = (
        alt.Chart(alt.Data(values=[{**line, "label": f"{line['roof']}, {line['dtype']}"} for line in lines[1::2]]))
        .mark_text(align="right", dx=-4, dy=-7, fontSize=10, color="#888")
        .encode(x=x, y=y, text="label:N")
        .transform_filter(_OF_DTYPE)
    )
    texts = {COPY: "copying {:.0f} GB/s", PRODUCTS: "matrix products {:.0f} billion operations per second"}
    rates = "; ".join(
        f"{dtype}: {', '.join(texts[name].format(rate / 1e9) for name, rate in best.items())}"
        for dtype, best in roofs.items()
    )
    text = (
        f"The grey lines are the rates of this machine in the same run, with the largest arrays ({rates}). Small cases "
        f"lie far below, since the call takes longer than the work; cases that fit in a cache may lie above."
    )
    chart = alt.layer(roof, points, labels).properties(height=380).add_params(*_parameters())
    return Plot("roofline", "Roofline", text, chart)


def _growth(results: Results, against: str) -> Plot | None:
    curves = [curve for curve in results.curves if curve.against == against and len(curve.numbers) > 1]
    if not curves:
        return None
    values = [
        {
            "kernel": curve.kernel,
            "dtype": curve.dtype,
            "case": f"{size} {curve.dtype}",
            "side": curve.side,
            "number": number,
            "us": seconds * 1e6,
            "exponent": curve.shown_exponent,
        }
        for curve in curves
        for size, number, seconds in zip(curve.sizes, curve.numbers, curve.seconds, strict=True)
    ]
    colour, shape = _scales(results, values)
    first = curves[0].kernel
    several = len({value["dtype"] for value in values}) > 1
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=alt.OverlayMarkDef(size=45))
        .encode(
            strokeDash=alt.StrokeDash("dtype:N", title=None, legend=_DASHES if several else None),
            x=alt.X("number:Q", **_along(against, values, "number")),
            y=alt.Y("us:Q", **_along("time, µs", values, "us")),
            color=colour,
            shape=shape,
            tooltip=[*_TOOLTIP, alt.Tooltip("us:Q", format=".4g"), "exponent:N"],
        )
        .transform_filter(f"{_OF_DTYPE} && datum.kernel == {_ONE.format(first)}")
        .properties(height=300, title=_title(first))
        .add_params(*_parameters())
    )
    text = (
        "The kernel selected above. Both axes are logarithmic: a straight line is a power, whose exponent is in the "
        "table below."
    )
    return Plot(f"growth-{against}", f"Time against {against}", text, chart, _kernels(values))


_LEAST_ULP = 0.1


def _accuracy(results: Results) -> Plot | None:
    values = [
        {
            "kernel": row.case.name,
            "dtype": row.case.dtype,
            "case": f"{row.case.size} {row.case.dtype}",
            "side": name,
            "ns": row.sides[name].best * 1e9 / row.case.elements,
            "ulp": "infinite" if ulp == float("inf") else f"{ulp:.3g}",
            "shown": min(max(ulp, _LEAST_ULP), 1e9),
        }
        for row in results.rows
        for name in (*results.backends, *results.peers)
        if name in row.sides and (ulp := row.sides[name].ulp) is not None
    ]
    if not values:
        return None
    colour, shape = _scales(results, values)
    chart = (
        alt.Chart(alt.Data(values=values))
        .mark_point(filled=True, size=55, opacity=0.75)
        .encode(
            x=alt.X("ns:Q", **_along("time per element, ns (left: faster)", values, "ns")),
            y=alt.Y("shown:Q", **_along("largest error, ulp (below: more exact)", values, "shown")),
            color=colour,
            shape=shape,
            tooltip=[*_TOOLTIP, "ulp:N", alt.Tooltip("ns:Q", format=".3g")],
        )
        .transform_filter(_CHOSEN)
        .properties(height=340)
        .add_params(*_parameters())
    )  # fmt: skip
    text = (
        "The largest error in units in the last place, against the same numbers in float64: of each element where the "
        "kernel promises it, otherwise of the largest. Errors below 0.1 are drawn at 0.1, infinite ones at 1e9. Of "
        "float64 there is no more exact result, and steps of training are not compared."
    )
    return Plot("accuracy", "Accuracy and speed", text, chart)
