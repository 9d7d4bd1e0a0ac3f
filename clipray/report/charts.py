"""The report's charts of scores; see `canvas` for how they get their colours."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from clipray.report import canvas
from clipray.report.canvas import INK, MARKERS, MUTED, PAPER, RULE, SERIES, Chart, styled
from clipray.report.costs import KINDS, Point, Spent
from clipray.shots import named


class Curve(NamedTuple):
    """Mean top-1 against shots."""

    name: str
    shots: Sequence[int]
    top1: Sequence[float]
    std: Sequence[float]  # over seeds; 0 where there is one


def gains(table: pd.DataFrame, methods: Sequence[str], oracle: pd.Series, against: str) -> Chart:
    """Dots: the gain of a few methods on every dataset, with the range over seeds of the first.

    Args:
        table: `summary.per_dataset` rows of these methods at one number of shots, one head.
        methods: the methods, at most four; datasets are sorted by the first.
        oracle: dataset → the oracle's gain over the same reference.
        against: the column of the gain: `on_support` or `on_test`.
    """
    wide = (
        table.pivot_table(index="dataset", columns="method", values=against).reindex(
            columns=list(methods)
        )
        * 100
    )
    wide = wide.sort_values(methods[0])
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 0.95 + 0.27 * len(wide))
        place = range(len(wide))
        axes.hlines(place, 0, wide[methods[0]], color=SERIES[0], alpha=0.35, linewidth=2)
        first = table[table["method"] == methods[0]].set_index("dataset").reindex(wide.index)
        shift = first[against] - first["top1"]
        axes.hlines(
            place,
            (first["low"] + shift) * 100,
            (first["high"] + shift) * 100,
            color=SERIES[0],
            linewidth=0.9,
        )
        axes.plot(
            oracle.reindex(wide.index) * 100,
            place,
            "|",
            color=MUTED,
            markersize=9,
            label="oracle (bound)",
        )
        for i in reversed(range(len(methods))):
            face = SERIES[i] if i == 0 else PAPER
            axes.plot(
                wide[methods[i]], place, MARKERS[i], color=SERIES[i], markerfacecolor=face, markersize=5.5,
                label=methods[i],
            )  # fmt: skip
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_yticks(list(place), list(wide.index))
        axes.set_ylim(-0.6, len(wide) - 0.4)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_xlabel("gain in top-1, points")
        _legend(axes, len(methods) + 1)
        best, worst = wide[methods[0]].idxmax(), wide[methods[0]].idxmin()
        alt = (
            f"Gain of {', '.join(methods)} over the best single backbone on each of {len(wide)} datasets. "
            f"{methods[0]} gains most on {best} ({wide.loc[best, methods[0]]:+.1f} points) "
            f"and least on {worst} ({wide.loc[worst, methods[0]]:+.1f})."
        )
        return Chart.of(figure, "gains", alt)


def against_shots(curves: Sequence[Curve], levels: Sequence[tuple[str, float]]) -> Chart:
    """Lines: mean top-1 against shots, a band of one standard deviation over seeds; dashed levels need no labels.

    Args:
        curves: at most four methods.
        levels: (name, top-1) of methods and bounds without shots.
    """
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 3.5)
        ends: list[tuple[float, str, str]] = []
        shots = sorted({k for curve in curves for k in curve.shots})
        where = {k: i for i, k in enumerate(shots)}
        for curve, colour, marker in zip(curves, SERIES, MARKERS, strict=False):
            x, y = [where[k] for k in curve.shots], [100 * v for v in curve.top1]
            low, high = (
                [v + s * 100 * d for v, d in zip(y, curve.std, strict=True)] for s in (-1, 1)
            )
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.8)
            ends.append((y[-1], curve.name, colour))
        for name, top1 in levels:
            axes.axhline(100 * top1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
            ends.append((100 * top1, name, MUTED))
        axes.set_xticks(range(len(shots)), [str(named(k)) for k in shots])
        axes.set_xlim(-0.15, len(shots) - 1 + 0.08)
        axes.grid(axis="y", color=RULE, linewidth=0.7)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_xlabel("labelled images per class (shots)")
        axes.set_title("mean top-1, %", loc="left", fontsize=9, color=MUTED)
        _end_labels(axes, ends)
        alt = "Mean top-1 accuracy against shots. " + " ".join(
            f"{curve.name}: {100 * curve.top1[0]:.1f} at {named(curve.shots[0])}, {100 * curve.top1[-1]:.1f} "
            f"at {named(curve.shots[-1])}." for curve in curves
        )  # fmt: skip
        return Chart.of(figure, "shots", alt)


def heat_map(matrix: pd.DataFrame, title: str, name: str, signed: bool) -> Chart:
    """A pair measure as shaded cells with their values; `signed` ones run from −1 to 1, others are percentages."""
    size = len(matrix)
    known = [abs(v) for (a, b), v in matrix.stack().items() if a != b and not math.isnan(v)]
    low, high = (0.0, 1.0) if signed else (min(known, default=0.0), max(known, default=1.0))
    with styled(**{"xtick.labelcolor": INK, "axes.spines.bottom": False}):
        figure, axes = canvas.figure(1.3 + 0.52 * size, 1.2 + 0.44 * size)
        for i in range(size):
            for j in range(size):
                value = matrix.iat[i, j]
                if i == j or math.isnan(value):
                    continue
                shade = 0.1 + 0.8 * (abs(value) - low) / ((high - low) or 1)
                colour = SERIES[1] if signed and value < 0 else SERIES[0]
                axes.add_patch(
                    Rectangle(
                        (j - 0.48, i - 0.46), 0.96, 0.92, facecolor=colour, alpha=shade, linewidth=0
                    )
                )
                text = f"{value:.2f}".replace("-", "−") if signed else f"{100 * value:.0f}"
                ink = PAPER if shade > 0.72 else INK
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8.5)
        axes.set_xticks(
            range(size), list(matrix.columns), rotation=35, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(size), list(matrix.index))
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        cells = matrix.stack()
        cells = cells[[a != b for a, b in cells.index]]
        (a, b), (c, d) = cells.idxmax(), cells.idxmin()
        alt = (
            f"{title} for each pair of {size} backbones, mean over datasets: highest for {a} and {b} "
            f"({cells.max():.2f}), lowest for {c} and {d} ({cells.min():.2f})."
        )
        return Chart.of(figure, name, alt)


def headroom(best: pd.Series, oracle: pd.Series, fused: pd.Series, fuser: str) -> Chart:
    """Bars from the best single backbone to the oracle on each dataset, and where the best fuser stands between."""
    order = (oracle - best).sort_values().index
    best, oracle, fused = (100 * series.reindex(order) for series in (best, oracle, fused))
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 0.95 + 0.27 * len(order))
        place = range(len(order))
        axes.hlines(place, best, oracle, color=SERIES[2], alpha=0.35, linewidth=5)
        axes.plot(oracle, place, "|", color=MUTED, markersize=9, label="oracle (bound)")
        axes.plot(fused, place, "o", color=SERIES[0], markersize=5.5, label=fuser)
        axes.plot(
            best,
            place,
            "|",
            color=SERIES[2],
            markersize=9,
            markeredgewidth=2,
            label="best single on test",
        )
        axes.set_yticks(list(place), list(order))
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="x", color=RULE, linewidth=0.7)
        axes.set_xlabel("top-1, %")
        _legend(axes, 3)
        most = order[-1]
        alt = (
            f"Top-1 of the best single backbone and of the oracle on each of {len(order)} datasets; the distance is "
            f"greatest on {most}: {best[most]:.1f} to {oracle[most]:.1f} percent."
        )
        return Chart.of(figure, "headroom", alt)


def scatter(gain: pd.Series, share: pd.Series, method: str, correlation: str) -> Chart:
    """Dots: the gain of a method on each dataset against the backbones' complementarity there.

    Args:
        gain: dataset → difference of top-1. share: dataset → complementarity. correlation: in words.
    """
    both = pd.DataFrame({"x": 100 * share, "y": 100 * gain}).dropna().sort_values("x")
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 4.2)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.plot(both["x"], both["y"], "o", color=SERIES[0], markersize=5.5)
        for name, (x, y) in both.iterrows():
            axes.annotate(
                name, (x, y), xytext=(4, 3), textcoords="offset points", color=MUTED, fontsize=7.5
            )
        axes.grid(color=RULE, linewidth=0.7)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.margins(x=0.12)
        axes.set_xlabel("complementarity, % of the best backbone's errors")
        axes.set_title(f"gain of {method}, points", loc="left", fontsize=9, color=MUTED)
        alt = f"Gain of {method} against complementarity on {len(both)} datasets. {correlation}"
        return Chart.of(figure, "scatter", alt)


def against_cost(points: Sequence[Point]) -> Chart:
    """Dots: mean top-1 against GFLOPs, a line along the Pareto front; the cost has a logarithmic scale."""
    with styled():
        figure, axes = canvas.figure(canvas.WIDTH, 4.0)
        edge = [point for point in points if point.on_front]
        axes.step(
            [point.gflops for point in edge],
            [100 * point.top1 for point in edge],
            where="post",
            color=MUTED,
            linewidth=1,
        )
        names = {"single": "one backbone", "subset": "some", "full": "all", "cascade": "cascade"}
        for kind, colour, marker in zip(KINDS, SERIES, MARKERS, strict=True):
            own = [point for point in points if point.kind == kind]
            x, y = [point.gflops for point in own], [100 * point.top1 for point in own]
            axes.plot(
                x, y, marker, color=colour, markerfacecolor=colour if kind == "full" else PAPER,
                markersize=5.5, label=names[kind],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.grid(color=RULE, linewidth=0.7)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.set_xlabel("GFLOPs per image")
        axes.set_ylabel("mean top-1, %")
        _legend(axes, 4)
        cheap, dear = edge[0], edge[-1]
        alt = (
            f"Top-1 against GFLOPs of {len(points)} ways to use the backbones. The front starts at "
            f"{' + '.join(cheap.members)} with {100 * cheap.top1:.1f} percent for {cheap.gflops:.3g} GFLOPs "
            f"and ends at {' + '.join(dear.members)} with {100 * dear.top1:.1f} percent for {dear.gflops:.3g}."
        )
        return Chart.of(figure, "cost", alt)


def against_spent(found: Sequence[Spent]) -> Chart:
    """Dots: mean top-1 against milliseconds and against megabytes, side by side, with their Pareto fronts."""
    with styled():
        figure, left = canvas.figure(canvas.WIDTH, 3.0)
        left.remove()
        both = figure.subplots(1, 2, sharey=True)
        for axes, column, words in zip(
            both, ("latency_ms", "memory_mb"), ("ms", "MB"), strict=True
        ):
            points = sorted((getattr(one, column), -one.top1) for one in found)
            edge, best = [], -1.0
            for x, y in points:
                if -y > best:
                    best = -y
                    edge.append((x, 100 * best))
            axes.step(*zip(*edge, strict=True), where="post", color=MUTED, linewidth=1)
            for kind, colour, marker in zip(("single", "fuser"), SERIES, MARKERS, strict=False):
                own = [one for one in found if one.kind == kind]
                axes.plot(
                    [getattr(one, column) for one in own], [100 * one.top1 for one in own], marker, color=colour,
                    markerfacecolor=PAPER, markersize=5, label={"single": "one backbone"}.get(kind, "fused"),
                )  # fmt: skip
            axes.grid(color=RULE, linewidth=0.7)
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.set_xlabel(f"{words} per image" if words == "ms" else f"{words} of weights")
        both[0].set_ylabel("mean top-1, %")
        _legend(both[0], 2)
        best = max(found, key=lambda one: one.top1)
        alt = (
            f"Top-1 of {len(found)} methods against milliseconds and megabytes. Most accurate: {best.method} with "
            f"{100 * best.top1:.1f} percent for {best.latency_ms:.3g} ms and {best.memory_mb:.3g} MB."
        )
        return Chart.of(figure, "spent", alt)


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3 if entries > 4 else entries, frameon=False, borderpad=0,
        handletextpad=0.2, columnspacing=1.4, labelcolor=INK, reverse=True,
    )  # fmt: skip


def _end_labels(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names at the right end of the lines, moved apart where they would touch."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.062
    ends = sorted(ends)
    places = [value for value, _, _ in ends]
    for _ in range(100):
        for i in range(len(places) - 1):
            overlap = gap - (places[i + 1] - places[i])
            if overlap > 1e-9:
                places[i], places[i + 1] = places[i] - overlap / 2, places[i + 1] + overlap / 2
    for place, (_, name, colour) in zip(places, ends, strict=True):
        axes.annotate(
            name, (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", color=colour, annotation_clip=False,
        )  # fmt: skip
