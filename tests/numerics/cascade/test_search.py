"""Subsets against brute force."""

from itertools import combinations

import pytest
import torch

from clipray.numerics.cascade import curve, search
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS
from tests.numerics.made import problem

COSTS = [4.0, 1.0, 2.5, 3.0]
LOGITS, _, LABELS = problem(images=300, dims=(6, 5, 7, 4), noise=2.0)
RIGHT = LOGITS.argmax(2) == LABELS[:, None]


def log_avg(logits_NMC):
    return FUSERS["log_avg"].apply(State(None), logits_NMC, ())


def test_ten_backbones_have_1023_subsets_and_eleven_too_many():
    assert len(set(search.subsets(10))) == 1023
    with pytest.raises(ValueError, match="11 backbones"):
        search.subsets(11)


def test_subsets_are_fused_as_the_fuser_would(monkeypatch):
    sets = search.subsets(4)
    whole = search.right_of(LOGITS, LABELS, sets)
    for v, members in enumerate(sets):
        assert torch.equal(whole[:, v], log_avg(LOGITS[:, list(members)]).argmax(1) == LABELS)
    monkeypatch.setattr(search, "BLOCK", 7 * len(sets) * 4)
    assert torch.equal(search.right_of(LOGITS, LABELS, sets), whole)


def test_which_two_is_the_best_affordable_pair_with_its_interval():
    found = search.which_backbones(LOGITS, LABELS, COSTS, size=2, max_gflops=6.0)
    afforded = {m for m in combinations(range(4), 2) if COSTS[m[0]] + COSTS[m[1]] <= 6}
    assert {one.members for one in found} == afforded
    accuracy = {
        m: (log_avg(LOGITS[:, list(m)]).argmax(1) == LABELS).float().mean() for m in afforded
    }
    assert found[0].members == max(accuracy, key=accuracy.get)
    for one in found:
        assert one.accuracy.value == pytest.approx(float(accuracy[one.members]))
        assert one.accuracy.low <= one.accuracy.value <= one.accuracy.high <= 1
        assert one.oracle.value >= max(float(RIGHT[:, m].float().mean()) for m in one.members)
    assert sum(one.best_in for one in found) == pytest.approx(1)
    assert found[0].best_in == max(one.best_in for one in found)
    assert search.which_backbones(LOGITS, LABELS, COSTS, max_gflops=0.5) == []
    assert search.which_backbones(LOGITS[:0], LABELS[:0], COSTS) == []


def test_of_equal_pairs_the_cheaper_is_named():
    alike = LOGITS[:, :1].expand(-1, 3, -1)
    found = search.which_backbones(alike, LABELS, [3.0, 1.0, 2.0], size=2)
    assert found[0].members == (1, 2)
    assert found[0].best_in == 1


def _place(point):
    return point.gflops, point.accuracy.value


def test_the_front_is_what_nothing_beats():
    points = curve.curve(LOGITS, LABELS, COSTS)
    for point in points:
        beaten = any(
            other.gflops <= point.gflops
            and other.accuracy.value >= point.accuracy.value
            and _place(other) != _place(point)
            for other in points
        )
        alike = [other for other in points if _place(other) == _place(point)]
        assert any(other.on_front for other in alike) != beaten
        assert sum(other.on_front for other in alike) <= 1
    assert [p.gflops for p in points] == sorted(p.gflops for p in points)
    kinds = [point.kind for point in points]
    assert {k: kinds.count(k) for k in set(kinds)} == {
        "single": 4,
        "subset": 10,
        "full": 1,
        "cascade": 6,
    }


def test_a_cascade_costs_between_its_first_stage_and_all_and_the_full_is_log_avg():
    points = curve.curve(LOGITS, LABELS, COSTS)
    cascades = sorted((p for p in points if p.kind == "cascade"), key=lambda p: p.threshold)
    assert all(p.members == (1, 2, 3, 0) for p in cascades)
    costs = [p.gflops for p in cascades]
    assert costs == sorted(costs)
    assert min(COSTS) <= costs[0] <= costs[-1] <= sum(COSTS)
    (full,) = [p for p in points if p.kind == "full"]
    assert full.accuracy.value == pytest.approx(
        float((log_avg(LOGITS).argmax(1) == LABELS).float().mean())
    )


def test_few_points_for_many_backbones():
    g = torch.Generator().manual_seed(1)
    for backbones in (1, 2, 8, 12):
        logits = torch.randn(100, backbones, 5, generator=g)
        points = curve.curve(logits, torch.arange(100) % 5, [1.0 + m for m in range(backbones)])
        assert len(points) <= 4 * backbones + 6
        assert len(
            {(p.kind, p.members, p.threshold) for p in points if p.kind != "cascade"}
        ) == len([p for p in points if p.kind != "cascade"])
        assert sum(p.kind == "single" for p in points) == backbones
