import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from clipray.numerics.solvers import newton
from clipray.numerics.solvers.newton import inverse_temperatures
from tests.numerics.made import problem


def penalised(beta, z, y, count):
    z = z.double().numpy() * beta
    log_p = (
        z
        - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        - z.max(1, keepdims=True)
    )
    return -log_p[np.arange(len(y)), y.numpy()].sum() + count * (beta - np.log(beta))


@pytest.mark.parametrize("count", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("scale", [0.3, 3.0, 100.0])
def test_equals_scipys_bounded_minimum(count, scale):
    cases = [problem(seed=s, noise=2.0, scale=scale) for s in range(3)]
    z, y = torch.stack([c[0] for c in cases]), torch.stack([c[2] for c in cases])
    found = inverse_temperatures(z, y, count, 1e-3, 1e3)
    assert found.shape == (3, 3)
    for s in range(3):
        for m in range(3):
            theirs = minimize_scalar(
                lambda u, s=s, m=m: penalised(np.exp(u), z[s, :, m], y[s], count),
                bounds=(np.log(1e-3), np.log(1e3)),
                method="bounded",
                options={"xatol": 1e-10},
            )
            mine = penalised(found[s, m].item(), z[s, :, m], y[s], count)
            assert mine <= theirs.fun + 1e-9
            assert found[s, m].item() == pytest.approx(np.exp(theirs.x), rel=1e-4)


def test_separable_support_stays_finite_with_a_prior_and_meets_the_bound_without():
    z, y = torch.eye(5)[None, :, None] * 3, torch.arange(5)[None]
    assert inverse_temperatures(z, y, 0.0, 0.01, 50.0).item() == pytest.approx(50.0, rel=1e-6)
    assert 1 < inverse_temperatures(z, y, 1.0, 0.01, 50.0).item() < 10
    wrong = (y + 1) % 5
    assert inverse_temperatures(z, wrong, 0.0, 0.01, 50.0).item() == pytest.approx(0.01, rel=1e-6)


def test_many_images_find_the_temperature_they_were_drawn_with():
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(20_000, 5, generator=g)
    y = torch.distributions.Categorical(logits=z / 2.5)
    torch.manual_seed(0)
    labels = y.sample()
    assert 1 / inverse_temperatures(
        z[None, :, None], labels[None], 1.0, 1e-3, 1e3
    ).item() == pytest.approx(2.5, rel=0.05)


def test_blocks_of_images_change_no_temperature(monkeypatch):
    z, _, y = problem(images=50, noise=2.0)
    whole = inverse_temperatures(z[None], y[None], 1.0, 1e-3, 1e3)
    monkeypatch.setattr(newton, "_BLOCK", 7 * z[0].numel())
    parts = inverse_temperatures(z[None], y[None], 1.0, 1e-3, 1e3)
    torch.testing.assert_close(parts, whole, atol=0.0, rtol=1e-9)


@pytest.mark.parametrize("problems", [1, 2, 5])
def test_problems_solved_some_at_a_time_equal_those_solved_at_once(monkeypatch, problems):
    cases = [problem(images=20, seed=s, noise=2.0) for s in range(3)]
    z, y = torch.stack([c[0] for c in cases]), torch.stack([c[2] for c in cases])
    whole = inverse_temperatures(z, y, 1.0, 1e-3, 1e3)
    monkeypatch.setattr(newton, "CHUNK", problems * z[0, :, 0].numel())
    parts = inverse_temperatures(z, y, 1.0, 1e-3, 1e3)
    torch.testing.assert_close(parts, whole, atol=0.0, rtol=1e-9)


def test_no_images_leave_the_temperature_at_one():
    assert (
        inverse_temperatures(
            torch.zeros(2, 0, 3, 4), torch.zeros(2, 0, dtype=torch.int64), 1.0, 0.1, 10
        )
        .eq(1)
        .all()
    )


def test_large_logits_and_a_class_shift_change_nothing():
    z, _, y = problem(scale=100.0, noise=2.0)
    shift = torch.randn(len(y), 3, 1) * 50
    a = inverse_temperatures(z[None].double(), y[None], 1.0, 1e-3, 1e3)
    b = inverse_temperatures((z.double() + shift)[None], y[None], 1.0, 1e-3, 1e3)
    torch.testing.assert_close(a, b)
