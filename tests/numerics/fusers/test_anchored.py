"""`anchored`: between what text says and a linear probe."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from clipray.numerics.contracts import Support
from clipray.numerics.fusers import FUSERS, anchored, averages, settings_of
from tests.numerics.made import problem, support


def fitted(s, **changes):
    return FUSERS["anchored"].fit([s], settings_of("anchored", changes))[0]


@pytest.mark.parametrize("penalty", [0.02, 0.5])
def test_the_probe_minimises_its_objective_as_scipys_solver_does(penalty):
    s = support(images=24, seed=3)
    state = fitted(s, penalty=penalty, tolerance=1e-9)
    units = [e.double() / e.double().norm(dim=1, keepdim=True) for e in s.embeddings]
    x = (torch.cat(units, 1) / len(units) ** 0.5).numpy()
    x = np.hstack([x - x.mean(0), np.ones((len(x), 1))])
    beta = state.tensors["beta_M"][:, None]
    text = ((s.logits_KMC.double() * beta).mean(1) * state.tensors["sure_1"]).numpy()
    labels, classes = s.labels_K.numpy(), text.shape[1]

    def objective(flat):
        w = flat.reshape(x.shape[1], classes)
        z = text + x @ w
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        rows = np.arange(len(x))
        value = -np.log(p[rows, labels]).sum() + penalty / 2 * (w**2).sum()
        p[rows, labels] -= 1
        return value, (x.T @ p + penalty * w).ravel()

    expected = minimize(
        objective, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B", tol=1e-12
    ).x
    np.testing.assert_allclose(state.tensors["w_DC"].numpy().ravel(), expected, atol=2e-3)


def test_temperatures_are_fitted_once_and_a_part_of_a_support_set_has_its_own():
    s, test = support(seed=1, images=24), problem(seed=2)
    before = averages.fit_twice_calibrated([s], averages.CALIBRATED)[0]
    again = averages.fit_twice_calibrated([s], averages.CALIBRATED)[0]
    assert again.tensors.keys() == {"beta_M", "sure_1"}
    assert all(torch.equal(again.tensors[name], t) for name, t in before.tensors.items())
    again.tensors["beta_M"].zero_()  # a state belongs to whoever asked for it
    assert torch.equal(fitted(s).tensors["beta_M"], before.tensors["beta_M"])
    other = averages.Calibrated(prior_count=0.5)
    assert not torch.equal(
        averages.fit_calibrated([s], other)[0].tensors["beta_M"], before.tensors["beta_M"]
    )
    part = fitted(s.take(torch.arange(12)))
    fresh = Support(s.logits_KMC[:12], tuple(e[:12] for e in s.embeddings), s.labels_K[:12])
    torch.testing.assert_close(
        anchored.apply(part, *test[:2]), anchored.apply(fitted(fresh), *test[:2])
    )
    assert not torch.equal(part.tensors["beta_M"], before.tensors["beta_M"])


def test_under_a_heavy_penalty_it_says_what_text_says():
    s, test = support(seed=1), problem(seed=2)
    state = fitted(s, penalty=1e9)
    text = averages.c_log_avg(state, test[0])
    ours = anchored.apply(state, test[0], test[1])
    assert torch.equal(ours.argsort(1), text.argsort(1))


def test_without_support_images_it_is_the_plain_average():
    s, test = support(images=20), problem(seed=2)
    state = fitted(s.take(torch.zeros(20, dtype=torch.bool)))
    torch.testing.assert_close(
        anchored.apply(state, test[0], test[1]), averages.log_avg(state, test[0])
    )


def test_a_class_without_support_images_keeps_what_text_says():
    s, test = support(images=40), problem(seed=2)
    state = fitted(s.take(s.labels_K != 2))
    text = averages.twice_calibrated(state, test[0])
    learned = torch.cat([e / e.norm(dim=1, keepdim=True) for e in test[1]], 1) / len(test[1]) ** 0.5
    learned = (learned - state.tensors["centre_D"]) @ state.tensors["w_DC"][:-1] + state.tensors[
        "w_DC"
    ][-1]
    assert learned[:, 2].abs().max() == 0
    assert learned.abs().max() > 0
    torch.testing.assert_close(
        anchored.apply(state, test[0], test[1]),
        torch.log_softmax(text + learned, dim=1),
        atol=1e-5,
        rtol=1e-5,
    )


def test_it_learns_from_images_where_text_is_useless():
    z, embeddings, y = problem(images=80, seed=3, noise=0.5)
    useless = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    state = fitted(Support(useless, embeddings, y))
    other = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    assert (anchored.apply(state, other, embeddings).argmax(1) == y).float().mean() > 0.9


def test_it_keeps_to_text_where_images_are_useless():
    z, embeddings, y = problem(images=40, seed=3, noise=0.5)
    noise = tuple(
        torch.randn(e.shape, generator=torch.Generator().manual_seed(1)) for e in embeddings
    )
    state = fitted(Support(z, noise, y))
    other = tuple(
        torch.randn(e.shape, generator=torch.Generator().manual_seed(2)) for e in embeddings
    )
    text = (z.mean(1).argmax(1) == y).float().mean()
    assert (anchored.apply(state, z, other).argmax(1) == y).float().mean() >= text - 0.05
