"""Draw the figure of confident-rows.md: ``python docs/explanation/confident_rows.py``."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from plugrad import backends, kernels as K

CLASSES = 10
MARGINS = np.linspace(0, 40, 161, dtype=np.float32)
PLUGRAD = "plugrad"


def losses() -> dict[str, Any]:
    """The loss in float32 of each formula, for rows whose first logit, the right one, is the margin, the others 0."""
    x = np.zeros((MARGINS.size, CLASSES), np.float32)
    x[:, 0] = MARGINS
    shifted = x - x.max(axis=1, keepdims=True)
    with backends.use("numpy"):
        accurate, _ = K.softmax_cross_entropy(x, np.zeros(MARGINS.size, int), reduction="none")
    return {
        "log Σ exp(x) − x_t": np.log(np.exp(x).sum(axis=1)) - x[:, 0],
        "the maximum subtracted first": np.log(np.exp(shifted).sum(axis=1)) - shifted[:, 0],
        PLUGRAD: accurate,
    }


def exact() -> Any:
    """The loss in float64, accurate relative to itself."""
    return np.log1p((CLASSES - 1) * np.exp(-MARGINS.astype(np.float64)))


def errors() -> dict[str, Any]:
    """The error of each formula relative to the exact loss."""
    return {name: abs(loss - exact()) / exact() for name, loss in losses().items()}


def draw(file: Path) -> None:
    """Write the figure as SVG, in colours that are readable on light and on dark pages."""
    import matplotlib

    matplotlib.use("svg")
    grey = "#808080"
    for part in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"):
        matplotlib.rcParams[part] = grey
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "plugrad",
        "font.size": 11,
        "font.family": "sans-serif",
    }
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    styles = (
        {"color": "#e08214", "lw": 1.8},
        {"color": "#8073ac", "lw": 1.8},
        {"color": "#1b9e77", "lw": 4, "zorder": 1},
    )
    for style, (name, loss), error in zip(styles, losses().items(), errors().values(), strict=True):
        left.plot(MARGINS, np.where(loss > 0, loss, np.nan), label=name, **style)
        right.plot(MARGINS, np.maximum(error, 1e-9), label=name, **style)
    left.set(title="loss", yscale="log")
    right.set(title="relative error", yscale="log")
    for axes in (left, right):
        axes.set_xlabel("margin of the right logit")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    figure.savefig(file, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("confident-rows.svg"))
