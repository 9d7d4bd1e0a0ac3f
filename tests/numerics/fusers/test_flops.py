"""What fusers cost, against PyTorch's own count of the operations of `apply`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipray.numerics.fusers import FUSERS, nlc_meta, settings_of
from tests.numerics.made import problem, support

IMAGES, DIMS, CLASSES = 60, (16, 15, 17), 4
FAST = {n: {"max_steps": 5} for n in ("nlc", "moe", "swig")} | {"gac": {"generations": 3}}
MEASURED = support(images=IMAGES, dims=DIMS)
LEARNED = {"weights": (0.1,) * nlc_meta.size(16)}


def counted(fuser, state, logits_NMC, embeddings) -> float:
    with FlopCounterMode(display=False) as counter:
        fuser.apply(state, logits_NMC, embeddings)
    return counter.get_total_flops() / len(logits_NMC)


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, FAST.get(name, {})) for name in FUSERS]
    + [("nlc_meta", LEARNED), ("swig", {"hidden": 3, "max_steps": 5}), ("moe", {"hidden": 200})],
)
def test_flops_are_those_that_pytorch_counts(name, changes):
    """All of them, and no more than weighing the logits and an intercept beyond: the counter sees products alone."""
    fuser = FUSERS[name]
    (state,) = fuser.fit([MEASURED], settings_of(name, changes))
    logits_NMC, embeddings, _ = problem(images=200 if fuser.transductive else 1, dims=DIMS, seed=1)
    ours = fuser.flops(state, len(DIMS), CLASSES, DIMS)
    theirs = counted(fuser, state, logits_NMC, embeddings)
    candidates = 7 if name.startswith("guarded") else 1
    unseen = candidates * 2 * CLASSES * (2 * len(DIMS) + 1)
    if name == "ot":
        unseen += 2 * 4 * 50 * CLASSES  # Sinkhorn's scaling, entry by entry
    if name == "nlc_meta":
        unseen += 2 * 2 * len(DIMS) * 16  # the counter does not see a matrix that meets a vector
    assert theirs <= ours <= theirs + unseen


@pytest.mark.parametrize("name", FUSERS)
def test_every_fuser_has_a_cost_and_says_in_a_sentence_what_it_does(name):
    assert FUSERS[name].flops is not None
    assert FUSERS[name].about.endswith(".")
    assert FUSERS[name].about.count(". ") == 0


def test_more_support_images_cost_more_only_where_they_are_looked_up():
    few, many = support(images=12, dims=DIMS), support(images=48, dims=DIMS)
    for name in ("tip_adapter_avg", "meta_des", "anchored", "proto_fusion"):
        fuser = FUSERS[name]
        less, more = (
            fuser.flops(fuser.fit([s], fuser.settings)[0], 3, CLASSES, DIMS) for s in (few, many)
        )
        assert (more > less) == (name in ("tip_adapter_avg", "meta_des"))
        assert torch.tensor([less, more]).isfinite().all()
