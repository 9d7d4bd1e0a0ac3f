"""What single images say: how far to trust a confidence, which classes are confused, which backbones cover which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipray.report import canvas
from clipray.report.canvas import INK, MUTED, PAPER, RULE, SERIES, Chart, styled

COLUMNS = 14  # of the plot of patterns
TITLES = {
    "one rescues": "One backbone is right, the others are not",
    "fusion rescues": "Fusion is right where every backbone is wrong",
    "fusion loses": "Fusion loses what a backbone had",
    "label?": "All backbones agree against the label: is the label right?",
}


class Step(NamedTuple):
    """One backbone more: the share of images that any of those so far has right."""

    backbone: str
    covered: float
    added: float


def section(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the page shows of single images; empty where none was looked at."""
    if not details:
        return {}
    every = [panel(detail, number) for number, detail in enumerate(details)]
    shares = overlap(details)
    return {
        "panels": every,
        "method": details[0]["method"],
        "shots": details[0]["shots"],
        "upset": upset(shares),
        "order": coverage_order(shares),
        "titles": TITLES,
    }


def panel(detail: dict[str, Any], number: int) -> dict[str, Any]:
    """One dataset's part of the page."""
    kinds: dict[str, list] = {}
    for example in detail["examples"]:
        kinds.setdefault(example["kind"], []).append(example)
    return detail | {"chart": trust(detail, number), "kinds": kinds}


def overlap(details: Sequence[dict[str, Any]]) -> dict[frozenset[str], float]:
    """Which backbones are right together → share of images, mean over datasets."""
    found: dict[frozenset[str], float] = {}
    for detail in details:
        total = sum(count for _, count in detail["patterns"])
        for members, count in detail["patterns"]:
            names = frozenset(detail["backbones"][m] for m in members)
            found[names] = found.get(names, 0.0) + count / total / len(details)
    return found


def coverage_order(shares: dict[frozenset[str], float]) -> list[Step]:
    """Backbones in the greedy order of the images that they add: the first two are the two to keep.

    >>> a, b = frozenset("a"), frozenset("ab")
    >>> [step.backbone for step in coverage_order({a: 0.5, b: 0.2, frozenset("b"): 0.1})]
    ['a', 'b']
    """
    left, kept = sorted(set().union(*shares)), set()
    steps: list[Step] = []
    while left:
        before = steps[-1].covered if steps else 0.0
        covered = {name: _covered(shares, kept | {name}) for name in left}
        best = max(left, key=lambda name: (round(covered[name], 12), -left.index(name)))
        steps.append(Step(best, covered[best], covered[best] - before))
        left.remove(best)
        kept.add(best)
    return steps


def _covered(shares: dict[frozenset[str], float], names: set[str]) -> float:
    return sum(share for members, share in shares.items() if members & names)


def upset(shares: dict[frozenset[str], float]) -> Chart:
    """Bars: the share of images that exactly these backbones have right; below, which they are (Lex et al. 2014)."""
    single = {name: _covered(shares, {name}) for name in sorted(set().union(*shares))}
    names = sorted(single, key=lambda name: single[name])
    most = sorted(shares.items(), key=lambda one: (-one[1], sorted(one[0])))[:COLUMNS]
    with styled():
        figure, bars = canvas.figure(canvas.WIDTH, 2.1 + 0.24 * len(names))
        bars.remove()
        bars, dots = figure.subplots(
            2, 1, sharex=True, height_ratios=[2.1, 0.24 * len(names) + 0.2]
        )
        place = np.arange(len(most))
        bars.bar(place, [100 * share for _, share in most], color=SERIES[0], width=0.62)
        for x, (_, share) in enumerate(most):
            bars.text(x, 100 * share, f"{100 * share:.0f}", ha="center", va="bottom", fontsize=7.5)
        bars.set_title("share of images, %", loc="left", fontsize=9, color=MUTED)
        bars.tick_params(axis="y", labelcolor=MUTED)
        bars.grid(axis="y", color=RULE, linewidth=0.7)
        bars.set_axisbelow(True)
        for x, (members, _) in enumerate(most):
            rows = [y for y, name in enumerate(names) if name in members]
            dots.plot([x] * len(names), range(len(names)), "o", color=RULE, markersize=5)
            dots.plot([x] * len(rows), rows, "o-", color=INK, markersize=5, linewidth=1.4)
        dots.set_yticks(range(len(names)), [f"{name}  {100 * single[name]:.0f}" for name in names])
        dots.set_xticks([])
        dots.set_ylim(-0.6, len(names) - 0.4)
        dots.spines["bottom"].set_visible(False)
        members, share = most[0]
        alt = (
            f"Which of {len(names)} backbones are right together, mean over datasets. Most frequent: "
            f"{', '.join(sorted(members)) or 'none of them'} ({100 * share:.0f} percent of images)."
        )
        return Chart.of(figure, "upset", alt)


def trust(detail: dict[str, Any], number: int) -> Chart:
    """Left: accuracy by confidence, on the diagonal where confidence can be trusted. Right: error by coverage."""
    method, best = detail["method"], detail["best"]
    named = {"fused": method, best: best}
    with styled():
        figure, left = canvas.figure(canvas.WIDTH, 2.5)
        left.remove()
        left, right = figure.subplots(1, 2)
        left.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for colour, marker, (key, name) in zip(SERIES, "os", named.items(), strict=False):
            bins, risk = detail["reliability"][key], detail["risk"][key]
            left.plot(
                [100 * one["confidence"] for one in bins],
                [100 * one["accuracy"] for one in bins],
                color=colour, marker=marker, markersize=4, markerfacecolor=PAPER, linewidth=1.2, label=name,
            )  # fmt: skip
            right.plot(
                [100 * one for one, _ in risk], [100 * error for _, error in risk],
                color=colour, linewidth=1.5,
            )  # fmt: skip
        for axes, across, title in (
            (left, "confidence, %", "accuracy, %"),
            (right, "most confident images, %", "error, %"),
        ):
            axes.set_xlabel(across)
            axes.set_title(title, loc="left", fontsize=9, color=MUTED)
            axes.grid(color=RULE, linewidth=0.7)
            axes.tick_params(axis="y", labelcolor=MUTED)
            axes.set_xlim(0, 100)
        left.set_ylim(0, 100)
        right.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, borderpad=0)
        ends = {key: detail["risk"][key][-1][1] for key in named}
        alt = (
            f"{detail['dataset']}: accuracy by confidence, and error among the most confident images, of {method} "
            f"(error on all images {100 * ends['fused']:.1f} percent) and {best} ({100 * ends[best]:.1f})."
        )
        return Chart.of(figure, f"trust-{number}", alt)
