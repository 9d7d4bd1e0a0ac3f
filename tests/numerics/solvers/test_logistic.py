import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from clipray.numerics.contracts import Shots
from clipray.numerics.fewshot.prototypes import Probe, fit_probes, probe
from clipray.numerics.heads import HEADS
from clipray.numerics.heads.cross_fit import cross_fitted
from clipray.numerics.heads.zero_shot import zero_shot
from clipray.numerics.heads.zero_shot_probe import Pulled
from clipray.numerics.solvers import logistic
from clipray.numerics.solvers.logistic import fit_path, folds, rotate, solve
from tests.numerics.made import problem


def sklearn_weights(x, y, penalty):
    return (
        LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000)
        .fit(x, y)
        .coef_.T
    )


@pytest.mark.parametrize(
    ("images", "dim", "penalty"), [(60, 20, 0.3), (30, 100, 0.03), (30, 100, 3.0), (100, 10, 0.01)]
)
def test_equals_scikit_learn(images, dim, penalty):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(images) % 5
    x = torch.nn.functional.normalize(torch.randn(2, images, dim, generator=g).double(), dim=2)
    rotated, basis, lengths = rotate(x)
    torch.testing.assert_close(rotated, x @ basis)
    ones = torch.ones(2, images, 1)
    v = solve(
        rotated,
        lengths,
        y.expand(2, -1),
        ones,
        torch.full((1, 1, 1, 1), penalty),
        None,
        5,
        1e-9,
        5000,
    )
    for s in range(2):
        np.testing.assert_allclose(
            (basis @ v[:, :, 0])[s], sklearn_weights(x[s], y, penalty), atol=1e-5
        )


def test_held_out_variants_equal_fits_without_those_images():
    (_, embeddings, y), penalty = problem(images=40, dims=(8,)), torch.full((1, 1, 1, 1), 0.5)
    x = embeddings[0].double()[None]
    rotated, basis, lengths = rotate(x)
    kept = torch.ones(1, 40, 2)
    kept[0, :10, 1] = 0
    v = basis @ solve(rotated, lengths, y[None], kept, penalty, None, 4, 1e-9, 5000)[:, :, 1]
    np.testing.assert_allclose(v[0], sklearn_weights(x[0, 10:], y[10:], 0.5), atol=1e-5)


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_from_any_start_and_beside_any_other_problem_the_minimum_is_the_same(penalty):
    g = torch.Generator().manual_seed(1)
    x, text = (
        torch.randn(1, 90, 12, generator=g).double(),
        8 * torch.randn(1, 90, 30, generator=g).double(),
    )
    y, ones = torch.arange(90)[None] % 30, torch.ones(1, 90, 1)
    rotated, _, lengths = rotate(x)
    weights = torch.full((1, 1, 1, 1), penalty)
    found = solve(rotated, lengths, y, ones, weights, text, 30, 1e-7, 2000)
    z = (text[:, :, None] + torch.einsum("skr,srqc->skqc", rotated, found))[0, :, 0]
    error = torch.softmax(z, 1) - torch.nn.functional.one_hot(y[0], 30)
    slope = rotated[0].T @ error + penalty * found[0, :, 0]  # the gradient vanishes at the minimum
    assert slope.abs().max() < 1e-4
    start = 3 * torch.randn(found.shape, generator=g).double()
    again = solve(rotated, lengths, y, ones, weights, text, 30, 1e-7, 2000, start)
    torch.testing.assert_close(again, found, atol=1e-4, rtol=1e-4)
    beside = torch.cat([weights, torch.full_like(weights, 1e3)], dim=2)
    both = solve(rotated, lengths, y, ones.expand(-1, -1, 2), beside, text, 30, 1e-7, 2000)
    torch.testing.assert_close(both[:, :, :1], found, atol=1e-6, rtol=1e-6)


def test_the_penalty_is_the_one_that_scikit_learns_cross_validation_prefers():
    _, embeddings, y = problem(images=60, dims=(8,), noise=3.0)
    grid, split = torch.tensor([0.01, 0.3, 10.0, 300.0]), folds(y, 3)
    _, chosen = fit_path(embeddings[0][None], y[None], split[None], grid, 1.0, 4)
    losses = []
    for penalty in grid.tolist():
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=10_000)
        p = cross_val_predict(
            model, embeddings[0], y, cv=PredefinedSplit(split), method="predict_proba"
        )
        losses.append(-np.log(p[np.arange(60), y]).mean())
    assert chosen.item() == pytest.approx(grid[int(np.argmin(losses))].item())


@pytest.mark.parametrize("features", [100, 1000])  # of 480 a problem: one or two at a time
def test_large_problems_some_at_a_time_equal_those_solved_at_once(monkeypatch, features):
    some = [problem(images=60, dims=(8,), noise=3.0, seed=seed) for seed in range(3)]
    x, y, text = (
        torch.stack(part)
        for part in zip(*[(e[0], labels, z[:, 0]) for z, e, labels in some], strict=True)
    )
    split = torch.stack([folds(one, 3) for one in y])
    at_once = fit_path(x, y, split, torch.tensor([0.01, 1.0]), 1.0, 4, text)
    monkeypatch.setattr(logistic, "_LARGE", features)
    for one, other in zip(
        fit_path(x, y, split, torch.tensor([0.01, 1.0]), 1.0, 4, text), at_once, strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_blocks_of_images_change_no_weights(monkeypatch):
    z, embeddings, y = problem(images=60, dims=(8,), noise=3.0)
    x, split = embeddings[0][None], folds(y, 3)[None]
    path = (x, y[None], split, torch.tensor([0.01, 1.0]), 1.0, 4, z[None, :, 0])
    at_once = fit_path(*path)
    monkeypatch.setattr(logistic, "_BLOCK", 7 * 4)
    for one, other in zip(fit_path(*path), at_once, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_folds_spread_every_class_and_leave_one_shot_whole():
    y = torch.arange(30) % 6
    split = folds(y, 5)
    for c in range(6):
        assert split[y == c].bincount().tolist() == [1] * 5
    assert folds(torch.arange(7), 5).max() == 0


def test_folds_are_an_images_place_within_its_class_as_a_plain_loop_counts_it():
    y = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(0)) + 1
    seen, places = {}, []
    for label in y.tolist():
        places.append(seen.get(label, 0) + label)
        seen[label] = seen.get(label, 0) + 1
    for most in (1, 3, 100):
        count = min(most, max(seen.values()))
        assert folds(y, most).tolist() == [place % count for place in places]
    assert folds(y[:0], 3).tolist() == []


def test_probes_of_different_supports_equal_scikit_learn_on_each():
    problems = [problem(images=n, dims=(8,), seed=s) for s, n in enumerate((4, 4, 24))]
    xs = [torch.nn.functional.normalize(p[1][0], dim=1) for p in problems]
    states = fit_probes(xs, [p[2] for p in problems], 4, Probe(tolerance=1e-6))
    for x, p, state in zip(xs, problems, states, strict=True):
        design = np.hstack([x - x.mean(0), np.ones((len(x), 1))])
        theirs = design @ sklearn_weights(design, p[2], state.numbers["penalty"])
        ours = probe(state, x).numpy()
        np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), theirs, atol=1e-3)
    assert states[0].numbers["penalty"] == pytest.approx(Probe().one_shot)


@pytest.fixture(scope="module")
def shots():
    _, (e,), y = problem(images=40, dims=(8,), noise=1.5)
    classifier = torch.stack([e[y == c].mean(0) for c in range(4)]) + 0.8 * torch.randn(
        4, 8, generator=torch.Generator().manual_seed(0)
    )
    return Shots(e, y, classifier, 5.0, -1.0, seed=1)


@pytest.mark.parametrize("name", HEADS)
def test_heads_give_logits_and_fit_several_problems_as_one_by_one(name, shots):
    head = HEADS[name]
    some = [shots.take(torch.arange(20)), shots.take(torch.arange(20, 40)), shots]
    rest = (shots.classifier_CD, shots.scale, shots.bias)
    for one, state in zip(some, head.fit(some, head.settings), strict=True):
        ours = head.apply(state, shots.embeddings_KD, *rest)
        alone = head.apply(head.fit([one], head.settings)[0], shots.embeddings_KD, *rest)
        assert ours.shape == (40, 4)
        torch.testing.assert_close(ours, alone, atol=1e-3, rtol=1e-3)


def test_zero_shot_probe_solves_its_problem_and_a_strong_pull_leaves_zero_shot(shots):
    head, rest = HEADS["zero_shot_probe"], (shots.classifier_CD, shots.scale, shots.bias)
    base = zero_shot(shots.embeddings_KD, *rest)
    stuck = head.fit([shots], Pulled(strength=1e6))[0]
    torch.testing.assert_close(
        head.apply(stuck, shots.embeddings_KD, *rest), base, atol=1e-3, rtol=1e-3
    )
    v = head.fit([shots], Pulled())[0].tensors["v_DC"].double().requires_grad_(True)
    x = torch.nn.functional.normalize(shots.embeddings_KD, dim=1).double()
    own = torch.softmax(base, 1).gather(1, shots.labels_K[:, None])[:, 0].double()
    pull = torch.stack([own[shots.labels_K == c].mean() for c in range(4)])
    loss = torch.nn.functional.cross_entropy(base.double() + x @ v, shots.labels_K, reduction="sum")
    (loss + 0.5 * (pull * v.square()).sum()).backward()
    assert v.grad.abs().max() < 1e-3  # the gradient vanishes at the minimum of a convex problem


def test_tip_adapter_equals_a_plain_loop_and_training_the_keys_lowers_the_loss(shots):
    rest = (shots.classifier_CD, shots.scale, shots.bias)
    head, trained = HEADS["tip_adapter"], HEADS["tip_adapter_f"]
    ours = head.apply(head.fit([shots], head.settings)[0], shots.embeddings_KD[:3], *rest)
    theirs = zero_shot(shots.embeddings_KD[:3], *rest)
    for n in range(3):
        for k in range(40):
            cosine = torch.nn.functional.cosine_similarity(
                shots.embeddings_KD[n], shots.embeddings_KD[k], dim=0
            )
            theirs[n, shots.labels_K[k]] += torch.exp(-5.5 * (1 - cosine))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    loss = [
        torch.nn.functional.cross_entropy(
            h.apply(h.fit([shots], h.settings)[0], shots.embeddings_KD, *rest), shots.labels_K
        )
        for h in (head, trained)
    ]
    assert loss[1] < loss[0]


def test_cross_fitted_logits_do_not_see_their_own_label(shots):
    head = HEADS["tip_adapter"]
    logits = cross_fitted(head, shots, head.settings, 4)
    fold = folds(shots.labels_K, 4)
    changed = shots._replace(
        labels_K=torch.where(fold == 1, (shots.labels_K + 1) % 4, shots.labels_K)
    )
    states = head.fit([changed.take(fold != 1)], head.settings)
    again = head.apply(
        states[0], shots.embeddings_KD[fold == 1], shots.classifier_CD, shots.scale, shots.bias
    )
    torch.testing.assert_close(logits[fold == 1], again)
    one = shots.take(torch.arange(4))
    assert torch.equal(
        cross_fitted(head, one, head.settings, 4),
        zero_shot(one.embeddings_KD, one.classifier_CD, 5.0, -1.0),
    )


@pytest.mark.parametrize("columns", [0, 1, 10, 31, 32])
def test_products_with_few_columns_are_those_of_numpy(columns):
    generator = np.random.default_rng(columns)
    a, b = generator.normal(size=(3, 20, 7)), generator.normal(size=(3, 7, columns))
    found = logistic._times(torch.tensor(a), torch.tensor(b))
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), a @ b, atol=1e-12)
