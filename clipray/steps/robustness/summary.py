"""Scores under shift → tables and sentences: what drops, which backbone is best where, whether the fusion notices."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch

from clipray.numerics.measures import ranks
from clipray.perturbations import CLEAN

ENOUGH = 0.05  # of top-1: a drop relative to less is noise
KEYS = ["head", "method", "kind", "shots"]
FOLLOWED = "followed"


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each (dataset, perturbation, severity, method), with what is left of the clean top-1.

    Args:
        frame: `schema.SCORES` rows of clean images and of the same images perturbed.

    Returns:
        columns dataset, perturbation, severity, head, method, kind, shots, top1 (mean over seeds), clean, drop (in
        points of top-1, as a fraction), relative_drop and relative_robustness (null where clean top-1 is nearly 0).
    """
    own = frame[frame["metric"] == "top1"]
    keys = ["dataset", "perturbation", "severity", *KEYS]
    means = own.groupby(keys, as_index=False)["value"].mean().rename(columns={"value": "top1"})
    clean = means[means["perturbation"] == CLEAN].rename(columns={"top1": "clean"})
    joined = means.merge(clean[["dataset", *KEYS, "clean"]], on=["dataset", *KEYS])
    joined["drop"] = joined["clean"] - joined["top1"]
    known = joined["clean"].where(joined["clean"] > ENOUGH)
    joined["relative_drop"] = joined["drop"] / known
    joined["relative_robustness"] = joined["top1"] / known
    return joined


def perturbed(joined: pd.DataFrame) -> pd.DataFrame:
    """Leave the clean rows out."""
    return joined[joined["perturbation"] != CLEAN]


def by_method(joined: pd.DataFrame) -> pd.DataFrame:
    """Return, by method, clean top-1, mean top-1 under shift, mean relative drop and mean relative robustness.

    Every perturbation counts the same, whatever the number of its severities; so does every dataset.
    """
    numbers = ["clean", "top1", "relative_drop", "relative_robustness"]
    each = perturbed(joined).groupby([*KEYS, "dataset", "perturbation"])[numbers].mean()
    return each.groupby(KEYS).mean().reset_index()


def by_severity(frame: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Return a metric by severity and method, over the perturbations that have several; severity 0 is clean."""
    own = frame[frame["metric"] == metric]
    levels = own.groupby("perturbation")["severity"].nunique()
    graded = set(levels[levels > 1].index) | {CLEAN}
    own = own[own["perturbation"].isin(graded)]
    means = own.groupby([*KEYS, "severity", "dataset"])["value"].mean()
    return means.groupby([*KEYS, "severity"]).mean().reset_index()


def best_backbones(joined: pd.DataFrame, head: str) -> pd.DataFrame:
    """Return mean top-1 by perturbation (rows; clean too) and single backbone (columns), over datasets."""
    own = joined[(joined["kind"] == "single") & (joined["head"] == head)]
    means = own.groupby(["perturbation", "method", "dataset"])["top1"].mean()
    wide = means.groupby(["perturbation", "method"]).mean().unstack("method")
    return wide.rename(columns=lambda name: name.removeprefix("single/"))


def agreements(joined: pd.DataFrame, head: str) -> list[dict[str, Any]]:
    """Compare backbones by the order in which perturbations hurt them: Kendall and Spearman, with intervals."""
    own = perturbed(joined)
    own = own[(own["kind"] == "single") & (own["head"] == head)]
    profile = own.groupby(["perturbation", "method"])["relative_drop"].mean().unstack("method")
    profile = profile.dropna()
    if len(profile) < 3:
        return []
    found = []
    for one, other in combinations(profile.columns, 2):
        pair = [torch.from_numpy(profile[name].to_numpy().copy()) for name in (one, other)]
        kendall, spearman = ranks.agreement(*pair)
        names = [name.removeprefix("single/") for name in (one, other)]
        found.append(
            {
                "backbones": names,
                "kendall": list(kendall),
                "spearman": list(spearman),
                "perturbations": len(profile),
            }
        )
    return found


def noticed(frame: pd.DataFrame, metric: str = FOLLOWED) -> list[dict[str, Any]]:
    """Tell whether a fuser turns to the backbones that withstand a perturbation.

    Of each (dataset, perturbation, severity): each backbone's change of top-1, less the mean change of all, against
    the change of how often the fuser gives its answer ("followed"), or of its weight ("weight").

    Returns:
        by head, fuser and shots, Pearson's `correlation` of the two over all of these: above 0 where the fuser turns to
        those that hold.
    """
    keys = ["dataset", "perturbation", "severity", "head"]
    singles = frame[(frame["kind"] == "single") & (frame["metric"] == "top1")].copy()
    singles["backbone"] = singles["method"].str.removeprefix("single/")
    right = singles.groupby([*keys, "backbone"])["value"].mean()
    moves = frame[frame["metric"] == metric].copy()
    if moves.empty:
        return []
    moves[["fuser", "backbone"]] = moves["method"].str.rsplit("/", n=1, expand=True)
    mean = moves.groupby([*keys, "fuser", "shots", "backbone"])["value"].mean()
    pairs = mean.rename("move").reset_index().merge(right.rename("top1").reset_index())
    clean = pairs[pairs["perturbation"] == CLEAN]
    on = ["dataset", "head", "fuser", "shots", "backbone"]
    pairs = perturbed(pairs).merge(clean[[*on, "move", "top1"]], on=on, suffixes=("", "_clean"))
    part = [*keys, "fuser", "shots"]
    for name in ("move", "top1"):
        pairs[name] -= pairs[f"{name}_clean"]
        pairs[name] -= pairs.groupby(part)[name].transform("mean")
    found = []
    for (head, fuser, shots), own in pairs.groupby(["head", "fuser", "shots"]):
        if own["move"].abs().max() > 0 and own["top1"].abs().max() > 0:
            value = float(np.corrcoef(own["move"], own["top1"])[0, 1])
            place = {"head": head, "fuser": fuser, "shots": int(shots)}
            found.append(place | {"by": metric, "correlation": value})
    return found


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers that a reader asks for first, for the first head (`zero_shot` where it is one)."""
    joined = table(frame)
    heads = list(dict.fromkeys(joined["head"]))
    head = "zero_shot" if "zero_shot" in heads else heads[0]
    means = best_backbones(joined, head)
    best = means.idxmax(axis=1)
    changed = best.drop(CLEAN) != best[CLEAN]
    methods = by_method(joined)
    methods = methods[(methods["head"] == head)]
    return {
        "head": head,
        "perturbations": len(changed),
        "best_on_clean": best[CLEAN],
        "best_by_perturbation": best.drop(CLEAN).to_dict(),
        "another_is_best": int(changed.sum()),
        "methods": methods.to_dict("records"),
        "agreements": agreements(joined, head),
        "noticed": [*noticed(frame), *noticed(frame, "weight")],
    }
