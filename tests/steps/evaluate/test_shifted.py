"""Fusers fitted on clean images and applied to perturbed ones: scores, their summary, and the page's section."""

import json

import numpy as np
import pandas as pd
import pytest

from clipray.artefacts.robustness import FILE, Embedded, Shifted, address
from clipray.report import files
from clipray.report import robustness as report
from clipray.steps.evaluate.shifted import score
from clipray.steps.robustness import summary
from tests.steps.worlds import BACKBONES, World

FUSERS = ("log_avg", "c_log_avg", "nlc")
PLACE = ["head", "method", "shots", "seed", "metric"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A world, the clean evaluation, and scores: `same` is a copy, `mild` and `hard` hurt alpha alone."""
    world = World(tmp_path_factory.mktemp("world"), test=300)
    task = world.task(fusers=FUSERS)
    clean, _ = world.frames(task)
    generator = np.random.default_rng(1)
    parts = []
    for name, severity, noise in (("same", 1, 0), ("hard", 1, 1), ("hard", 3, 2), ("hard", 5, 9)):
        places = []
        for backbone in BACKBONES:
            kept = world.embeddings["test", backbone]
            hurt = noise if backbone == "alpha" else 0
            world.embeddings["test", backbone] = kept + hurt * generator.normal(size=kept.shape)
            world.write("test", backbone)
            place = f"{name}-{severity}-{backbone}"
            world.store.fs.cp(
                f"{world.store.root}/e-test-{backbone}",
                f"{world.store.root}/{place}",
                recursive=True,
            )
            places.append(place)
            world.embeddings["test", backbone] = kept
            world.write("test", backbone)
        parts.append(Embedded(name, severity, tuple(places), 300, False))
    shifted = Shifted(task, tuple(parts))
    place = address(world.store, shifted)
    score(world.store, shifted, place)
    return world, clean, world.store.read_table(f"{place}/{FILE}")


def values(frame: pd.DataFrame) -> pd.Series:
    return frame.set_index(PLACE)["value"].sort_index()


def test_clean_rows_are_those_of_the_campaign_and_a_copy_scores_as_the_clean_images(scored):
    _, campaign, table = scored
    frame = table.to_pandas()
    clean, same = (values(frame[frame["perturbation"] == name]) for name in ("none", "same"))
    assert (clean == same).all()
    known = values(campaign)
    shared = clean[clean.index.get_level_values("metric").isin(["top1", "nll", "complementarity"])]
    assert len(shared) == 37
    assert shared.to_numpy() == pytest.approx(known[shared.index].to_numpy())
    gains = clean[clean.index.get_level_values("metric") == "gain_on_test"]
    assert gains.to_numpy() == pytest.approx(known[gains.index].to_numpy())


def test_a_hurt_backbone_falls_alone_and_a_calibrated_fuser_does_not_know(scored):
    frame = scored[2].to_pandas()
    top1 = frame[frame["metric"] == "top1"]
    falls = [
        top1[(top1["method"] == "single/alpha") & (top1["severity"] == severity)]["value"].iloc[-1]
        for severity in (0, 1, 3, 5)
    ]
    assert falls == sorted(falls, reverse=True)
    assert falls[0] - falls[-1] > 0.3
    for name in ("beta", "gamma"):
        assert top1[top1["method"] == f"single/{name}"]["value"].nunique() == 1
    oracle = top1[top1["method"] == "oracle"].groupby("severity")["value"].max()
    for method in ("log_avg", "single/alpha", "best_single_on_test"):
        own = top1[top1["method"] == method].groupby("severity")["value"].max()
        assert (own <= oracle).all()
    weights = frame[frame["metric"] == "weight"]
    assert set(weights["method"]) == {f"nlc/{name}" for name in BACKBONES}
    each = weights.groupby(["perturbation", "severity", "shots", "seed"])["value"].sum()
    assert each.to_numpy() == pytest.approx(1)


def test_summary_of_a_table_worked_by_hand():
    rows = []
    top1 = {
        "none": {0: (0.8, 0.5)},
        "jpeg": {1: (0.4, 0.5), 5: (0.2, 0.3)},
        "invert": {1: (0.8, 0)},
    }
    for perturbation, severities in top1.items():
        for severity, pair in severities.items():
            for name, value in zip("ab", pair, strict=True):
                row = {"dataset": "d", "head": "zero_shot", "shots": 0, "seed": 0, "value": value}
                row |= {"perturbation": perturbation, "severity": severity, "metric": "top1"}
                rows.append(row | {"method": f"single/{name}", "kind": "single"})
                follow = {"method": f"f/{name}", "kind": "measure", "metric": "followed"}
                rows.append(row | follow)
    frame = pd.DataFrame(rows)
    joined = summary.table(frame)
    means = summary.by_method(joined).set_index("method")
    # jpeg: (0.5 + 0.75) / 2 and (0 + 0.4) / 2; invert: 0 and 1; every perturbation counts the same
    assert means["relative_drop"].tolist() == pytest.approx([0.3125, 0.6])
    assert means["relative_robustness"].tolist() == pytest.approx([0.6875, 0.4])
    told = summary.summary(frame)
    assert told["best_on_clean"] == "a"
    assert told["best_by_perturbation"] == {"invert": "a", "jpeg": "b"}
    assert told["another_is_best"] == 1
    assert summary.by_severity(frame)["severity"].max() == 5
    (row,) = told["noticed"]
    assert row["correlation"] == pytest.approx(1), "it follows each just as its top-1 moves"


def test_the_page_has_the_section_and_its_numbers(scored):
    world, campaign, table = scored
    frame = table.to_pandas()
    told = summary.summary(frame)
    told |= {"by_severity": {"top1": summary.by_severity(frame).to_dict("records")}}
    means = summary.best_backbones(summary.table(frame), told["head"])
    told |= {"by_perturbation": means.reset_index().to_dict("records")}
    report.write(world.store, "reports/x", table, summary.table(frame), told, {"made": b"\xff"})
    import pyarrow as pa

    from clipray import schema

    scores = pa.Table.from_pandas(campaign, schema=schema.SCORES, preserve_index=False)
    made = files.write(world.store, "x", scores, schema.FAILURES.empty_table(), {})
    page = world.store.read("reports/x/report.html").decode()
    assert made["report"].endswith("reports/x/report.html")
    assert page.count('<h2 id="robustness">') == 1
    assert "data:image/jpeg;base64,/w==" in page
    for sentence in report.sentences(told):
        assert sentence.replace("'", "&#39;") in page
    csv = pd.read_csv(world.store.place("reports/x/robustness.csv"))
    assert len(csv) == len(summary.table(frame))
    assert json.loads(world.store.read("reports/x/robustness.json"))["sheets"] == ["made"]
    assert report.section(world.store, "reports/none") is None
