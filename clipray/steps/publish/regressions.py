"""What changed since the last successful campaign of that name, and what of it got worse."""

import functools
import json
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa

from clipray.artefacts import history
from clipray.config import Regression
from clipray.progress import say
from clipray.shots import named
from clipray.steps.publish import compare
from clipray.store import Store

PLACE = ["dataset", "head", "method", "shots"]
JUDGED = (
    "single",
    "fuser",
    "control",
    "reference",
)  # kinds of methods; bounds and measures are none
LOWER_IS_BETTER = ("nll", "brier", "ece_width", "ece_mass", "aurc")
SHOWN = 20  # changes that a message names
WEBHOOK_SECONDS = 10
ARROWS = {"worse": "▼", "better": "▲"}


class Change(NamedTuple):
    """One method on one dataset, then and now.

    Attributes:
        verdict: "worse" or "better": beyond the tolerance and the interval; "same"; "new" or "gone": only one of the
            two campaigns has it.
        before, after: means over the seeds; None where there is none.
        low, high: 95 % interval of after − before; None where it cannot be known any more.
    """

    dataset: str
    head: str
    method: str
    shots: int
    metric: str
    verdict: str
    before: float | None
    after: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        where = f"{self.dataset}: {self.head}:{self.method}@{named(self.shots)} {self.metric}"
        if self.before is None or self.after is None:
            return f"{where} is {self.verdict}"
        interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{where} {self.before:.3f} → {self.after:.3f} ({self.after - self.before:+.3f}{interval})"


def since_last(
    store: Store, folder: str, scores: pa.Table, outcomes: Mapping[str, str], rule: Regression
) -> tuple[history.Entry | None, list[Change]]:
    """Compare with the last publication in which nothing failed; (None, []) where there is none.

    Images that both campaigns scored are compared in pairs: the interval of a change of top-1 is a bootstrap over
    them. Other metrics have the interval of two independent estimates, which is wider. Evaluations that are the same
    artefact have not changed and are not read.

    Args:
        folder: `reports/<campaign>`.
        scores: of now. outcomes: by dataset, the address of its evaluation of now.
    """
    entry = history.last_good(store, folder)
    if entry is None:
        return None, []
    before = history.scores(store, folder, entry)
    changes = list(_changes(store, before, scores, entry.outcomes, outcomes, rule))
    order = {"worse": 0, "better": 1, "gone": 2, "new": 3, "same": 4}
    changes.sort(key=lambda change: (order[change.verdict], *_size(change)))
    return entry, changes


def _size(change: Change) -> tuple:
    both = change.before is not None and change.after is not None
    return (-abs(change.after - change.before) if both else 0.0, change[:5])


def _changes(
    store: Store,
    before: pa.Table,
    after: pa.Table,
    old: Mapping[str, str],
    new: Mapping[str, str],
    rule: Regression,
) -> Iterator[Change]:
    # the rows come dataset by dataset, and many of them want the same two tables
    outcomes = functools.lru_cache(2)(functools.partial(_outcomes, store))
    for metric in rule.metrics:
        pair = [_means(table, metric, rule) for table in (before, after)]
        joined = pair[0].join(pair[1], how="outer", lsuffix="_before", rsuffix="_after")
        for place, row in joined.iterrows():
            dataset = place[0]
            same = dataset in old and old[dataset] == new.get(dataset)
            values = [_number(row[f"value_{when}"]) for when in ("before", "after")]
            if None in values:
                verdict = "new" if values[0] is None else "gone"
                yield Change(*place, metric, verdict, *values)
                continue
            if same or abs(values[1] - values[0]) <= rule.tolerance:
                yield Change(*place, metric, "same", *values)
                continue
            interval = _interval(outcomes, place, metric, row, old, new)
            yield Change(*place, metric, _verdict(metric, values, interval), *values, *interval)


def _means(scores: pa.Table, metric: str, rule: Regression) -> pd.DataFrame:
    """Mean over seeds of a metric of unperturbed test images, and half of its widest interval, by `PLACE`."""
    frame = scores.to_pandas()
    kept = (frame["metric"] == metric) & frame["kind"].isin(JUDGED)
    kept &= (frame["perturbation"] == "none") & (frame["split"] == "test")
    if rule.methods:
        kept &= frame["method"].isin(rule.methods)
    frame = frame[kept].assign(half=lambda rows: (rows["ci_high"] - rows["ci_low"]) / 2)
    return frame.groupby(PLACE)[["value", "half"]].agg({"value": "mean", "half": "max"})


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _verdict(metric: str, values: list[float], interval: tuple) -> str:
    """A change counts if its interval excludes 0; one whose interval nobody knows counts too."""
    low, high = interval
    if low is not None and low <= 0 <= high:
        return "same"
    grew = values[1] > values[0]
    return "worse" if grew == (metric in LOWER_IS_BETTER) else "better"


def _outcomes(store: Store, address: str) -> pa.Table | None:
    """What every method said of the images of an evaluation; None where `jobs.gc` has removed it."""
    try:
        return store.read_table(f"{address}/{compare.OUTCOMES}", compare.COLUMNS)
    except FileNotFoundError:
        return None


def _interval(
    outcomes: Callable, place: tuple, metric: str, row: pd.Series, old: Mapping, new: Mapping
) -> tuple[float | None, float | None]:
    """The 95 % interval of after − before."""
    if metric == "top1":
        paired = _paired(outcomes, place, old, new)
        if paired:
            return paired
    halves = [_number(row["half_before"]), _number(row["half_after"])]
    if None in halves:
        return None, None
    middle, half = (
        row["value_after"] - row["value_before"],
        (halves[0] ** 2 + halves[1] ** 2) ** 0.5,
    )
    return float(middle - half), float(middle + half)


def _paired(
    outcomes: Callable, place: tuple, old: Mapping, new: Mapping
) -> tuple[float, float] | None:
    """The bootstrap interval over the images that both campaigns scored; None where they share none any more."""
    from clipray.numerics.measures.intervals import paired_bootstrap

    dataset, head, method, shots = place
    chosen = compare.Choice(head, method, int(shots))
    means = []
    for places in (old, new):
        table = outcomes(places[dataset])
        if table is None:
            return None
        means.append(compare.mean_correctness(table, chosen))
    shared = sorted(set(means[0]) & set(means[1]))
    if not shared:
        return None
    import torch

    then, now = (torch.tensor([mean[image] for image in shared]) for mean in means)
    found = paired_bootstrap(now, then, compare.RESAMPLES)
    return found.low, found.high


def counts(changes: list[Change]) -> dict[str, int]:
    """How many changes have each verdict."""
    verdicts = [change.verdict for change in changes]
    return {
        verdict: verdicts.count(verdict) for verdict in ("worse", "better", "new", "gone", "same")
    }


def markdown(name: str, entry: history.Entry, changes: list[Change]) -> str:
    """A summary that fits into a chat message."""
    number = counts(changes)
    lines = [
        f"**{name}** against {entry.stamp}: {number['worse']} worse, {number['better']} better, "
        f"{number['new']} new, {number['gone']} gone, {number['same']} the same"
    ]
    told = [change for change in changes if change.verdict in ARROWS]
    lines += [f"- {ARROWS[change.verdict]} {change}" for change in told[:SHOWN]]
    if len(told) > SHOWN:
        lines.append(f"- … and {len(told) - SHOWN} more")
    return "\n".join(lines) + "\n"


def notify(url: str, message: dict[str, Any]) -> None:
    """Post a message as JSON to a webhook. One that does not answer is told and costs no result."""
    data = json.dumps(message, default=str).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
            answer.read()
    except (OSError, ValueError) as error:
        say(f"warning: the webhook of `notify` did not take the message ({error})")
