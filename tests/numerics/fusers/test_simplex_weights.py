"""Fusers with one weight per backbone, against scipy and plain loops."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.fusers.averages import calibrate, fit_calibrated
from clipray.numerics.fusers.convex import CALIBRATED, simplex_weights
from clipray.numerics.fusers.singles import accuracies
from clipray.numerics.solvers.positive import positive_weights
from tests.numerics.made import problem, support


def objective(w, log_p, y, count, space):
    fused = np.einsum("m,kmc->kc", w, log_p if space == "log" else np.exp(log_p))
    fused = fused - np.log(np.exp(fused).sum(1, keepdims=True)) if space == "log" else np.log(fused)
    return -fused[np.arange(len(y)), y].sum() - count * np.log(w).mean()


@pytest.mark.parametrize("space", ["log", "prob"])
@pytest.mark.parametrize("count", [0.1, 10.0])
def test_convex_weights_equal_scipys_constrained_minimum(space, count):
    z, _, y = problem(seed=2, noise=2.0)
    log_p = torch.log_softmax(z.double(), -1)
    ours = simplex_weights(log_p, y, torch.ones(1, len(y)), torch.tensor([count]), space)[0].numpy()
    theirs = minimize(
        objective,
        np.full(3, 1 / 3),
        args=(log_p.numpy(), y.numpy(), count, space),
        bounds=[(1e-9, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert ours.sum() == pytest.approx(1)
    assert objective(ours, log_p.numpy(), y.numpy(), count, space) <= theirs.fun + 1e-8
    np.testing.assert_allclose(ours, theirs.x, atol=2e-4)


@pytest.mark.parametrize("space", ["log", "prob"])
def test_held_out_images_do_not_count_and_a_strong_prior_is_the_plain_average(space):
    z, _, y = problem(seed=2, noise=2.0)
    log_p, kept = torch.log_softmax(z.double(), -1), (torch.arange(len(y)) < 30).double()
    together = simplex_weights(log_p, y, torch.stack([kept, kept]), torch.tensor([1.0, 1e6]), space)
    alone = simplex_weights(log_p[:30], y[:30], torch.ones(1, 30), torch.tensor([1.0]), space)[0]
    torch.testing.assert_close(together[0], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        together[1], torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-3, rtol=0
    )


def test_positive_weights_equal_scipys_minimum_and_stay_at_one_under_a_strong_prior():
    z, _, y = problem(seed=3, noise=2.0)

    def value(u):
        w = np.exp(u)
        fused = np.einsum("m,kmc->kc", w, z.double().numpy())
        return (np.log(np.exp(fused).sum(1)) - fused[np.arange(len(y)), y]).sum() + 2 * (
            w - np.log(w)
        ).sum()

    theirs = np.exp(minimize(value, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x)
    ours = positive_weights(z[None], y[None], 2.0)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-4)
    np.testing.assert_allclose(positive_weights(z[None], y[None], 1e7)[0], np.ones(3), rtol=1e-4)
    other, _, labels = problem(seed=4, noise=0.1, scale=100.0)  # takes more steps
    together = positive_weights(torch.stack([other, z]), torch.stack([labels, y]), 2.0)
    torch.testing.assert_close(together[1], ours[0], atol=0.0, rtol=1e-9)


def test_greedy_equals_a_plain_loop():
    s, f = support(seed=1, noise=2.0), FUSERS["greedy"]
    state = f.fit([s], f.settings)[0]
    z = calibrate(fit_calibrated([s], CALIBRATED)[0], s.logits_KMC.double())
    p, y = torch.softmax(z, -1).numpy(), s.labels_K.numpy()
    chosen = []
    for _ in range(20):
        losses = [
            -np.log(p[np.arange(len(y)), :, y][:, [*chosen, m]].mean(1)).sum() for m in range(3)
        ]
        chosen.append(int(np.argmin(losses)))
    np.testing.assert_allclose(state.tensors["w_M"], np.bincount(chosen, minlength=3) / 20)


def test_gac_is_at_least_as_right_on_its_support_as_the_mean_and_near_the_best_of_a_grid():
    s, f = support(seed=6, images=40, noise=2.5), FUSERS["gac"]
    out = f.apply(f.fit([s], f.settings)[0], s.logits_KMC, s.embeddings)
    right = (out.argmax(1) == s.labels_K).float().mean()
    assert right >= (s.logits_KMC.mean(1).argmax(1) == s.labels_K).float().mean()
    grid = torch.tensor([w for w in itertools.product(range(11), repeat=3) if sum(w) == 10]) / 10
    fused = torch.einsum("gm,kmc->gkc", grid.float(), s.logits_KMC)
    assert right >= (fused.argmax(2) == s.labels_K).float().mean(1).max() - 1.5 / 40


def test_stacking_equals_scikit_learn_on_the_same_columns():
    s, f = support(seed=1, images=40, noise=2.0), FUSERS["stacking"]
    state = f.fit([s], settings_of("stacking", {"probe": {"tolerance": 1e-8}}))[0]
    log_p = (
        torch.log_softmax(calibrate(fit_calibrated([s], CALIBRATED)[0], s.logits_KMC), -1)
        .flatten(1)
        .numpy()
    )
    x = np.hstack([log_p - log_p.mean(0), np.ones((40, 1))])
    model = LogisticRegression(
        C=1 / state.numbers["penalty"], fit_intercept=False, tol=1e-10, max_iter=20_000
    )
    theirs = model.fit(x, s.labels_K).predict_log_proba(x)
    np.testing.assert_allclose(f.apply(state, s.logits_KMC, ()), theirs, atol=2e-4)


def test_best_single_on_support_is_the_most_accurate_there():
    s, f = support(seed=3, noise=2.5), FUSERS["best_single_on_support"]
    chosen = int(f.fit([s], f.settings)[0].tensors["backbone"])
    accuracy = accuracies(s.logits_KMC, s.labels_K)
    assert accuracy[chosen] == accuracy.max()
