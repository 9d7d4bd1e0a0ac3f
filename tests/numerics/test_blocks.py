"""Blocks of images change no result, and half-precision embeddings are widened."""

import numpy as np
import pytest
import torch

from clipray.numerics import blocks
from clipray.numerics.cascade import curve
from clipray.numerics.contracts import Support
from clipray.numerics.fusers import FUSERS, settings_of, singles
from clipray.numerics.fusers.unlabelled import Images, taught


def problem(images: int = 40, backbones: int = 3, classes: int = 4):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.arange(images) % classes)
    made = []
    for m in range(backbones):
        centres = rng.normal(size=(classes, 8 + m))
        noise = rng.normal(size=(images, 8 + m)) * (0.3 + 0.2 * m)
        made.append(torch.from_numpy(centres[labels] + noise).float())
    logits = [e @ torch.from_numpy(rng.normal(size=(e.shape[1], classes))).float() for e in made]
    return torch.stack(logits, dim=1), tuple(made), labels


@pytest.mark.parametrize("name", FUSERS)
def test_every_fuser_gives_the_same_block_by_block(name, monkeypatch):
    z, embeddings, labels = problem()
    support = Support(z[:16], tuple(e[:16] for e in embeddings), labels[:16])
    (state,) = FUSERS[name].fit([support], settings_of(name))
    batch = Images(z[16:], tuple(e[16:] for e in embeddings))
    whole = FUSERS[name].apply(taught(name, state, batch), *batch)
    monkeypatch.setattr(blocks, "ELEMENTS", 5 * z[0].numel())
    parts = FUSERS[name].apply(taught(name, state, batch), *batch)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["c_log_avg", "nlc", "proto_fusion", "anchored", "guarded"])
@pytest.mark.parametrize("shots", [1, 4])
def test_fits_are_the_same_block_by_block(name, shots, monkeypatch):
    z, embeddings, labels = problem()
    rows = slice(0, 4 * shots)  # that many of each class
    support = Support(z[rows], tuple(e[rows] for e in embeddings), labels[rows])
    batch = Images(z[16:], tuple(e[16:] for e in embeddings))
    said = []
    for elements in (blocks.ELEMENTS, 3 * z[0].numel()):
        monkeypatch.setattr(blocks, "ELEMENTS", elements)
        (state,) = FUSERS[name].fit([support], settings_of(name))
        said.append(FUSERS[name].apply(state, *batch))
    torch.testing.assert_close(said[1], said[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["log_avg", "guarded", "transductive", "ot"])
def test_lazy_logits_are_as_good_as_those_in_memory(name, monkeypatch):
    z, embeddings, labels = problem()
    support = Support(z[:4], tuple(e[:4] for e in embeddings), labels[:4])
    (state,) = FUSERS[name].fit([support], settings_of(name))
    asked = []

    def compute(rows: slice, backbone: int) -> torch.Tensor:
        asked.append(rows.stop - rows.start)
        return z[rows, backbone]

    lazy = blocks.Lazy(compute, range(16, len(z)), (0, 1, 2), z.shape[2])
    own = tuple(e[16:] for e in embeddings)
    whole, unseen = Images(z[16:], own), Images(lazy, own)
    monkeypatch.setattr(blocks, "SPAN", 5 * z[0].numel())
    for at_hand, later in ((whole, unseen), (whole.of(1), unseen.of(1))):
        if at_hand.logits_NMC.shape[1] == 1 and FUSERS[name].needs_labels:
            continue  # it was fitted on three backbones
        expected = FUSERS[name].apply(taught(name, state, at_hand), *at_hand)
        assert torch.equal(FUSERS[name].apply(taught(name, state, later), *later), expected)
    assert max(asked) <= 15  # a span of one backbone; all are 24
    narrow = blocks.narrow(blocks.of_backbone(lazy, 2), slice(3, 9))
    assert narrow.shape == (6, 1, z.shape[2])
    assert torch.equal(narrow[2:], z[21:25, 2:3])
    with monkeypatch.context() as few:
        few.setattr(blocks, "SPAN", z[16:].numel())
        assert isinstance(lazy.at_hand(), torch.Tensor)
    assert lazy.at_hand() is lazy


def test_bounds_and_the_cost_curve_give_the_same_block_by_block(monkeypatch):
    z, _, labels = problem()
    whole = singles.best(z, labels), singles.oracle(z, labels), curve.curve(z, labels, [1, 2, 4])
    monkeypatch.setattr(blocks, "ELEMENTS", 7 * z[0].numel())
    parts = singles.best(z, labels), singles.oracle(z, labels), curve.curve(z, labels, [1, 2, 4])
    assert parts[0] == whole[0]
    assert torch.equal(parts[1], whole[1])
    assert str(parts[2]) == str(whole[2])  # nan equals no nan


def test_a_single_backbones_quality_ranks_as_the_best_one_is_chosen():
    z, _, labels = problem()
    z[:, 2] = z[:, 0] * 0.5  # as often right as the first, with another NLL
    plain = []
    for m in range(z.shape[1]):
        logits = z[:, m].double().numpy()
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        own = log_p[np.arange(len(labels)), labels.numpy()]
        plain.append(((logits.argmax(1) == labels.numpy()).mean(), own.mean()))
        assert singles.quality(z[:, m], labels) == pytest.approx(plain[-1], abs=1e-12)
    assert plain[0][0] == plain[2][0] != plain[1][0]
    assert singles.best(z, labels) == max(range(3), key=lambda m: plain[m])


def test_half_precision_is_widened_block_by_block(monkeypatch):
    z, embeddings, _ = problem()
    half = tuple(e.half() for e in embeddings)
    monkeypatch.setattr(blocks, "ELEMENTS", 5 * z[0].numel())
    seen = blocks.by_block(lambda _, own: torch.cat(own, dim=1), z, half)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, torch.cat([e.float() for e in half], dim=1))
