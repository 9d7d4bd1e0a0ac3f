"""How methods stand over datasets: scipy and hand-made scores are the authority."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from clipray import schema
from clipray.steps.publish.standings import standings

# top-1 of each dataset; gains of `good` over the reference: 0.1, 0.2, 0.3, 0.2
TOP1 = {
    ("best_single_on_support", 1): [0.5, 0.4, 0.3, 0.6],
    ("good", 1): [0.6, 0.6, 0.6, 0.8],
    ("free", 0): [0.4, 0.5, 0.2, 0.1],
    ("oracle", 0): [0.9, 0.9, 0.9, 0.9],
}
SHARE = [0.1, 0.2, 0.4, 0.1]


KINDS = {"best_single_on_support": "reference", "oracle": "bound", "set": "measure"}


def table(rows) -> pa.Table:
    rows = [row | {"kind": KINDS.get(row["method"], "fuser")} for row in rows]
    constants = {"split": "test", "perturbation": "none", "severity": 0, "head": "h", "seed": 0}
    return pa.Table.from_pylist([constants | row for row in rows], schema=schema.SCORES)


def rows():
    for (method, shots), values in TOP1.items():
        for number, value in enumerate(values):
            yield {
                "dataset": f"d{number}",
                "method": method,
                "shots": shots,
                "metric": "top1",
                "value": value,
            }
    for number, value in enumerate(SHARE):
        yield {
            "dataset": f"d{number}",
            "method": "set",
            "shots": 0,
            "metric": "complementarity",
            "value": value,
        }


def test_ranks_are_friedmans_and_bounds_have_none():
    found = {(row["method"], row["shots"]): row for row in standings(table(rows())).to_pylist()}
    assert {method for method, _ in found} == {"best_single_on_support", "good", "free"}
    assert found["good", 1]["mean_rank"] == 1
    assert found["best_single_on_support", 1]["mean_rank"] == (2 + 3 + 2 + 2) / 4
    assert found["free", 1]["mean_rank"] == (3 + 2 + 3 + 3) / 4
    expected = stats.friedmanchisquare(*(TOP1[key] for key in list(TOP1)[:3])).pvalue
    assert found["good", 1]["friedman_p"] == pytest.approx(expected)
    assert (found["good", 1]["datasets"], found["good", 1]["methods"]) == (4, 3)


def test_gain_and_complementarity_are_correlated_over_datasets():
    (row,) = [row for row in standings(table(rows())).to_pylist() if row["method"] == "good"]
    assert row["correlation"] == pytest.approx(np.corrcoef([0.1, 0.2, 0.3, 0.2], SHARE)[0, 1])
    assert row["correlation_low"] <= row["correlation"] <= row["correlation_high"]


def test_a_dataset_that_lacks_a_method_is_not_ranked():
    some = [row for row in rows() if (row["dataset"], row["method"]) != ("d3", "good")]
    assert {row["datasets"] for row in standings(table(some)).to_pylist() if row["shots"] == 1} == {
        3
    }
    few = [row for row in rows() if row["dataset"] in ("d0", "d1")]
    assert len(standings(table(few))) == 0
