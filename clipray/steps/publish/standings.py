"""Scores of many datasets → how methods stand over all of them: mean ranks, and gain against complementarity."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clipray import schema

LEAST = 3  # datasets from which on a rank or a correlation says anything


def standings(scores: pa.Table) -> pa.Table:
    """Compute the standings (`schema.STANDINGS`) of stored scores.

    At each number of shots the methods with that many labels are ranked together with those that need none, on the
    datasets that have a score of each. Bounds are left out, for they see test labels, and so are
    methods on one backbone: they stand beside their fusers as `synergy`.
    """
    from clipray.report.gains import synergies
    from clipray.report.summary import measures_of_set, per_dataset

    table, rows = per_dataset(scores), []
    table = table[~table["kind"].isin(["bound", "alone"])]
    together = synergies(scores)
    for (head, shots), _ in table.groupby(["head", "shots"]):
        here = table[(table["head"] == head) & table["shots"].isin([0, shots])]
        here = here.sort_values("shots").drop_duplicates(["method", "dataset"], keep="last")
        share = measures_of_set(scores, "complementarity", head)
        for row in _rows(here, share):
            found = together.get((head, row["method"], shots))
            if found:
                row |= {"synergy": found.mean, "synergy_low": found.low, "synergy_high": found.high}
            rows.append({"head": head, "shots": shots, **row})
    return pa.Table.from_pylist(rows, schema=schema.STANDINGS)


def _rows(table: Any, share: dict[str, float]) -> Iterator[dict]:
    """Make the rows of one head and number of shots; `table` as `per_dataset` gives it."""
    import torch

    from clipray.numerics.measures import ranks

    top1 = table.pivot(index="dataset", columns="method", values="top1").dropna(axis=0)
    if len(top1) < LEAST or top1.shape[1] < 2:
        return
    found = ranks.ranks(torch.tensor(top1.to_numpy()))
    for method, rank in zip(top1.columns, found.mean_rank, strict=True):
        own = table[table["method"] == method].set_index("dataset")
        gains = own["on_support" if own["shots"].max() else "on_test"].dropna()
        gains = gains[[dataset in share for dataset in gains.index]]
        row = {"method": method, "datasets": len(top1), "methods": top1.shape[1], "mean_rank": rank}
        row |= {"friedman_p": found.p, "critical_difference": found.critical_difference}
        if len(gains) >= LEAST and gains.std() > 0:
            shares = torch.tensor([share[dataset] for dataset in gains.index])
            tied = ranks.correlation(torch.tensor(gains.to_numpy()), shares)
            row |= {
                "correlation": tied.value,
                "correlation_low": tied.low,
                "correlation_high": tied.high,
            }
        yield row
