"""Stored scores → what the page says of every method: groups of the leaderboard, all metrics, and what filters need."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from clipray.report import tables
from clipray.report.gains import METRIC, clean
from clipray.report.summary import ALONE, ON_SUPPORT, ON_TEST, ORACLE, Row, compared, per_dataset

FEW = 6  # fused methods on the first screen
FEW_OTHERS = 5  # and of every other kind
PERCENT = ("top1", "top5", "balanced_accuracy")
QUALITY = {
    "top5": "top-5, %",
    "balanced_accuracy": "balanced, %",
    "nll": "NLL",
    "brier": "Brier",
    "ece_width": "ECE",
    "aurc": "AURC",
}
SPENT = {"gflops": "GFLOPs", "latency_ms": "ms", "memory_mb": "MB"}
LIVE_NUMBERS = 500_000  # that a page carries for its filter of datasets; with more it has none
IN_WORDS = {
    ORACLE: "right if any backbone is right: a bound on choosing one backbone per image, not on fusing",
    ON_TEST: "the backbone that turns out best on the test set: known only in hindsight",
    ON_SUPPORT: "the backbone that is best on the labelled support images",
}
KINDS = {
    "bound": "Bounds: they see the test labels",
    "fuser": "Fused: what one can use",
    "control": "Controls: few-shot classifiers on all embeddings",
    "alone": "Alone: the same methods with the same labels on one backbone",
    "reference": "Reference",
    "single": "Single backbones",
}

Key = tuple[str, str, int]  # head, method, shots


class Line(NamedTuple):
    """One method of the leaderboard, and its row at each number of shots."""

    method: str
    cells: dict[int, Row]


class Group(NamedTuple):
    """The methods of one kind under one head, from the best down; the first `shown` are on the first screen."""

    head: str
    kind: str
    title: str
    lines: list[Line]
    shown: int


class About(NamedTuple):
    """A method's sentence."""

    id: str
    name: str
    words: str


def board(rows: list[Row]) -> list[Group]:
    """The leaderboard: of each kind first the few that gain most."""
    found: dict[tuple[str, str], list[Line]] = {}
    for head, method, kind, cells in tables.matrix(rows):
        found.setdefault((head, kind), []).append(Line(method, cells))
    groups = []
    for (head, kind), lines in found.items():
        few = FEW if kind == "fuser" else FEW_OTHERS
        few = len(lines) if len(lines) <= few + 2 else few  # a button for two lines is not worth it
        if kind in tables.SHOWN:
            lines.sort(key=lambda line: -_gain(line))
        groups.append(Group(head, kind, KINDS[kind], lines, few))
    return groups


def _gain(line: Line) -> float:
    """The greatest gain over the best single backbone, whatever the number of shots."""
    return max((compared(row).mean for row in line.cells.values() if compared(row)), default=-9.0)


def ids(rows: list[Row]) -> dict[Key, int]:
    """A number for every row."""
    return {(row.head, row.method, row.shots): number for number, row in enumerate(rows)}


def means(scores: pa.Table) -> dict[Key, dict[str, float]]:
    """Every metric of a method, mean over datasets of the mean over seeds."""
    table = _by_dataset(scores, [*QUALITY, *SPENT, "top1"])
    found: dict[Key, dict[str, float]] = {}
    for (head, method, shots, metric), value in table.mean(axis=1).items():
        if value == value:
            found.setdefault((head, method, int(shots)), {})[metric] = float(value)
    return found


def live(scores: pa.Table, rows: list[Row]) -> dict[str, Any] | None:
    """The numbers by dataset that the filters need; None where there are too many for a page, or one dataset."""
    datasets = sorted(clean(scores)["dataset"].unique())
    numbers = ids(rows)
    if len(datasets) < 2 or len(datasets) * len(numbers) * (len(QUALITY) + 5) > LIVE_NUMBERS:
        return None
    found: dict[int, dict[str, list[float | None]]] = {number: {} for number in numbers.values()}
    table = _by_dataset(scores, ["top1", *QUALITY, METRIC]).reindex(columns=datasets)
    for (head, method, shots, metric), values in table.iterrows():
        number = numbers.get((head, method, int(shots)))
        if number is not None:
            found[number]["synergy" if metric == METRIC else metric] = _rounded(values)
    differences = per_dataset(scores)
    for (head, method, shots), part in differences.groupby(["head", "method", "shots"]):
        own = found[numbers[head, method, int(shots)]]
        part = part.set_index("dataset").reindex(datasets)
        for column in ("on_support", "on_test"):
            if part[column].notna().any():
                own[column] = _rounded(part[column])
        if part["kind"].dropna().isin(tables.SHOWN).all():
            own["fair"] = own.get("on_support" if shots else "on_test", [])
    return {"datasets": datasets, "percent": list(PERCENT), "rows": found}


def _by_dataset(scores: pa.Table, metrics: list[str]) -> pd.DataFrame:
    """(head, method, shots, metric) down, datasets across; means over seeds."""
    frame = clean(scores)
    frame = frame[frame["metric"].isin(metrics) & (frame["kind"] != "measure")]
    keys = ["head", "method", "shots", "metric"]
    return frame.pivot_table(index=keys, columns="dataset", values="value")


def _rounded(values: pd.Series) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]


def descriptions(rows: list[Row], given: Mapping[str, str]) -> dict[str, About]:
    """A sentence for each method that has one; a method alone has that of its fuser.

    Args:
        given: method → a sentence, as the campaign's registry of fusers says it.
    """
    known = IN_WORDS | dict(given)
    found = {}
    for method in sorted({row.method for row in rows}):
        name = method.removeprefix("single/")
        fuser = method.removeprefix(ALONE)
        words = known.get(method, "")
        if method.startswith(ALONE) and fuser in known:
            words = f"On one backbone, chosen with the same labels: {known[fuser]}"
        if words:
            slug = re.sub(r"\W", "-", method) + f"-{len(found)}"
            found[method] = About(slug, name, words)
    return found


def as_metric(value: float | None, metric: str) -> str:
    """A metric as tables show it."""
    if value is None or value != value:
        return ""
    if metric in PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.3g}" if metric in SPENT else f"{value:.3f}"


def as_json(value: Any) -> str:
    """JSON that may stand in a page's script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")
