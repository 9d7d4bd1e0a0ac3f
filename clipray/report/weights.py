"""How fusers weigh the backbones from image to image: stored weights → a chart, two tables, and words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from clipray.report import canvas, summary
from clipray.report.canvas import MUTED, PAPER, RULE, SERIES, Chart, styled
from clipray.report.summary import Row

METRICS = (
    "weight",
    "weight_p10",
    "weight_p50",
    "weight_p90",
    "weight_where_right",
    "weight_where_wrong",
)


class Weighed(NamedTuple):
    """The weights of one backbone over images, as shares of 1, means over datasets and draws.

    Attributes:
        mean: over images. low, middle, high: the 10th, 50th and 90th of 100 images.
        right: the mean over images that the backbone alone has right; wrong: over the others.
    """

    backbone: str
    mean: float
    low: float
    middle: float
    high: float
    right: float
    wrong: float


class Weighing(NamedTuple):
    """One fuser, at its greatest number of shots."""

    method: str
    shots: int
    backbones: list[Weighed]

    @property
    def follows(self) -> float:
        """How much higher a backbone's weight is where it is right, mean over backbones; NaN where nothing tells."""
        gaps = np.array([one.right - one.wrong for one in self.backbones])
        gaps = gaps[np.isfinite(gaps)]
        return float(gaps.mean()) if len(gaps) else float("nan")


def section(scores: pa.Table, rows: Sequence[Row], head: str) -> dict[str, Any]:
    """Everything that the page shows of weights; empty where no fuser weighs image by image.

    Args:
        rows: the leaderboard, whose order of methods is kept.
    """
    frame = summary.clean(scores)
    frame = frame[frame["metric"].isin(METRICS) & (frame["head"] == head)]
    shots = {row.method: 0 for row in rows if row.head == head}
    for row in rows:
        if row.head == head:
            shots[row.method] = max(shots[row.method], row.shots)
    found = [one for method, most in shots.items() if (one := _weighing(frame, method, most))]
    if not found:
        return {}
    first = found[0]
    return {
        "methods": found,
        "first": first,
        "chart": chart(first),
        "datasets": _by_dataset(frame, first),
        "words": _words(found),
    }


def _weighing(frame: pd.DataFrame, method: str, shots: int) -> Weighing | None:
    own = frame[frame["method"].str.startswith(f"{method}/") & (frame["shots"] == shots)]
    if own.empty:
        return None
    means = own.groupby(["method", "metric"])["value"].mean().unstack().reindex(columns=METRICS)
    names = means.index.str.removeprefix(f"{method}/")
    every = [Weighed(name, *row) for name, row in zip(names, means.to_numpy(), strict=True)]
    return Weighing(method, shots, sorted(every, key=lambda one: -one.mean))


def _by_dataset(frame: pd.DataFrame, first: Weighing) -> list[tuple[str, list[float]]]:
    """List for each dataset the mean weight of each backbone, in the order of `first`."""
    own = frame[(frame["metric"] == "weight") & (frame["shots"] == first.shots)]
    means = own.groupby(["dataset", "method"])["value"].mean().unstack()
    means = means.reindex(columns=[f"{first.method}/{one.backbone}" for one in first.backbones])
    return [(name, list(row)) for name, row in zip(means.index, means.to_numpy(), strict=True)]


def _words(found: Sequence[Weighing]) -> str:
    """Say whether weights move, and whether they move to backbones that are right."""
    first = found[0]
    widest = max(first.backbones, key=lambda one: one.high - one.low)
    said = (
        f"{first.method} gives {widest.backbone} between {100 * widest.low:.0f} and {100 * widest.high:.0f} % of the"
        " weight on eight of ten images."
    )
    if not np.isfinite(first.follows):
        return said
    points = 100 * first.follows
    return said + (
        f" Where a backbone is right, its weight is {abs(points):.1f} points"
        f" {'higher' if points >= 0 else 'lower'} than where it is wrong (mean over backbones)."
    )


class Mark(NamedTuple):
    """A mark in the chart: the field of `Weighed` that it shows, its shape, its colour and its name."""

    field: str
    shape: str
    colour: str
    label: str


MARKS = (
    Mark("middle", "|", MUTED, "median"),
    Mark("right", "o", SERIES[0], "mean where it is right"),
    Mark("wrong", "s", SERIES[1], "mean where it is wrong"),
)


def chart(found: Weighing) -> Chart:
    """Draw each backbone's weights: a bar for eight of ten images, and `MARKS`."""
    every = found.backbones[::-1]
    places = np.arange(len(every))
    low, high = (np.array([100 * getattr(one, end) for one in every]) for end in ("low", "high"))
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 0.9 + 0.34 * len(every))
        axes.use_sticky_edges = False  # bars do not touch the axis
        axes.barh(places, high - low, left=low, height=0.5, color=RULE)
        for mark in MARKS:
            values = [100 * getattr(one, mark.field) for one in every]
            how = {"color": mark.colour, "markerfacecolor": PAPER, "markeredgewidth": 1.4}
            axes.plot(values, places, mark.shape, markersize=6, label=mark.label, **how)
        axes.axvline(100 / len(every), color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(places, [one.backbone for one in every])
        axes.set_ylim(-0.6, len(every) - 0.4)
        axes.set_xlabel("weight, %")
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
        most = found.backbones[0]
        alt = (
            f"Weights that {found.method} gives to {len(every)} backbones. Most: {most.backbone},"
            f" {100 * most.mean:.0f} percent on average, {100 * most.low:.0f} to {100 * most.high:.0f} on eight of ten"
            " images."
        )
        return Chart.of(figure, "weights", alt)
