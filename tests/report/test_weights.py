"""The section on weights: means worked by hand, and nothing where no fuser weighs image by image."""

import pytest

from clipray.report import contents, summary, weights
from tests.report import made_scores
from tests.report.made_scores import row, table

METRICS = ("weight", "weight_p10", "weight_p50", "weight_p90")


def rows(dataset: str, shots: int, of: dict[str, float], moved: float) -> list[dict]:
    """One fuser's weights: the same for eight of ten images, and higher by `moved` where a backbone is right."""
    made = [row(dataset, "nlc", shots, 0, "top1", 0.5)]
    for name, weight in of.items():
        values = dict.fromkeys(METRICS, weight)
        values |= {"weight_where_right": weight + moved, "weight_where_wrong": weight}
        for metric, value in values.items():
            made.append(row(dataset, f"nlc/{name}", shots, 0, metric, value, kind="measure"))
    return made


def section(made: list[dict]) -> dict:
    scores = table(made)
    return weights.section(scores, summary.leaderboard(scores), "zero_shot")


def test_means_over_datasets_at_the_greatest_number_of_shots():
    made = [
        *rows("a", 4, {"x": 0.6, "y": 0.4}, 0.1),
        *rows("b", 4, {"x": 0.8, "y": 0.2}, 0.3),
        *rows("b", 1, {"x": 0.1, "y": 0.9}, 0.9),
    ]
    found = section(made)
    first = found["first"]
    assert (first.method, first.shots) == ("nlc", 4)
    assert [one.backbone for one in first.backbones] == ["x", "y"]
    assert [one.mean for one in first.backbones] == pytest.approx([0.7, 0.3])
    assert first.follows == pytest.approx(0.2)
    assert "its weight is 20.0 points higher" in found["words"]
    assert dict(found["datasets"]) == {
        "a": pytest.approx([0.6, 0.4]),
        "b": pytest.approx([0.8, 0.2]),
    }


def test_a_backbone_that_is_always_right_has_no_other_images():
    made = [
        one
        for one in rows("a", 1, {"x": 0.6, "y": 0.4}, 0.1)
        if (one["method"], one["metric"]) != ("nlc/x", "weight_where_wrong")
    ]
    assert section(made)["first"].follows == pytest.approx(0.1)


def test_nothing_is_shown_where_no_fuser_weighs_image_by_image():
    scores = table([row("a", "log_avg", 0, 0, "top1", 0.5)])
    shown = contents.contents(scores, made_scores.failures().slice(0, 0), {})
    assert not shown["weights"]
    assert "weights" not in [one.id for one in shown["sections"]]


def test_names_that_begin_alike_are_told_apart():
    made = rows("a", 1, {"x": 0.6, "y": 0.4}, 0.1)
    made += [one | {"method": one["method"].replace("nlc", "nlc-mine")} for one in made]
    found = section(made)
    assert [one.method for one in found["methods"]] == ["nlc", "nlc-mine"]
    assert [len(one.backbones) for one in found["methods"]] == [2, 2]
