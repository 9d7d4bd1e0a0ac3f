"""Stored scores → the numbers that the report shows. Accuracies and gains are fractions here; points when shown."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from scipy.special import stdtrit

ON_SUPPORT = "best_single_on_support"
ON_TEST = "best_single_on_test"
ORACLE = "oracle"
COMPARED = ("fuser", "control")  # the kinds whose gain over a single backbone is shown
SUPPORT = (
    "short_classes",
    "support_sets",
    "seeds",
)  # measures of support sets, of all methods alike
NAMED = 5  # datasets that a sentence on failures names
TIE = 0.0005  # differences below half of a tenth of a point are shown as 0.0, and count as ties


class Gain(NamedTuple):
    """A mean difference of top-1 over datasets to a reference, and on how many of them it is one."""

    mean: float
    low: float | None  # 95 % Student interval of the mean over datasets; None with fewer than two
    high: float | None
    wins: int
    ties: int
    losses: int


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


def clean(scores: pa.Table) -> pd.DataFrame:
    """The score rows of unperturbed test images."""
    frame = scores.to_pandas()
    return frame[
        (frame["perturbation"] == "none") & (frame["severity"] == 0) & (frame["split"] == "test")
    ]


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


def gain(differences: Sequence[float] | pd.Series) -> Gain | None:
    """Mean, 95 % Student interval over datasets, wins, ties and losses; None where nothing can be compared."""
    values = pd.Series(differences, dtype=float).dropna()
    if values.empty:
        return None
    mean, low, high = float(values.mean()), None, None
    if len(values) > 1:
        half = float(stdtrit(len(values) - 1, 0.975) * values.std(ddof=1) / math.sqrt(len(values)))
        low, high = mean - half, mean + half
    wins, losses = int((values >= TIE).sum()), int((values <= -TIE).sum())
    return Gain(mean, low, high, wins, len(values) - wins - losses, losses)


def leaderboard(scores: pa.Table) -> list[Row]:
    """Every method at every number of shots, by head, then from the best mean top-1 down."""
    table = per_dataset(scores)
    spread = _seed_spread(scores)
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


def headline(scores: pa.Table, failures: pa.Table | None = None) -> dict:
    """What came out, in plain words and in numbers.

    Args:
        scores: `schema.SCORES`. failures: `schema.FAILURES`; what failed is said last.

    Returns:
        `text` (sentences), and of the best fuser at the most shots `method, head, shots, gain` (a fraction),
        `wins` out of `compared` datasets, `datasets, backbones`; `oracle_gain` where there is an oracle. Without a
        fuser, `text` and the counts.
    """
    rows, names = leaderboard(scores), backbones(scores)
    found: dict = {
        "text": [],
        "backbones": len(names),
        "datasets": max((row.datasets for row in rows), default=0),
    }
    fused = [row for row in rows if row.kind == "fuser"]
    most = max((row.shots for row in fused), default=0)
    best = best_fused(rows, most)
    if best is not None and compared(best) is not None:
        found |= {"method": best.method, "head": best.head, "shots": best.shots}
        gained = compared(best)
        found |= {
            "gain": gained.mean,
            "wins": gained.wins,
            "compared": gained.wins + gained.ties + gained.losses,
        }
        found["text"].append(_sentence(best, len(names)))
        rivals = sum(row.shots == most for row in fused)
        if rivals > 1:
            found["text"].append(
                f"{best.method} is the best of {rivals} fusers there, judged by these very results."
            )
    free = best_fused(rows, 0)
    if most and free is not None and free.on_test is not None:
        found["text"].append(
            f"Without any label, {free.method} {_moves(free.on_test.mean)} "
            f"against the best single backbone of each test set, known only in hindsight."
        )
    oracle = next((row for row in rows if row.method == ORACLE and row.on_test), None)
    if oracle is not None:
        found["oracle_gain"] = oracle.on_test.mean
        found["text"].append(
            f"Choosing the right backbone for every single image, which only an oracle can, would gain "
            f"{points(oracle.on_test.mean)} points: that is how much the backbones complement each other."
        )
    if not found["text"]:
        found["text"].append(
            f"{len(names)} backbones were measured on {found['datasets']} datasets; none was fused."
        )
    if unclear := alike_names(scores):
        worst = max(unclear, key=lambda dataset: unclear[dataset][0])
        share, name = unclear[worst]
        found["text"].append(
            f"On {len(unclear)} of {found['datasets']} datasets some class names are the same to a backbone's text "
            f"tower (most: {percent(share)} % of {worst}, to {name}): zero-shot cannot tell these classes apart."
        )
    found["text"] += _support_sets(scores, found["datasets"])
    found["failed_images"], words = _failures(failures)
    found["text"] += words
    return found


def _support_sets(scores: pa.Table, datasets: int) -> Iterator[str]:
    """What to say of support sets that are smaller, or fewer, than was asked for."""
    short = short_classes(scores)
    if not short.empty:
        worst = short.loc[short["value"].idxmax()]
        yield (
            f"On {short['dataset'].nunique()} of {datasets} datasets some classes have fewer images than shots, and "
            f"give what they have (most: {worst['value']:.0f} classes of {worst['dataset']} at "
            f"{_shots(worst['shots'])})."
        )
    wide = _of_support(scores).pivot_table(
        index=["dataset", "shots"], columns="metric", values="value"
    )
    if {"support_sets", "seeds"} <= set(wide.columns):
        same = wide[wide["support_sets"] < wide["seeds"]].reset_index()
        for shots, part in same.groupby("shots"):
            yield (
                f"At {_shots(shots)} all seeds draw the same images of {', '.join(part['dataset'])}: one support set, "
                "without a spread over seeds."
            )


def short_classes(scores: pa.Table) -> pd.DataFrame:
    """`dataset, shots, value`: how many classes have fewer images than shots, where some have."""
    frame = _of_support(scores)
    frame = frame[(frame["metric"] == "short_classes") & (frame["value"] > 0)]
    return frame[["dataset", "shots", "value"]].reset_index(drop=True)


def _of_support(scores: pa.Table) -> pd.DataFrame:
    """The rows that say how large and how many the support sets are."""
    frame = clean(scores)
    return frame[frame["metric"].isin(SUPPORT)]


def _shots(shots: int) -> str:
    return f"{shots} shot{'s' if shots > 1 else ''}"


def _failures(failures: pa.Table | None) -> tuple[int, list[str]]:
    """How many images failed, and a sentence on each whole that did, and on each backbone that lacks some images."""
    rows = failures.to_pylist() if failures is not None else []
    images = {(row["dataset"], row["split"], row["image_id"]) for row in rows if row["image_id"]}
    words = _wholes([row for row in rows if not row["image_id"]])
    alone = [
        (row["dataset"], row["backbone"]) for row in rows if row["image_id"] and row["backbone"]
    ]
    for dataset, backbone in sorted(set(alone)):
        number = alone.count((dataset, backbone))
        words.append(
            f"{number} images of {dataset} have no embedding of {backbone}: they are in no method's score."
        )
    return len(images), words


def _wholes(rows: list[dict]) -> list[str]:
    """A sentence for each backbone, or the datasets themselves, and each reason to leave them out."""
    places: dict[tuple, dict[str, None]] = {}
    for row in rows:
        who = (row["backbone"], row["error"].rstrip("."))
        places.setdefault(who, {})[row["dataset"] or "every dataset"] = None
    words = []
    for (backbone, reason), datasets in places.items():
        names = list(datasets)
        more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
        where = ", ".join(names[:NAMED]) + more
        verb = "is" if len(names) == 1 else "are"
        who = f"{backbone} is left out of {where}" if backbone else f"{where} {verb} left out"
        words.append(f"{who}: {reason}.")
    return words


def _sentence(best: Row, backbones: int) -> str:
    against = compared(best)
    labels = (
        f"at {best.shots} labelled image{'s' if best.shots > 1 else ''} per class"
        if best.shots
        else "without labels"
    )
    picked = (
        "picked with the same labels" if best.shots else "of each test set, known only in hindsight"
    )
    total = against.wins + against.ties + against.losses
    where = "on the one dataset" if total == 1 else f"on average over {total} datasets"
    wins = "all" if against.wins == total else "none" if not against.wins else f"{against.wins}"
    better = "" if total == 1 else f", and is better on {wins} of them"
    return (
        f"Fusing {backbones} backbones with {best.method} {labels} {_moves(against.mean)} of top-1 accuracy "
        f"over the best single backbone ({picked}) {where}{better}."
    )


def _moves(gained: float) -> str:
    return (
        f"gains {points(gained)} points"
        if gained >= 0
        else f"loses {points(-gained).lstrip('+')} points"
    )


def points(fraction: float) -> str:
    """A difference of accuracies in points, signed, one decimal, with a true minus sign."""
    text = f"{abs(fraction) * 100:.1f}"
    return text if text == "0.0" else f"{'+' if fraction > 0 else '−'}{text}"


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
