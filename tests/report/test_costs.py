"""The section on costs, from rows whose front can be told by hand."""

import pytest
from made_scores import ABOUT, campaign, failures, row, table

from clipray.report import costs, render

POINTS = {  # method: (top-1 on two datasets, GFLOPs on both)
    "single/rn-32": ((0.5, 0.7), (1.0, 1.0)),
    "single/rn-48": ((0.5, 0.6), (2.0, 2.0)),
    "subset/rn-32/rn-48": ((0.8, 0.8), (3.0, 3.0)),
    "cascade/0.9/rn-32/rn-48": ((0.7, 0.8), (1.5, 2.5)),
}


def rows(datasets=("dtd", "pets")):
    made = []
    for method, (top1, gflops) in POINTS.items():
        kind = "single" if method.startswith("single") else "measure"
        for dataset, accuracy, cost in zip(datasets, top1, gflops, strict=False):
            made.append(row(dataset, method, 0, 0, "top1", accuracy, kind=kind))
            made.append(row(dataset, method, 0, 0, "gflops", cost, kind=kind))
    return made


def test_the_curve_is_of_means_over_datasets():
    points = {"/".join((p.kind, *p.members)): p for p in costs.curve(table(rows()), "zero_shot", 0)}
    assert [p.gflops for p in points.values()] == [1, 2, 2, 3]
    assert points["single/rn-32"].top1 == pytest.approx(0.6)
    assert points["cascade/rn-32/rn-48"].threshold == 0.9
    assert points["full/rn-32/rn-48"].top1 == pytest.approx(0.8)
    fronts = {name: p.on_front for name, p in points.items()}
    assert fronts.pop("single/rn-48") is False
    assert all(fronts.values())


def test_what_one_dataset_lacks_is_no_point_and_one_dataset_has_intervals():
    lacking = [one for one in rows() if (one["dataset"], one["method"][:7]) != ("pets", "cascade")]
    assert "cascade" not in {p.kind for p in costs.curve(table(lacking), "zero_shot", 0)}
    (first, *_) = costs.curve(table(rows(("dtd",))), "zero_shot", 0)
    assert (first.low, first.high) == (pytest.approx(0.48), pytest.approx(0.52))


def test_without_costs_there_is_no_section_and_with_them_there_is():
    plain = render(campaign(datasets=2), failures(), ABOUT)
    assert "What it costs" not in plain
    assert costs.curve(campaign(datasets=2), "zero_shot", 0) == []
    kept = [
        one
        for one in campaign(datasets=2).to_pylist()
        if not one["method"].startswith("single/rn-")
    ]
    chosen = [
        row("dtd", f"choice/{name}", 16, 0, metric, value, kind="measure")
        for name, sure in (("rn-32", 0.4), ("rn-32/rn-48", 1.0))
        for metric, value in (("best_in", sure), ("support_top1", 0.72), ("gflops", 3.0))
    ]
    page = render(table([*kept, *rows(("dtd", "eurosat")), *chosen]), failures(), ABOUT)
    assert "What it costs" in page
    assert "rn-32 → rn-48" in page
    assert "Which backbones, if one can afford so many?" in page
    assert '72.0 <span class="quiet">70.0 to 74.0</span>' in page
    assert (
        "The front starts at rn-32 with 60.0 percent for 1 GFLOPs and ends at rn-32 + rn-48" in page
    )


def test_a_choice_is_that_of_most_datasets():
    made = []
    for dataset, name in (("a", "x/y"), ("b", "x/y"), ("c", "y/z")):
        for metric, value in (("best_in", 0.5), ("support_top1", 0.7), ("gflops", 3.0)):
            made.append(row(dataset, f"choice/{name}", 4, 0, metric, value, kind="measure"))
    (chosen,) = costs.choices(table(made), "zero_shot", 4)
    assert (chosen.size, chosen.members, chosen.datasets) == (2, ("x", "y"), 2)
    assert chosen.oracle is None  # older scores have none


def test_the_interval_of_a_choice_is_that_of_a_mean_of_independent_samples():
    """Two sets of equal shares are one sample of twice the size, whose interval is narrower by the root of 2."""
    made = []
    for dataset in ("a", "b"):
        for metric, value in (("best_in", 0.5), ("gflops", 3.0), ("support_oracle", 0.9)):
            made.append(row(dataset, "choice/x/y", 4, 0, metric, value, kind="measure"))
        bounds = {"ci_low": 0.6, "ci_high": 0.75}
        made.append(row(dataset, "choice/x/y", 4, 0, "support_top1", 0.7, kind="measure", **bounds))
    (chosen,) = costs.choices(table(made), "zero_shot", 4)
    wanted = (0.7, 0.7 - 0.1 / 2**0.5, 0.7 + 0.05 / 2**0.5)
    assert chosen.top1 == pytest.approx(wanted)
    assert chosen.oracle.value == pytest.approx(0.9)
    (alone,) = costs.choices(table(made[:4]), "zero_shot", 4)
    assert alone.top1 == pytest.approx((0.7, 0.6, 0.75))


def test_what_methods_take_is_of_the_most_labels_and_known_figures_alone():
    made = []
    for method, shots, top1, ms in (
        ("log_avg", 0, 0.6, 2.0),
        ("nlc", 1, 0.5, 2.1),
        ("nlc", 4, 0.7, 2.2),
    ):
        values = {"top1": top1, "latency_ms": ms, "memory_mb": 10 * ms}
        made += [row("a", method, shots, 0, metric, value) for metric, value in values.items()]
    made.append(row("a", "single/x", 0, 0, "top1", 0.4))  # its cost is not known
    found = {one.method: one for one in costs.spent(table(made), "zero_shot", 4)}
    assert set(found) == {"log_avg", "nlc"}
    assert (found["nlc"].top1, found["nlc"].latency_ms) == (0.7, 2.2)
    page = render(table([*made, *rows(("a",))]), failures(), ABOUT)
    assert "Top-1 of 2 methods against milliseconds and megabytes. Most accurate: nlc" in page
