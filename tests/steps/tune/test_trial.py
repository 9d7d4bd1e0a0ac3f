"""What a trial tells Ray Tune: scores that can be compared, and nothing that disturbs a scheduler."""

import math

import pytest
from ray.tune.schedulers import MedianStoppingRule

from clipray.steps.tune.records import REPORT, SCORE, Cell, Fit, score
from clipray.steps.tune.space import Configuration
from clipray.steps.tune.studies import Past
from clipray.steps.tune.trial import Piece, compared, reports

CELLS = tuple(Cell(name, 1, seed) for name in "ab" for seed in (0, 1))
ONE = Configuration("zero_shot", "{}", "nlc", "{}")


def rows() -> list[Fit]:
    return [Fit(ONE, cell, 0.5, 1.0 + i, 0.5, 10, 1, 0.1) for i, cell in enumerate(CELLS)]


def test_a_score_is_the_mean_over_datasets():
    assert compared(rows(), "nll") == pytest.approx((1.5 + 3.5) / 2)
    assert math.isnan(compared(rows(), ""))


@pytest.mark.parametrize(
    "change", [{"progress": 1.0}, {"progress": 0.25}, {"nll": math.nan, "error": "it diverged"}]
)
def test_support_sets_at_different_moments_or_with_a_failure_have_no_score(change):
    mixed = rows()
    mixed[0] = mixed[0]._replace(**change)
    assert math.isnan(compared(mixed, "nll"))


def test_a_recorded_training_is_told_again_and_not_fitted():
    piece = Piece(ONE, CELLS, 3, 0, "nll", known=(0.9, 0.5, 0.4))
    first, *told, last = reports(piece, cases=None)
    assert (first["progress"], first["rows"], first[REPORT]) == (0, [], 0)
    assert [(one[REPORT], one[SCORE]) for one in told] == [(1, 0.9), (2, 0.5), (3, 0.4)]
    assert (last["done"], last["progress"], last[SCORE]) == (True, 1, 0.4)


def test_trials_without_scores_leave_the_median_rule_as_it_is():
    """Six trainings are compared; one that never was, and one stopped before its first fit, change nothing."""

    def decisions(more: int) -> list[str]:
        rule = MedianStoppingRule(
            time_attr=REPORT,
            metric=SCORE,
            mode="min",
            grace_period=1,
            min_samples_required=5,
            min_time_slice=float("inf"),
        )
        for number in range(more):
            past = Past(f"none {number}")
            first = next(reports(Piece(ONE, CELLS, 2, 0, "nll"), cases=None))
            rule.on_trial_add(None, past)
            rule.on_trial_result(None, past, first)
            rule.on_trial_complete(None, past, first)
        found = []
        for number in range(7):
            past, piece = Past(str(number)), Piece(ONE, CELLS, 2, 0, "nll", (number, number))
            rule.on_trial_add(None, past)
            for report in reports(piece, cases=None):
                found.append(rule.on_trial_result(None, past, report))
                if found[-1] == rule.STOP:
                    break
            rule.on_trial_complete(None, past, report)
        return found

    assert decisions(0) == decisions(3)
    assert "STOP" in decisions(0)


def test_a_failed_row_has_no_score():
    assert math.isnan(score([{"dataset": "a", "error": "it diverged", "nll": 1.0}], "nll"))
