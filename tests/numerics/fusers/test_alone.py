"""A fuser on one backbone: chosen on the support set, by a loop that is written out here."""

import numpy as np
import pytest
import torch

from clipray.numerics.contracts import Support
from clipray.numerics.fusers import FUSERS, averages, settings_of
from clipray.numerics.fusers.alone import (
    FOLDS,
    apply_alone,
    fit_alone,
    of_backbone,
    singles_of,
)
from clipray.numerics.fusers.unlabelled import Images, taught


def support(images: int, noise=(0.2, 1.0, 3.0), classes: int = 4, seed: int = 0) -> Support:
    """Three backbones, of which the first sees best."""
    rng = np.random.default_rng(seed)
    labels_K = torch.arange(images) % classes
    centres = [rng.normal(size=(classes, 6)) for _ in noise]
    embeddings = tuple(
        torch.tensor(c[labels_K] + n * rng.normal(size=(images, 6))).float()
        for c, n in zip(centres, noise, strict=True)
    )
    logits = [e @ torch.tensor(c).float().T for e, c in zip(embeddings, centres, strict=True)]
    return Support(torch.stack(logits, 1), embeddings, labels_K, seed=seed)


@pytest.mark.parametrize("name", [n for n, f in FUSERS.items() if f.needs_labels])
def test_every_fuser_can_be_fitted_on_one_backbone(name):
    one = support(16)
    (alone,) = fit_alone(name, [singles_of(one)], [{}])
    images = Images(one.logits_KMC, one.embeddings)
    log_probs_NMC = torch.stack(list(apply_alone(name, alone, images)), dim=1)
    assert log_probs_NMC.shape == one.logits_KMC.shape
    assert torch.isfinite(log_probs_NMC.exp()).all()
    single = of_backbone(one, 1)
    (state,) = FUSERS[name].fit([single], settings_of(name))
    images = Images(single.logits_KMC, single.embeddings)
    expected = FUSERS[name].apply(taught(name, state, images), *images)
    assert torch.allclose(log_probs_NMC[:, 1], expected, atol=1e-4)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_backbone_that_sees_best_is_chosen(order):
    one = support(24)
    swapped = Support(
        one.logits_KMC[:, list(order)], tuple(one.embeddings[m] for m in order), one.labels_K
    )
    (alone,) = fit_alone("proto_avg", [singles_of(swapped)], [{}])
    assert order[alone.backbone] == 0


def test_a_temperature_that_is_known_of_a_backbone_is_not_fitted_again(monkeypatch):
    one, fuser = support(4), FUSERS["c_log_avg"]
    (whole,) = fuser.fit([one], fuser.settings)
    (apart,) = fit_alone("c_log_avg", [singles_of(support(4))], [{}])
    monkeypatch.setattr(averages, "inverse_temperatures", None)
    (alone,) = fit_alone("c_log_avg", [singles_of(one)], [{}])
    for backbone, state in enumerate(alone.states):
        expected = whole.tensors["beta_M"][backbone : backbone + 1]
        assert torch.equal(state.tensors["beta_M"], expected)
        torch.testing.assert_close(apart.states[backbone].tensors["beta_M"], expected)


def test_with_one_image_a_class_the_logits_choose():
    one = support(4)
    (alone,) = fit_alone("proto_avg", [singles_of(one)], [{}])
    right_M = (one.logits_KMC.argmax(-1) == one.labels_K[:, None]).sum(0)
    assert right_M[alone.backbone] == right_M.max()


def test_held_out_images_are_in_no_fit_that_they_judge(monkeypatch):
    """Each fit on a part lacks the images that it is judged on, for every backbone and fold."""
    sizes = []
    fuser = FUSERS["proto_avg"]

    def fit(supports, settings):
        sizes.extend(len(one.labels_K) for one in supports)
        return fuser.fit(supports, settings)

    monkeypatch.setitem(FUSERS, "proto_avg", fuser._replace(fit=fit))
    fit_alone("proto_avg", [singles_of(support(24))], [{}])
    assert sizes == [24, *[16] * FOLDS] * 3
