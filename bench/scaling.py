"""How far several processes go: the bytes of a step, and a model of the time of a step on networks.

The model is no measurement. It has the time to compute a step on one rank, divided by the ranks, and for each message
the time of an allreduce: ``2 ceil(log2 N) latency + 2 (N - 1) / N bytes / bandwidth``. Nothing overlaps, and no rank is
late.
"""

import math
from typing import Any

# Gbit/s -> seconds that a small message takes: by the sockets of common Ethernet, by RDMA over 100 and 400 Gbit/s.
NETWORKS = {10: 30e-6, 100: 5e-6, 400: 2e-6}
RANKS = tuple(2**k for k in range(11))

# Two steps on one rank: seconds of computation, messages, and bytes. The seconds are those of ten teraflop/s.
FLOPS = 1e13
ROWS = (65_536, 25_000_000)  # rows of the whole batch, parameters
CLASSES = (16_384, 4_096, 262_144)  # rows, inputs, classes
CHUNKS = 64


def bytes_of_rows(parameters: int) -> int:
    """Return the bytes that a rank gives to `DataParallel.step`: gradients in float32, and the count."""
    return 4 * parameters + 8


def bytes_of_classes(rows: int, inputs: int, chunks: int) -> int:
    """Return those of `linear_cross_entropy_value_and_grad`: a maximum, two sums and `dx` of each row, one number."""
    return 4 * (rows + 2 * rows + chunks + rows * inputs)


def bytes_of_comparison(ranks: int) -> int:
    """Return those of the comparison of arguments."""
    return 8 * (3 + 2 * ranks)


def seconds_of(ranks: int, gigabits: int, compute: float, messages: int, size: float) -> float:
    """Return the time of a step by the model."""
    if ranks == 1:
        return compute
    steps = 2 * math.ceil(math.log2(ranks))
    return (
        compute / ranks + messages * steps * NETWORKS[gigabits] + 2 * (ranks - 1) / ranks * size / (gigabits / 8 * 1e9)
    )


def steps() -> dict[str, tuple[float, int, float]]:
    """Return the steps of the model: seconds on one rank, messages and bytes, by name."""
    rows, parameters = ROWS
    layer_rows, inputs, classes = CLASSES
    return {
        f"rows: {rows:,} rows, {parameters // 10**6} million parameters": (
            6 * rows * parameters / FLOPS,
            3,
            bytes_of_rows(parameters),
        ),
        f"classes: {layer_rows:,} rows, {inputs:,} inputs, {classes:,} classes": (
            6 * layer_rows * inputs * classes / FLOPS,
            1 + 3 * CHUNKS,
            bytes_of_classes(layer_rows, inputs, CHUNKS),
        ),
    }


def speedups() -> list[dict[str, Any]]:
    """Return how many times as fast as one rank each number of ranks is, by the model."""
    return [
        {
            "step": name,
            "network": f"{gigabits} Gbit/s",
            "ranks": ranks,
            "speedup": step[0] / seconds_of(ranks, gigabits, *step),
        }
        for name, step in steps().items()
        for gigabits in NETWORKS
        for ranks in RANKS
    ]


def draw(path: str) -> None:
    """Draw the model to an SVG file."""
    import altair as alt
    import vl_convert

    from plugrad.bench.charts import COLOURS  # which imports Altair

    values = alt.Data(values=speedups())
    axis: dict[str, Any] = {"scale": alt.Scale(type="log", base=2)}
    axis["axis"] = alt.Axis(grid=True, gridOpacity=0.4, values=RANKS)
    names = [f"{gigabits} Gbit/s" for gigabits in NETWORKS]
    lines = (
        alt.Chart(width=320, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("ranks:Q", title="ranks", **axis),
            y=alt.Y("speedup:Q", title="times as fast as one rank", **axis),
            color=alt.Color("network:N", sort=names, scale=alt.Scale(domain=names, range=list(COLOURS[:3]))),
        )
    )
    ends = alt.Data(values=[{"ranks": r, "speedup": r} for r in (RANKS[0], RANKS[-1])])
    ideal = alt.Chart(ends).mark_line(strokeDash=[4, 4], color="#888").encode(x="ranks:Q", y="speedup:Q")
    chart = (
        alt.layer(ideal, lines, data=values)
        .facet(column=alt.Column("step:N", title="A model, not a measurement (dashed: as many times as ranks)"))
        .to_dict()
    )
    with open(path, "w") as file:
        file.write(vl_convert.vegalite_to_svg(chart))
