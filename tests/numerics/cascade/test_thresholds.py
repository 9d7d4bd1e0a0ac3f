"""Thresholds against plain loops, closed forms, and many draws of support sets."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import beta, binomtest

from clipray.numerics.cascade import thresholds
from clipray.numerics.cascade.thresholds import NEVER, Target
from tests.numerics.made import problem

COSTS = (1.0, 3.0, 10.0)


def log_probs(images=400, seed=0):
    """Three stages, the later the better; classes are drawn, not dealt, so that images are independent."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (images,), generator=g)
    own = torch.nn.functional.one_hot(labels, 4).float()
    made, total = [], torch.zeros(images, 4)
    for strength in (1.0, 1.5, 2.5):
        total = total + strength * own + torch.randn(images, 4, generator=g)
        made.append(torch.log_softmax(total, dim=1))
    return made, labels


@pytest.mark.parametrize("levels", [(0.4, 0.9), (0.9, 0.4), (0.0, 0.0), (NEVER, 0.5)])
def test_images_leave_where_a_loop_lets_them_go(levels):
    made, _ = log_probs()
    expected = []
    for row in range(len(made[0])):
        stage = 0
        while stage < 2 and float(made[stage][row].double().max().exp()) < levels[stage]:
            stage += 1
        expected.append(stage)
    stage_N = thresholds.stages(made, levels)
    assert stage_N.tolist() == expected
    left = thresholds.leave(made, levels)
    assert all(torch.equal(left[i], made[s][i]) for i, s in enumerate(expected))


def test_infinite_thresholds_are_the_full_fusion_and_no_threshold_the_first_stage():
    made, _ = log_probs()
    assert torch.equal(thresholds.leave(made, [NEVER, NEVER]), made[-1])
    assert torch.equal(thresholds.leave(made, [0.0, 0.0]), made[0])
    assert torch.equal(thresholds.leave(made[:1], []), made[0])
    certain = [torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-1.0, -0.4]])]
    assert torch.equal(thresholds.leave(certain, [NEVER]), certain[1])


def test_the_upper_limit_is_clopper_s_and_pearson_s():
    for events, images in ((0, 30), (3, 30), (29, 30)):
        exact = binomtest(events, images).proportion_ci(0.8, "exact").high  # two-sided: 10 % above
        assert thresholds.upper_limit(events, images, 0.9) == pytest.approx(exact)
    assert thresholds.upper_limit(30, 30, 0.9) == thresholds.upper_limit(0, 0, 0.9) == 1


def test_too_few_images_promise_nothing_and_just_enough_do():
    needed = thresholds.images_needed(0.05, 0.9)
    assert beta.ppf(0.9, 1, needed) <= 0.05 < beta.ppf(0.9, 1, needed - 1)
    made, labels = log_probs(images=needed)
    made = [made[-1]] * 3  # all stages alike: nobody can be harmed
    enough = thresholds.promise(made, labels, COSTS, Target(max_accuracy_drop=0.05))
    assert enough.kept
    assert (enough.harm, enough.gflops) == (0, 1)
    short = [z[1:] for z in made]
    none = thresholds.promise(short, labels[1:], COSTS, Target(max_accuracy_drop=0.05))
    assert not none.kept
    assert none.thresholds == (NEVER, NEVER)
    assert none.gflops == 10
    assert f"with {needed - 1} support images: it takes {needed}" in none.why
    assert not thresholds.promise(made, labels, COSTS, Target(max_accuracy_drop=0.0)).kept
    nobody = [z[:0] for z in made]
    for target in (Target(max_accuracy_drop=0.1), Target(max_gflops=5.0)):
        assert thresholds.promise(nobody, labels[:0], COSTS, target).images == 0


def test_what_is_promised_is_what_the_support_images_show():
    made, labels = log_probs(seed=3)
    found = thresholds.promise(made, labels, COSTS, Target(max_accuracy_drop=0.05))
    assert found.kept
    cascade = thresholds.leave(made, found.thresholds).argmax(1) == labels
    full = made[-1].argmax(1) == labels
    assert found.harm == pytest.approx(float((full & ~cascade).float().mean()))
    assert found.drop == pytest.approx(float(full.double().mean() - cascade.double().mean()))
    spent = torch.tensor(COSTS)[thresholds.stages(made, found.thresholds)]
    assert found.gflops == pytest.approx(float(spent.mean()))
    assert found.drop <= found.harm <= found.bound <= 0.05


def test_looser_targets_lower_the_threshold_and_the_cost():
    made, labels = log_probs(images=1000, seed=4)
    drops = [0.005, 0.01, 0.03, 0.1, 0.5]
    by_drop = [thresholds.promise(made, labels, COSTS, Target(max_accuracy_drop=d)) for d in drops]
    budgets = [0.5, 1.0, 2.0, 5.0, 10.0]
    by_cost = [thresholds.promise(made, labels, COSTS, Target(max_gflops=b)) for b in budgets]
    for less, more in pairwise(by_drop):
        assert less.thresholds >= more.thresholds
        assert less.gflops >= more.gflops
    for less, more in pairwise(by_cost):
        assert less.thresholds <= more.thresholds
        assert less.gflops <= more.gflops
    assert [p.kept for p in by_cost] == [False, True, True, True, True]
    assert by_cost[-1].thresholds == (NEVER, NEVER)
    assert all(p.gflops <= p.bound <= b for p, b in zip(by_cost[1:], budgets[1:], strict=True))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_promises_are_broken_no_more_often_than_is_said(confidence):
    """300 support sets from a population of 40,000 images of which everything is known."""
    made, labels = log_probs(images=40_000, seed=5)
    sure = [thresholds.confidence(z) for z in made]
    right = torch.stack([z.argmax(1) == labels for z in made])
    harm, cost = {}, {}
    for level in thresholds.LADDER:
        stage_N = torch.where(sure[0] >= level, 0, torch.where(sure[1] >= level, 1, 2))
        mine = right.gather(0, stage_N[None])[0]
        harm[level] = float((right[2] & ~mine).float().mean())
        cost[level] = float(torch.tensor(COSTS)[stage_N].mean())
    g = torch.Generator().manual_seed(6)
    drop, budget = 0.04, 4.0
    broken = {"drop": 0, "cost": 0}
    sets = 300
    kept = 0
    for _ in range(sets):
        rows = torch.randint(len(labels), (200,), generator=g)
        some = [z[rows] for z in made]
        accuracy = thresholds.promise(some, labels[rows], COSTS, Target(drop, None, confidence))
        dear = thresholds.promise(some, labels[rows], COSTS, Target(None, budget, confidence))
        broken["drop"] += harm[accuracy.thresholds[0]] > drop
        broken["cost"] += cost[dear.thresholds[0]] > budget
        kept += accuracy.kept
    assert kept > sets / 2  # else nothing is tested
    for times in broken.values():
        assert binomtest(times, sets, 1 - confidence, "greater").pvalue > 1e-3
    assert broken["drop"] > 0 or confidence > 0.9  # and it is no empty promise


def test_targets_that_cannot_be_are_refused():
    for given in (
        {},
        {"max_accuracy_drop": 0.1, "max_gflops": 1.0},
        {"max_accuracy_drop": -0.1},
        {"max_gflops": 0.0},
        {"max_gflops": 1.0, "confidence": 1.0},
    ):
        with pytest.raises(ValueError, match=r"max_|confidence"):
            Target(**given)
    made, labels = log_probs()
    with pytest.raises(ValueError, match="3 stages need 2 thresholds"):
        thresholds.stages(made, [0.5])
    assert math.isinf(thresholds.images_needed(0.0, 0.9))
    one = thresholds.promise(made[:1], labels, (1.0,), Target(max_accuracy_drop=0.0))
    assert (one.kept, one.thresholds, one.bound) == (True, (), 0.0)


def test_one_backbone_s_cascade_is_that_backbone():
    logits, _, labels = problem(images=20)
    single = torch.log_softmax(logits[:, 0], dim=1)
    found = thresholds.promise([single], labels, (2.0,), Target(max_gflops=2.0))
    assert found.kept
    assert torch.equal(thresholds.leave([single], found.thresholds), single)
