"""Two methods compared on stored outcomes; scipy's and hand-counted numbers are the authority."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from clipray import schema
from clipray.config import Campaign
from clipray.errors import ConfigError
from clipray.steps.publish import compare
from clipray.store import Store

IDS = [f"{i:03d}" for i in range(40)]


def outcomes(right: dict[tuple[str, int, int], np.ndarray]) -> pa.Table:
    """Rows for (method, shots, seed) → which images it has right, in an order of its own each."""
    rows = []
    for number, ((method, shots, seed), rights) in enumerate(right.items()):
        for i in np.random.default_rng(number).permutation(len(IDS)):
            row = {
                "dataset": "made",
                "head": "zero_shot",
                "method": method,
                "shots": shots,
                "seed": seed,
            }
            rows.append(
                row
                | {"image_id": IDS[i], "label": 1, "prediction": int(rights[i]), "confidence": 0.5}
            )
    return pa.Table.from_pylist(rows, schema=schema.OUTCOMES)


@pytest.fixture
def campaign(tmp_path):
    values = {
        "datasets": ["made"],
        "backbones": ["x"],
        "precision": "fp32",
        "heads": ["zero_shot"],
        "seeds": 2,
    }
    made = Campaign(name="c", workspace=str(tmp_path), **values)
    good, bad = np.arange(40) < 30, (np.arange(40) < 14) | (np.arange(40) > 37)
    right = {("good", 4, 0): good, ("good", 4, 1): good & (np.arange(40) != 3), ("bad", 0, 0): bad}
    store = Store(str(tmp_path))
    store.write_table("evaluations/made-1/outcomes.parquet", outcomes(right))
    place = store.place("evaluations/made-1")
    store.write_json(
        "reports/c/published.json", {"mark": "", "result": {"outcomes": {"made": place}}}
    )
    return made


def test_differences_are_paired_by_image(campaign):
    (row,) = compare.compare(
        campaign, compare.choice("good@4", campaign), compare.choice("bad", campaign)
    )
    assert (row["a"], row["b"], row["images"], row["seeds"]) == ((30 + 29) / 80, 16 / 40, 40, 2)
    assert row["difference"] == pytest.approx(row["a"] - row["b"])
    assert row["low"] <= row["difference"] <= row["high"]
    # 16 images only `good` has right and 2 only `bad`; with seed 1 also 16, for both have image 3 wrong or right alike
    assert stats.binomtest(16, 18).pvalue < 0.05
    assert (row["a_better"], row["b_better"]) == (2, 0)
    (back,) = compare.compare(
        campaign, compare.choice("bad", campaign), compare.choice("good@4", campaign)
    )
    assert (back["difference"], back["a_better"], back["b_better"]) == (
        pytest.approx(-row["difference"]),
        0,
        2,
    )


def test_the_mean_over_datasets_has_scipys_interval():
    differences = [0.1, -0.02, 0.0, 0.07]
    whole = compare.over_datasets([{"difference": value} for value in differences])
    theirs = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (whole.mean, whole.low, whole.high) == pytest.approx((0.0375, theirs.low, theirs.high))
    assert (whole.wins, whole.ties, whole.losses) == (2, 1, 1)
    assert compare.over_datasets([{"difference": 0.1}]).low is None


@pytest.mark.parametrize(
    ("a", "words"),
    [
        ("good@x", r"write a method as \[head:\]method"),
        ("none@4", "zero_shot:none@4; known: .*bad@0"),
    ],
)
def test_what_is_not_there_is_named(campaign, a, words):
    with pytest.raises(ConfigError, match=words):
        compare.compare(campaign, compare.choice(a, campaign), compare.choice("bad", campaign))


def test_nothing_evaluated_yet(campaign, tmp_path):
    other = campaign.model_copy(update={"name": "other"})
    with pytest.raises(ConfigError, match=r"run `python -m jobs\.run` first"):
        compare.compare(other, compare.choice("bad", other), compare.choice("bad", other))
