"""What accuracy costs: stored rows of single backbones, subsets and cascades → a curve and its Pareto front."""

from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from clipray.report import summary

KINDS = ("single", "subset", "full", "cascade")


class Point(NamedTuple):
    """One way to use the backbones, mean over the datasets.

    Attributes:
        kind: of `KINDS`.
        members: the backbones; of a cascade in the order in which they run.
        threshold: of a cascade; else None.
        top1, gflops: means over datasets; low, high: the interval over images where there is one dataset, else None.
        on_front: whether none of the points is as cheap and more accurate, or as accurate and cheaper.
    """

    kind: str
    members: tuple[str, ...]
    threshold: float | None
    top1: float
    gflops: float
    low: float | None
    high: float | None
    on_front: bool = False


class Share(NamedTuple):
    """A share of support images, mean over datasets, with its 95 % interval over these images."""

    value: float
    low: float
    high: float


class Choice(NamedTuple):
    """Which backbones a support set would choose: on how many datasets, and how sure it was (means over them).

    Attributes:
        top1: of the backbones fused. oracle: of images that any of them has right; None where it is not known.
    """

    size: int
    members: tuple[str, ...]
    shots: int
    datasets: int
    best_in: float
    top1: Share
    oracle: Share | None
    gflops: float


def curve(scores: pa.Table, head: str, shots: int) -> list[Point]:
    """The points that every dataset has, from the cheapest up, fused without labels.

    A head that learns has its own logits at each number of shots; one that does not has them at 0.

    Args:
        scores: `schema.SCORES`.
        head: whose logits are fused.
        shots: of the points.
    """
    frame = summary.clean(scores)
    frame = frame[(frame["head"] == head) & (frame["shots"] == shots) & (frame["seed"] == 0)]
    own = frame["method"].str.partition("/")[0].isin(["single", "subset", "cascade"])
    frame = frame[own & frame["metric"].isin(["top1", "gflops"])]
    datasets = frame["dataset"].nunique()
    values = frame.pivot_table(index=["method", "dataset"], columns="metric", values="value")
    if not {"top1", "gflops"} <= set(values.columns):
        return []
    points = []
    backbones = frame[frame["method"].str.startswith("single/")]["method"].nunique()
    for method, part in values.dropna().groupby("method"):
        if len(part) == datasets:
            low, high = _interval(frame, method) if datasets == 1 else (None, None)
            means = (float(part["top1"].mean()), float(part["gflops"].mean()))
            points.append(Point(*_read(method, backbones), *means, low, high))
    only_singles = all(point.kind == "single" for point in points)
    return [] if only_singles else _front(points)


class Spent(NamedTuple):
    """A method of the leaderboard and what it takes per image: milliseconds and megabytes of weights."""

    method: str
    kind: str
    top1: float
    latency_ms: float
    memory_mb: float


def spent(scores: pa.Table, head: str, shots: int) -> list[Spent]:
    """Single backbones, and fusers at a number of shots or without labels, whose latency and memory are known."""
    frame = summary.clean(scores)
    frame = frame[(frame["head"] == head) & frame["shots"].isin([0, shots])]
    frame = frame[frame["kind"].isin(["single", "fuser"])]
    frame = frame[frame["metric"].isin(["top1", "latency_ms", "memory_mb"])]
    keys = ["method", "kind", "shots"]
    wide = frame.pivot_table(index=keys, columns="metric", values="value").reset_index()
    if not {"latency_ms", "memory_mb"} <= set(wide.columns):
        return []
    wide = wide.dropna().sort_values(["shots", "method"]).drop_duplicates("method", keep="last")
    columns = ["method", "kind", "top1", "latency_ms", "memory_mb"]
    return [Spent(*row) for row in wide[columns].itertuples(index=False)]


def choices(scores: pa.Table, head: str, shots: int) -> list[Choice]:
    """For each size the subset that the support sets of most datasets choose."""
    frame = summary.clean(scores)
    frame = frame[(frame["head"] == head) & (frame["shots"] == shots)]
    frame = frame[frame["method"].str.startswith("choice/")]
    if frame.empty:
        return []
    every = []
    for method, part in frame.groupby("method"):
        members = tuple(method.split("/")[1:])
        own = dict(iter(part.groupby("metric")))
        oracle = _share(own["support_oracle"]) if "support_oracle" in own else None
        best_in, gflops = (float(own[key]["value"].mean()) for key in ("best_in", "gflops"))
        top1, datasets = _share(own["support_top1"]), part["dataset"].nunique()
        choice = Choice(len(members), members, shots, datasets, best_in, top1, oracle, gflops)
        every.append(choice)
    every.sort(key=lambda one: (one.size, -one.datasets, -one.best_in))
    return [one for i, one in enumerate(every) if not i or every[i - 1].size != one.size]


def _share(rows: pd.DataFrame) -> Share:
    """The mean of the datasets' shares; their intervals are put together as those of independent samples.

    The distance from the mean to each bound is the root of the sum of the datasets' squared distances, over their
    number (Zou and Donner 2008, "Construction of confidence limits about effect measures"). One dataset keeps its own.
    """
    value, count = rows["value"], len(rows)
    down = float(((value - rows["ci_low"]) ** 2).sum() ** 0.5) / count
    up = float(((rows["ci_high"] - value) ** 2).sum() ** 0.5) / count
    mean = float(value.mean())
    return Share(mean, mean - down, mean + up)


def _read(method: str, backbones: int) -> tuple[str, tuple[str, ...], float | None]:
    """Kind, members and threshold, from a method's name."""
    first, *members = method.split("/")
    if first == "cascade":
        return first, tuple(members[1:]), float(members[0])
    full = first == "subset" and len(members) == backbones
    return "full" if full else first, tuple(members), None


def _interval(frame: pd.DataFrame, method: str) -> tuple[float, float]:
    row = frame[(frame["method"] == method) & (frame["metric"] == "top1")].iloc[0]
    return float(row["ci_low"]), float(row["ci_high"])


def _front(points: list[Point]) -> list[Point]:
    marked, best = [], -1.0
    for point in sorted(points, key=lambda one: (one.gflops, -one.top1)):
        marked.append(point._replace(on_front=point.top1 > best))
        best = max(best, point.top1)
    return marked
