"""Stored scores → the numbers that the report shows. Accuracies and gains are fractions here; points when shown."""

import math
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from clipray.report.gains import Gain, clean, gain, synergies

ON_SUPPORT = "best_single_on_support"
ON_TEST = "best_single_on_test"
ORACLE = "oracle"
ALONE, ALONE_ON_TEST = "alone/", "alone_on_test/"  # in front of a fuser's name: on one backbone
COMPARED = ("fuser", "control")  # the kinds whose gain over a single backbone is shown
SUPPORT = (
    "short_classes",
    "support_sets",
    "seeds",
)  # measures of support sets, of all methods alike


class Row(NamedTuple):
    """One line of the leaderboard: a method at a number of shots."""

    head: str
    method: str
    kind: str  # of `schema.KINDS`, without measures
    shots: int  # labelled images per class; 0: none needed
    datasets: int
    seeds: int
    top1: float  # mean over datasets of the mean over seeds
    top1_std: float | None  # over seeds, of the mean over datasets; None with one seed
    on_support: Gain | None  # over the best single backbone picked on the same support set
    on_test: Gain | None  # over the best single backbone picked on the test set itself
    synergy: Gain | None = None  # over itself on one backbone with the same labels


def per_dataset(scores: pa.Table) -> pd.DataFrame:
    """Top-1 of each (head, method, shots, dataset), and its gains over the best single backbones.

    Returns:
        columns `head, method, kind, shots, dataset, top1` (mean over seeds), `low, high` (least and greatest seed),
        `seeds`, `on_support`, `on_test` (differences of top-1; NaN where there is nothing to compare with).
    """
    frame = clean(scores)
    frame = frame[(frame["metric"] == "top1") & (frame["kind"] != "measure")]
    keys = ["head", "method", "kind", "shots", "dataset"]
    table = (
        frame.groupby(keys)["value"]
        .agg(top1="mean", low="min", high="max", seeds="count")
        .reset_index()
    )
    place = ["head", "shots", "dataset"]
    support = table[table["method"] == ON_SUPPORT].set_index(place)["top1"]
    test = table[table["method"] == ON_TEST].set_index(place)["top1"]
    here = pd.MultiIndex.from_frame(table[place])
    zero = pd.MultiIndex.from_frame(table[place].assign(shots=0))
    table["on_support"] = table["top1"].to_numpy() - support.reindex(here).to_numpy()
    best = test.reindex(here).fillna(pd.Series(test.reindex(zero).to_numpy(), index=here))
    table["on_test"] = table["top1"].to_numpy() - best.to_numpy()
    return table


def leaderboard(scores: pa.Table) -> list[Row]:
    """Every method at every number of shots, by head, then from the best mean top-1 down."""
    table = per_dataset(scores)
    spread, together = _seed_spread(scores), synergies(scores)
    rows = []
    for (head, method, kind, shots), group in table.groupby(["head", "method", "kind", "shots"]):
        rows.append(
            Row(
                head,
                method,
                kind,
                int(shots),
                len(group),
                int(group["seeds"].max()),
                float(group["top1"].mean()),
                spread.get((head, method, shots)),
                gain(group["on_support"]) if kind in COMPARED else None,
                None if method == ON_TEST else gain(group["on_test"]),
                together.get((head, method, int(shots))),
            )
        )
    return sorted(rows, key=lambda row: (row.head, -row.top1, row.method, row.shots))


def _seed_spread(scores: pa.Table) -> dict[tuple, float]:
    """(head, method, shots) → deviation over seeds of the mean over datasets.

    A dataset with one support set, because all seeds drew the same, has that one for every seed.
    """
    frame = clean(scores)
    frame = frame[frame["metric"] == "top1"]
    spread = {}
    for key, part in frame.groupby(["head", "method", "shots"]):
        wide = part.pivot_table(index="dataset", columns="seed", values="value")
        alone = wide.notna().sum(axis=1) == 1
        wide[alone] = wide[alone].bfill(axis=1).ffill(axis=1)
        means = wide.dropna(axis=1).mean()
        if len(means) > 1 and not alone.all():
            spread[key] = float(means.std(ddof=1))
    return spread


def backbones(scores: pa.Table) -> list[str]:
    """The backbones' names, from the most accurate down."""
    table = per_dataset(scores)
    means = (
        table[table["kind"] == "single"]
        .groupby("method")["top1"]
        .mean()
        .sort_values(ascending=False)
    )
    return [method.removeprefix("single/") for method in means.index]


def best_fused(rows: list[Row], shots: int | None = None) -> Row | None:
    """The fuser's row with the greatest gain: over the reference with labels, over the best on test without."""
    fused = [row for row in rows if row.kind == "fuser" and (shots is None or row.shots == shots)]
    return max(
        fused, key=lambda row: compared(row).mean if compared(row) else -math.inf, default=None
    )


def compared(row: Row) -> Gain | None:
    """The gain that is fair to a method: the reference had the same labels, or, without any, the test set itself."""
    return row.on_support if row.shots else row.on_test


def short_classes(scores: pa.Table) -> pd.DataFrame:
    """`dataset, shots, value`: how many classes have fewer images than shots, where some have."""
    frame = of_support(scores)
    frame = frame[(frame["metric"] == "short_classes") & (frame["value"] > 0)]
    return frame[["dataset", "shots", "value"]].reset_index(drop=True)


def of_support(scores: pa.Table) -> pd.DataFrame:
    """The rows that say how large and how many the support sets are."""
    frame = clean(scores)
    return frame[frame["metric"].isin(SUPPORT)]


def percent(fraction: float | None) -> str:
    """An accuracy in percent, one decimal."""
    return "–" if fraction is None or math.isnan(fraction) else f"{fraction * 100:.1f}"


def pair_means(scores: pa.Table, metric: str, head: str) -> pd.DataFrame:
    """A pair measure, mean over datasets, as a matrix: row a, column b of `pair/<a>/<b>`; NaN where not given."""
    frame = clean(scores)
    frame = frame[
        (frame["metric"] == metric) & (frame["head"] == head) & (frame["kind"] == "measure")
    ]
    names = backbones(scores)
    known = {f"pair/{a}/{b}": (a, b) for a in names for b in names}
    matrix = pd.DataFrame(math.nan, index=names, columns=names, dtype=float)
    for method, value in frame.groupby("method")["value"].mean().items():
        if method in known:
            matrix.loc[known[method]] = value
    return matrix


def measures_of_set(scores: pa.Table, metric: str, head: str) -> dict[str, float]:
    """dataset → a measure of the whole set of backbones."""
    frame = clean(scores)
    frame = frame[
        (frame["metric"] == metric) & (frame["head"] == head) & (frame["method"] == "set")
    ]
    return frame.groupby("dataset")["value"].mean().to_dict()


def alike_names(scores: pa.Table) -> dict[str, tuple[float, str]]:
    """dataset → the greatest share of class names that a backbone's text tower cannot tell apart, and the backbone."""
    frame = clean(scores)
    frame = frame[(frame["metric"] == "alike_names") & (frame["value"] > 0)].sort_values(
        "value", kind="stable"
    )
    last = frame.groupby("dataset").tail(1)
    names = last["method"].str.removeprefix("single/")
    return dict(zip(last["dataset"], zip(last["value"], names, strict=True), strict=True))


def counts(scores: pa.Table) -> pd.DataFrame:
    """dataset → `n_scored` and `n_expected`, the greatest stated."""
    return clean(scores).groupby("dataset")[["n_scored", "n_expected"]].max()
