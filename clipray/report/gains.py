"""Differences of accuracies over datasets, with intervals: gains over a reference, and synergy (fused − alone)."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import stdtrit

METRIC = "synergy_over_draws"  # a row per dataset; its interval is over images and support sets
FEW = 5  # datasets below which an interval over them says little
RESAMPLES, NORMAL = 10_000, 1.959964  # half the width of a 95 % interval, in standard deviations
TIE = 0.0005  # differences below half of a tenth of a point are shown as 0.0, and count as ties


class Gain(NamedTuple):
    """A mean difference of top-1 over datasets to a reference, and on how many of them it is one."""

    mean: float
    low: float | None  # 95 % Student interval of the mean over datasets; None with fewer than two
    high: float | None
    wins: int
    ties: int
    losses: int


def clean(scores: pa.Table) -> pd.DataFrame:
    """The score rows of unperturbed test images."""
    frame = scores.to_pandas()
    return frame[
        (frame["perturbation"] == "none") & (frame["severity"] == 0) & (frame["split"] == "test")
    ]


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


def over_datasets(rows: pd.DataFrame) -> Gain | None:
    """Mean over datasets with its 95 % interval by the hierarchical bootstrap, wins, ties and losses.

    Datasets are drawn with replacement, and each one's own value from the interval that is stored with it, which is
    over its images and support sets. With one dataset that interval is given.

    Args:
        rows: a row per dataset, with `value, ci_low, ci_high`.
    """
    counted = gain(rows["value"])
    if counted is None or len(rows) == 1:
        only = rows.to_dict("records")[:1]
        return counted and counted._replace(low=only[0]["ci_low"], high=only[0]["ci_high"])
    rows = rows.sort_values("dataset")
    values = rows["value"].to_numpy()
    spread = ((rows["ci_high"] - rows["ci_low"]) / (2 * NORMAL)).fillna(0.0).to_numpy()
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(values), size=(RESAMPLES, len(values)))
    drawn = values[chosen] + spread[chosen] * rng.normal(size=chosen.shape)
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    return counted._replace(low=float(low), high=float(high))


def synergies(scores: pa.Table, without: Collection[str] = ()) -> dict[tuple[str, str, int], Gain]:
    """(head, method, shots) → synergy over datasets.

    Args:
        without: datasets to leave out.
    """
    frame = clean(scores)
    frame = frame[(frame["metric"] == METRIC) & ~frame["dataset"].isin(list(without))]
    groups = frame.groupby(["head", "method", "shots"])
    return {(head, method, int(k)): over_datasets(rows) for (head, method, k), rows in groups}


def interval(found: Gain) -> str:
    """`[+0.3, +2.1]` in points, with a warning where it rests on few datasets."""
    number = found.wins + found.ties + found.losses
    if found.low is None:
        return "(no interval: one dataset)"
    words = f"[{points(found.low)}, {points(found.high)}]"
    few = f"only {number} datasets" if number > 1 else "one dataset, its images and support sets"
    return words if number >= FEW else f"{words} ({few})"


def points(fraction: float) -> str:
    """A difference of accuracies in points, signed, one decimal, with a true minus sign."""
    text = f"{abs(fraction) * 100:.1f}"
    return text if text == "0.0" else f"{'+' if fraction > 0 else '−'}{text}"
