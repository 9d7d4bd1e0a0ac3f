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
