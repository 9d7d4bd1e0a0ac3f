"""The gate of `nlc_meta`: what it must not depend on, and that it learns what its features show."""

import dataclasses

import pytest
import torch

from clipray.numerics.contracts import Support
from clipray.numerics.fusers import FUSERS, from_parts, nlc_meta, settings_of, to_parts
from tests.numerics.made import problem, support

HOW = nlc_meta.Learning(steps=150)


def random_weights(seed: int = 0) -> tuple[float, ...]:
    return tuple(
        torch.randn(nlc_meta.size(16), generator=torch.Generator().manual_seed(seed)).tolist()
    )


def fused(s: Support, test: tuple, **changes) -> torch.Tensor:
    (state,) = nlc_meta.fit([s], settings_of("nlc_meta", changes))
    return nlc_meta.apply(state, *test[:2])


def test_untaught_it_is_proto_fusion():
    s, test = support(seed=1, images=40), problem(seed=2)
    (state,) = FUSERS["proto_fusion"].fit([s], FUSERS["proto_fusion"].settings)
    expected = FUSERS["proto_fusion"].apply(state, *test[:2])
    torch.testing.assert_close(fused(s, test), expected)
    nothing = (0.0,) * nlc_meta.size(16)  # the general path, with a gate of zeros
    torch.testing.assert_close(fused(s, test, weights=nothing), expected, atol=1e-5, rtol=1e-5)


def test_permuting_the_backbones_changes_nothing():
    s, (z, embeddings, _) = support(seed=1, images=40), problem(seed=2)
    order = [2, 0, 1][: z.shape[1]]
    other = Support(s.logits_KMC[:, order], tuple(s.embeddings[m] for m in order), s.labels_K)
    one = fused(s, (z, embeddings), weights=random_weights())
    two = fused(other, (z[:, order], tuple(embeddings[m] for m in order)), weights=random_weights())
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, fused(s, (z, embeddings)), atol=1e-2)


def test_an_image_is_judged_alone():
    s, (z, embeddings, _) = support(seed=1, images=40), problem(seed=2)
    whole = fused(s, (z, embeddings), weights=random_weights())
    part = fused(s, (z[3:5], tuple(e[3:5] for e in embeddings)), weights=random_weights())
    torch.testing.assert_close(whole[3:5], part, atol=1e-5, rtol=1e-5)


def test_the_gate_is_bounded_and_equals_a_torch_module():
    weights, x = torch.tensor(random_weights()), torch.randn(5, 7, nlc_meta.FEATURES)
    network = torch.nn.Sequential(
        torch.nn.Linear(nlc_meta.FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)
    )
    first, bias, second, last = weights.split([nlc_meta.FEATURES * 16, 16, 16, 1])
    with torch.no_grad():
        network[0].weight.copy_(first.view(nlc_meta.FEATURES, 16).T)
        network[0].bias.copy_(bias)
        network[2].weight.copy_(second[None])
        network[2].bias.copy_(last)
        plain = network(x)[..., 0]
    found = nlc_meta.gate(weights, x, hidden=16, reach=1.5)
    torch.testing.assert_close(found, 1.5 * torch.tanh(plain / 1.5))
    assert found.abs().max() <= 1.5


def world(seed: int, images: int = 120, classes: int = 5) -> nlc_meta.Episode:
    """Experts that are right where they are sure: confidence, which the gate sees, tells whom to trust."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=g)
    sure = torch.rand(images, 4, generator=g) < 0.4
    said = torch.where(sure, labels[:, None], torch.randint(classes, (images, 4), generator=g))
    logits = (
        torch.nn.functional.one_hot(said, classes).float() * torch.where(sure, 3.0, 2.0)[..., None]
    )
    features = torch.zeros(images, 4, nlc_meta.FEATURES)
    features[..., 0] = torch.softmax(logits, 2).amax(2)
    return nlc_meta.Episode(features, logits, torch.full((4,), 0.5), labels, f"d{seed}")


def test_learning_helps_a_dataset_that_was_not_seen():
    settings, fresh = nlc_meta.MetaGate(), world(99)
    weights = nlc_meta.learn([world(seed) for seed in range(6)], settings, HOW)

    def nll(flat) -> float:
        gate_NE = nlc_meta.gate(
            torch.tensor(flat), fresh.features_QEF, settings.hidden, settings.reach
        )
        log_p = nlc_meta.weigh(gate_NE, fresh.logits_QEC, fresh.base_E)
        return float(torch.nn.functional.nll_loss(log_p, fresh.labels_Q))

    assert nll(weights) < nll((0.0,) * nlc_meta.size(16)) - 0.05
    assert weights == nlc_meta.learn([world(seed) for seed in reversed(range(6))], settings, HOW)


def test_taken_apart_and_put_together():
    s, test = support(seed=1, images=40), problem(seed=2)
    settings = settings_of("nlc_meta", {"weights": list(random_weights())})
    (state,) = nlc_meta.fit([s], settings)
    again = from_parts("nlc_meta", *to_parts(state))
    assert again.settings == settings
    assert again.numbers["learned"]
    torch.testing.assert_close(nlc_meta.apply(again, *test[:2]), nlc_meta.apply(state, *test[:2]))


def test_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match="3 weights; a gate of 16 hidden units has 321"):
        dataclasses.replace(nlc_meta.MetaGate(), weights=(1.0, 2.0, 3.0))
