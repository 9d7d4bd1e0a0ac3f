"""A cascade of a fuser against the fuser itself."""

import json

import pytest
import torch

from clipray.numerics.cascade import fitted
from clipray.numerics.cascade.thresholds import Target
from clipray.numerics.fusers import FUSERS
from tests.numerics.made import support

WHOLE = support(images=640, seed=2, noise=1.5)
SUPPORT, TEST = WHOLE.take(torch.arange(240)), WHOLE.take(torch.arange(240, 640))
LOGITS, EMBEDDINGS, LABELS = TEST.logits_KMC, TEST.embeddings, TEST.labels_K
COSTS = [5.0, 1.0, 2.0]
FEW = Target(max_accuracy_drop=0.001)  # cannot be promised with so few images
NAMES = ["log_avg", "c_log_avg", "stacking", "knora_u", "anchored", "proto_fusion", "nlc_prior"]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_promise_it_is_the_full_fusion_to_the_last_bit(name):
    fuser = FUSERS[name]
    cascade = fitted.fit_cascade(SUPPORT, name, fuser.settings, (1, 2, 0), COSTS, FEW)
    assert not cascade.promise.kept
    log_probs, stage_N = fitted.apply_cascade(cascade, LOGITS, EMBEDDINGS)
    (state,) = fuser.fit([SUPPORT], fuser.settings)
    assert torch.equal(log_probs, fuser.apply(state, LOGITS, EMBEDDINGS))
    assert (stage_N == 2).all()


@pytest.mark.parametrize("name", ["log_avg", "c_log_avg", "anchored"])
def test_stages_see_only_what_has_run_and_what_is_left(name):
    fuser = FUSERS[name]
    target = Target(max_accuracy_drop=0.1)
    cascade = fitted.fit_cascade(SUPPORT, name, fuser.settings, (1, 2, 0), COSTS, target)
    assert cascade.promise.kept
    log_probs, stage_N = fitted.apply_cascade(cascade, LOGITS, EMBEDDINGS)
    assert len(stage_N.unique()) > 1
    for stage, members in enumerate([[1], [1, 2], [0, 1, 2]]):
        rows = stage_N == stage
        some = fitted.narrowed(SUPPORT, members)
        (state,) = fuser.fit([some], fuser.settings)
        alone = fuser.apply(state, LOGITS[:, members], [EMBEDDINGS[m] for m in members])
        torch.testing.assert_close(log_probs[rows], alone[rows], atol=1e-5, rtol=1e-5)
        if stage < 2:
            sure = alone.double().exp().amax(1)
            assert (sure[rows] >= cascade.thresholds[stage] - 1e-6).all()
    full = fuser.apply(state, LOGITS, EMBEDDINGS)
    harmed = (full.argmax(1) == LABELS) & (log_probs.argmax(1) != LABELS)
    assert harmed.double().mean() <= 0.1
    shares = torch.bincount(stage_N, minlength=3) / len(stage_N)
    assert float(shares @ torch.tensor([1.0, 3.0, 8.0])) < 8
    assert cascade.gflops == pytest.approx((1, 3, 8), rel=1e-3)


def test_a_cascade_of_one_stage_is_that_backbone():
    cascade = fitted.fit_cascade(SUPPORT, "log_avg", None, (2,), COSTS, Target(max_gflops=9.0))
    log_probs, stage_N = fitted.apply_cascade(cascade, LOGITS, EMBEDDINGS)
    torch.testing.assert_close(log_probs, torch.log_softmax(LOGITS[:, 2], dim=1))
    assert not stage_N.any()


@pytest.mark.parametrize("target", [FEW, Target(max_accuracy_drop=0.1), Target(max_gflops=4.0)])
def test_it_comes_back_equal_from_its_parts(target):
    settings = FUSERS["anchored"].settings
    cascade = fitted.fit_cascade(SUPPORT, "anchored", settings, (1, 0), COSTS, target)
    tensors, mapping = fitted.cascade_to_parts(cascade)
    again = fitted.cascade_from_parts(tensors, json.loads(json.dumps(mapping, allow_nan=False)))
    assert (again.promise, again.thresholds) == (cascade.promise, cascade.thresholds)
    ours, theirs = (fitted.apply_cascade(c, LOGITS, EMBEDDINGS) for c in (cascade, again))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_what_cannot_be_a_cascade_is_refused():
    with pytest.raises(ValueError, match="no stages"):
        fitted.fit_cascade(SUPPORT, "ot", FUSERS["ot"].settings, (0, 1), COSTS, FEW)
    for order in ((), (0, 0)):
        with pytest.raises(ValueError, match="once"):
            fitted.fit_cascade(SUPPORT, "log_avg", None, order, COSTS, FEW)
