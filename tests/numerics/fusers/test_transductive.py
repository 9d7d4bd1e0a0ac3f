"""`transductive`: what a mixture may learn from unlabelled images, and what it must leave as it is."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from clipray.numerics import blocks
from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import FUSERS, settings_of, transductive
from clipray.numerics.fusers.present import present
from tests.numerics.made import problem

F = FUSERS["transductive"]
EAGER = {"doubtful": 0.0, "sure": 0.01}  # made problems are not sure of themselves
IMAGES = problem(images=200, seed=4, noise=0.6, scale=8.0)


def nothing(logits, embeddings):
    labels = torch.zeros(0, dtype=torch.int64)
    return Support(logits[:0], tuple(e[:0] for e in embeddings), labels)


def adapted(logits, embeddings, support=None, **changes):
    settings = settings_of("transductive", EAGER | changes)
    (state,) = F.fit([support or nothing(logits, embeddings)], settings)
    return F.adapt(state, logits, embeddings)


def accuracy(log_probs, labels):
    return float((log_probs.argmax(1) == labels).double().mean())


def rough(classes=8, each=25, error=1.6, scale=20, seed=0):
    """Images in clear groups, and text that every second class shares in part with the one before."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    logits, embeddings = [], []
    for dims in (40, 50, 60):
        means = torch.randn(classes, dims, generator=g)
        e = means[labels] + 1.2 * torch.randn(len(labels), dims, generator=g)
        twin = torch.arange(classes) // 2 * 2
        text = means + error * means[twin] + torch.randn(classes, dims, generator=g)
        unit = torch.nn.functional.normalize
        logits.append(scale * unit(e, dim=1) @ unit(text, dim=1).T)
        embeddings.append(e)
    return torch.stack(logits, 1), tuple(embeddings), labels


@pytest.mark.parametrize("each", [1, 2, 5, 25])
def test_unlabelled_images_teach_where_text_is_rough(each):
    gains = []
    for seed in range(8):
        z, embeddings, y = rough(each=each, seed=seed)
        (plain,) = F.fit([nothing(z, embeddings)], F.settings)
        start = F.apply(plain, z, embeddings)
        said = F.apply(F.adapt(plain, z, embeddings), z, embeddings)
        gains.append(accuracy(said, y) - accuracy(start, y))
    assert np.mean(gains) >= (0.01 if each > 2 else 0)
    assert min(gains) > -0.05


@pytest.mark.parametrize("present", [1, 2, 3])
def test_few_of_the_classes_do_no_harm(present):
    gains = []
    for seed in range(8):
        z, embeddings, y = rough(seed=seed)
        kept = y < present
        z, embeddings, y = z[kept], tuple(e[kept] for e in embeddings), y[kept]
        (plain,) = F.fit([nothing(z, embeddings)], F.settings)
        said = F.apply(F.adapt(plain, z, embeddings), z, embeddings)
        gains.append(accuracy(said, y) - accuracy(F.apply(plain, z, embeddings), y))
    assert np.mean(gains) >= 0


def test_a_batch_of_one_class_is_not_taken_apart():
    """Text shares every second class with the one before; a mixture of few images finds both in images of one."""
    gains, of_mixtures = [], []
    for seed in range(12):
        z, embeddings, y = rough(each=3, seed=seed)
        images = z[y == 3], tuple(e[y == 3] for e in embeddings)
        (plain,) = F.fit([nothing(*images)], F.settings)
        start = accuracy(F.apply(plain, *images), y[y == 3])
        mixture = adapted(*images, lone=0.0, several=0.0)
        gains.append(accuracy(F.apply(adapted(*images), *images), y[y == 3]) - start)
        of_mixtures.append(accuracy(F.apply(mixture, *images), y[y == 3]) - start)
    assert min(gains) >= 0
    assert min(of_mixtures) < 0


def test_with_labels_a_batch_of_one_class_teaches_a_mixture():
    z, embeddings, y = IMAGES
    few, one = torch.arange(24), (y == 0) & (torch.arange(200) >= 24)
    support = Support(z[few], tuple(e[few] for e in embeddings), y[few])
    images = z[one], tuple(e[one] for e in embeddings)
    said = F.apply(adapted(*images, support=support), *images)
    mixture = adapted(*images, support=support, lone=0.0, several=0.0)
    assert torch.equal(said, F.apply(mixture, *images))


@pytest.mark.parametrize("shares", [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.2, 0.2, 0], [0.25] * 4])
def test_class_shares_tend_to_those_of_greatest_likelihood(shares):
    """Against SciPy, which maximises Σ log Σ π q over the simplex, and in blocks."""
    g = np.random.default_rng(0)
    labels = g.choice(4, size=300, p=shares)
    logits = g.normal(size=(300, 4)) + 4 * np.eye(4)[labels]
    q = torch.log_softmax(torch.tensor(logits), dim=1)
    likely = minimize(
        lambda a: -torch.log(q.exp() @ torch.softmax(torch.tensor(a), 0)).mean().item(),
        np.zeros(4),
    )
    expected = np.exp(likely.x) / np.exp(likely.x).sum()
    sums = transductive.in_memory(q, q[:, None], [torch.ones(300, 1)], 37)
    found = present(sums, q.exp().sum(0), rounds=300)
    np.testing.assert_allclose(found.log_share_C.exp(), expected, atol=0.01)
    assert found.classes == pytest.approx(1 / np.square(expected).sum(), abs=0.05)


def test_an_m_step_is_weighted_least_squares_in_closed_form():
    """Against NumPy's weighted averages: means, the shared variance and the class weights, without any prior."""
    g = np.random.default_rng(0)
    x, z = g.normal(size=(50, 6)), g.dirichlet(np.ones(3), size=50)
    seen = transductive.block_statistics(torch.tensor(z), torch.tensor(x))
    no_prior = dict.fromkeys(["share_count", "pull", "pull_few", "variance_count"], 0.0)
    settings = settings_of("transductive", no_prior | {"softness": 6**-0.5})
    got = transductive.parameters(seen, None, settings)
    means = np.stack([np.average(x, axis=0, weights=z[:, c]) for c in range(3)])
    variance = sum(
        np.average((x - means[c]) ** 2, axis=0, weights=z[:, c]) * z[:, c].mean() for c in range(3)
    )
    np.testing.assert_allclose(got.means_CD, means, atol=1e-12)
    np.testing.assert_allclose(1 / got.sharpness_D, variance, atol=1e-12)
    np.testing.assert_allclose(got.log_share_C.exp(), z.mean(0), atol=1e-12)


def test_statistics_of_blocks_add_up_and_blocks_change_no_row():
    z, embeddings, _ = IMAGES
    whole = F.apply(adapted(z, embeddings), z, embeddings)
    parts = F.apply(adapted(z, embeddings, block=37), z, embeddings)
    torch.testing.assert_close(parts, whole, atol=1e-3, rtol=1e-3)


def test_an_adapted_state_is_inductive_and_the_support_only_form_is_the_start():
    z, embeddings, _ = IMAGES
    state = adapted(z, embeddings)
    whole = F.apply(state, z, embeddings)
    for i in (0, 7, 150):
        alone = F.apply(state, z[i : i + 1], tuple(e[i : i + 1] for e in embeddings))
        torch.testing.assert_close(alone[0], whole[i], atol=1e-5, rtol=1e-5)
    (plain,) = F.fit([nothing(z, embeddings)], F.settings)
    start = FUSERS["log_avg"].apply(plain, z, embeddings)
    assert torch.equal(F.apply(plain, z, embeddings), start)


@pytest.mark.parametrize("what", ["images", "backbones", "classes"])
def test_permutations_change_nothing(what):
    z, embeddings, _ = IMAGES
    expected = F.apply(adapted(z, embeddings), z, embeddings)
    g = torch.Generator().manual_seed(1)
    order = torch.randperm({"images": 200, "backbones": 3, "classes": 4}[what], generator=g)
    if what == "images":
        z, embeddings, expected = z[order], tuple(e[order] for e in embeddings), expected[order]
    elif what == "backbones":
        z, embeddings = z[:, order], tuple(embeddings[m] for m in order.tolist())
    else:
        z, expected = z[..., order], expected[:, order]
    got = F.apply(adapted(z, embeddings), z, embeddings)
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=2e-3)


def test_support_images_hold_their_class():
    """Text that swaps two classes is put right by labels; without them the mixture keeps the swap."""
    z, embeddings, y = IMAGES
    swapped = z[..., [1, 0, 2, 3]] / 3
    few = torch.arange(24)
    support = Support(swapped[few], tuple(e[few] for e in embeddings), y[few])
    rest = torch.arange(24, 200)
    images = swapped[rest], tuple(e[rest] for e in embeddings)
    blind = accuracy(F.apply(adapted(*images), *images), y[rest])
    taught = adapted(*images, support=support, support_weight=30.0)
    assert accuracy(F.apply(taught, *images), y[rest]) > blind + 0.2


def test_a_start_that_guesses_is_kept():
    _, embeddings, _ = IMAGES
    g = torch.Generator().manual_seed(2)
    for scale in (0.1, 100.0):  # unsure, or sure and at odds with one another
        z = scale * torch.randn(200, 3, 4, generator=g)
        (plain,) = F.fit([nothing(z, embeddings)], F.settings)
        state = F.adapt(plain, z, embeddings)
        assert state.numbers["trust"] == 0
        assert torch.equal(F.apply(state, z, embeddings), F.apply(plain, z, embeddings))


def test_tiny_batches_keep_the_first_choice_of_the_start():
    z, embeddings, _ = IMAGES
    for images in (0, 1):
        batch = z[:images], tuple(e[:images] for e in embeddings)
        state = adapted(*batch)
        start = FUSERS["log_avg"].apply(state, *batch)
        assert torch.equal(F.apply(state, *batch).argmax(1), start.argmax(1))


def test_no_answer_moves_by_more_than_the_bound():
    z, embeddings, _ = IMAGES
    start = FUSERS["log_avg"].apply(F.fit([nothing(z, embeddings)], F.settings)[0], z, ())
    said = F.apply(adapted(z, embeddings, bound=0.5), z, embeddings)
    first = start.argmax(1, keepdim=True)
    moved = (said - said.gather(1, first)) - (start - start.gather(1, first))
    assert float(moved.abs().max()) <= 0.5 + 1e-4


def test_classes_that_nothing_tells_apart_stay_equal_when_images_teach():
    z, embeddings, _ = IMAGES
    z = torch.cat([z, z[..., :1]], dim=2)
    state = adapted(z, embeddings)
    out = F.apply(state, z, embeddings)
    assert torch.equal(out[:, 0], out[:, 4])
    one = F.apply(state, z[:1], tuple(e[:1] for e in embeddings))
    assert torch.equal(one[:, 0], one[:, 4])


def known(z, embeddings, labels, shots, seed=0):
    """The first images of each class as a support set, and the rest."""
    rank = torch.zeros(len(labels), dtype=torch.int64)
    for c in labels.unique():
        rank[labels == c] = torch.arange(int((labels == c).sum()))
    few, rest = rank < shots, rank >= shots
    support = Support(z[few], tuple(e[few] for e in embeddings), labels[few], seed)
    return support, (z[rest], tuple(e[rest] for e in embeddings)), labels[rest]


@pytest.mark.parametrize("shots", [0, 1, 2, 4])
def test_guarded_learns_from_the_batch_at_any_number_of_labels(shots):
    g = FUSERS["guarded"]
    support, images, y = known(*rough(seed=3), shots)
    (plain,) = g.fit([support], g.settings)
    taught = g.adapt(plain, *images)
    assert taught.numbers["share"] > 0
    assert accuracy(g.apply(taught, *images), y) >= accuracy(g.apply(plain, *images), y) - 0.01
    one = g.apply(taught, images[0][:1], tuple(e[:1] for e in images[1]))
    torch.testing.assert_close(one[0], g.apply(taught, *images)[0], atol=1e-4, rtol=1e-4)


def test_guarded_takes_nothing_from_a_batch_that_text_only_guesses_at():
    g, noise = FUSERS["guarded"], torch.Generator().manual_seed(5)
    z, embeddings, y = rough(seed=3)
    support, images, _ = known(torch.randn(z.shape, generator=noise), embeddings, y, 2)
    (plain,) = g.fit([support], g.settings)
    taught = g.adapt(plain, *images)
    assert taught.numbers["share"] == 0
    assert torch.equal(g.apply(taught, *images), g.apply(plain, *images))


def test_blocks_change_no_answer_of_log_avg(monkeypatch):
    z = torch.randn(50, 3, 7, generator=torch.Generator().manual_seed(3)) * 9
    apply = FUSERS["log_avg"].apply
    whole = apply(State(None), z)
    expected = z.double() - torch.logsumexp(z.double(), 2, keepdim=True)
    expected = expected.mean(1)
    expected -= torch.logsumexp(expected, 1, keepdim=True)
    torch.testing.assert_close(whole.double(), expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(blocks, "ELEMENTS", 7 * 3 * 7)
    assert len(list(blocks.blocks(z))) == 8
    assert torch.equal(apply(State(None), z), whole)
    assert apply(State(None), z[:0]).shape == (0, 7)


def test_reliability_counts_pairs_of_backbones_that_agree():
    z, _, _ = IMAGES
    z = torch.cat([z, z[:, :1] + 0.1], dim=1)  # two of four always agree
    images, backbones, classes = z.shape
    agree = [
        float(z[i, a].argmax() == z[i, b].argmax())
        for i in range(images)
        for a in range(backbones)
        for b in range(a)
    ]
    sure = torch.zeros(images, classes)
    sure[:, 0] = 50.0
    block = transductive.Block(torch.log_softmax(sure, 1), z, [torch.ones(images, 1)])
    found = transductive.reliability(transductive.look(block), classes)
    assert found == pytest.approx((np.mean(agree) - 1 / classes) / (1 - 1 / classes))
