import random

import numpy as np
import pytest
import torch
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from clipray.numerics.measures import intervals as b


@pytest.mark.parametrize(("k", "n"), [(0, 10), (8, 10), (10, 10), (500, 700)])
def test_wilson_equals_statsmodels(k, n):
    assert b.wilson(k, n)[1:] == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


def test_a_paired_comparison_is_narrower_than_two_single_ones_and_symmetric():
    g = torch.Generator().manual_seed(0)
    hard = torch.randn(500, generator=g)
    a, c = (hard + 0.3 * torch.randn(500, generator=g) < 0.2).double(), (hard < 0.1).double()
    forth, back = b.paired_bootstrap(a, c), b.paired_bootstrap(c, a)
    assert forth.difference == -back.difference
    _, low, high = b.normal_interval(a)
    assert forth.high - forth.low < high - low
    assert 0 < forth.p <= 1
    assert b.paired_bootstrap(a, a).p == 1
    assert b.paired_bootstrap(a, a - 1, resamples=999).p == 0.002


def test_mcnemar_equals_statsmodels():
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(80, generator=g) < 0.7, torch.rand(80, generator=g) < 0.5
    only_x, only_y, p = b.mcnemar(x, y)
    table = [[int((x & y).sum()), only_x], [only_y, int((~x & ~y).sum())]]
    assert p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert b.mcnemar(x, x) == (0, 0, 1.0)


def test_equal_seeds_give_equal_resamples():
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(b.resampled_means(x, 20, 3), b.resampled_means(x, 20, 3))
    assert not torch.equal(b.resampled_means(x, 20, 3), b.resampled_means(x, 20, 4))


def test_the_hierarchical_interval_is_that_of_a_slow_loop():
    """Datasets, support sets and images drawn one by one with Python's own generator."""
    rng = np.random.default_rng(0)
    differences = [
        torch.from_numpy(rng.integers(-1, 2, (sets, images)) + rng.normal(0, 0.3))
        for sets, images in ((3, 40), (5, 25), (1, 60), (2, 30))
    ]
    found = b.nested(differences, resamples=4000)
    draw = random.Random(1)
    samples = []
    for _ in range(4000):
        means = []
        for _ in differences:
            own = draw.choice(differences).tolist()
            images = draw.choices(range(len(own[0])), k=len(own[0]))
            sets = draw.choices(own, k=len(own))
            means.append(np.mean([[one[i] for i in images] for one in sets]))
        samples.append(np.mean(means))
    assert found.difference == pytest.approx(np.mean([float(one.mean()) for one in differences]))
    assert (found.low, found.high) == pytest.approx(np.quantile(samples, (0.025, 0.975)), abs=0.02)


def test_support_sets_that_disagree_widen_the_interval():
    wide = torch.tensor([[1.0] * 30 + [-1.0] * 10, [1.0] * 10 + [-1.0] * 30]).repeat(2, 1)
    alike = wide.mean(0, keepdim=True).expand(4, -1)
    spread = [found.high - found.low for found in map(b.nested, ([wide], [alike]))]
    assert spread[0] > spread[1] + 0.1
    one = wide[:1]
    assert b.nested([one])[:3] == b.paired_bootstrap(one[0], 0 * one[0])[:3]
