import itertools
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, matthews_corrcoef
from statsmodels.stats.contingency_tables import Table2x2
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from clipray.numerics.measures import complementarity as c


def rights(images=400, backbones=4, seed=0):
    rng = np.random.default_rng(seed)
    easy = rng.random((images, 1))
    return torch.from_numpy(
        (easy + rng.random((images, backbones)) * 0.8) > np.linspace(0.6, 1.1, backbones)
    )


R = rights()


def test_the_histogram_counts_rows_and_merging_shards_is_one_pass():
    for right in (R, rights(300, 23)):  # numbered patterns, and packed bits
        p = c.patterns(right)
        rows, counts = np.unique(right.numpy(), axis=0, return_counts=True)
        assert {
            tuple(r): n for r, n in zip(p.rights_UM.tolist(), p.counts_U.tolist(), strict=True)
        } == {tuple(r): n for r, n in zip(rows.tolist(), counts.tolist(), strict=True)}
        merged = c.merge([c.patterns(part) for part in right.split(37)])
        assert torch.equal(merged.rights_UM, p.rights_UM)
        assert torch.equal(merged.counts_U, p.counts_U)


def test_packed_and_numbered_histograms_measure_the_same(monkeypatch):
    numbered = c.of_set(c.patterns(R)) | c.by_backbone(c.patterns(R))
    monkeypatch.setattr(c, "_DENSE", 1)
    packed = c.of_set(c.patterns(R)) | c.by_backbone(c.patterns(R))
    for name, value in numbered.items():
        torch.testing.assert_close(packed[name], value)


def test_pairs_equal_scikit_learn_and_statsmodels():
    measures = c.pairs(c.patterns(R))
    for i, j in itertools.permutations(range(4), 2):
        a, b = R[:, i].numpy(), R[:, j].numpy()
        odds = Table2x2(
            np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]])
        ).oddsratio
        expected = {
            "disagreement": (a != b).mean(),
            "double_fault": (~a & ~b).mean(),
            "yule_q": (odds - 1) / (odds + 1),
            "phi": matthews_corrcoef(a, b),
            "kappa": cohen_kappa_score(a, b),
            "rescue": a[~b].mean(),
        }
        for name, value in expected.items():
            assert measures[name][i, j].item() == pytest.approx(value, abs=1e-9), name


def test_measures_of_the_set_equal_their_definitions():
    r = R.numpy()
    n, size = r.shape
    m = {name: v.item() for name, v in c.of_set(c.patterns(R)).items()}
    accuracy = r.mean(0)
    assert m["oracle"] == pytest.approx(r.any(1).mean())
    assert m["complementarity"] == pytest.approx(r[~r[:, accuracy.argmax()]].any(1).mean())
    assert m["fleiss_kappa"] == pytest.approx(fleiss_kappa(aggregate_raters(r.astype(int))[0]))
    right = r.sum(1)
    assert m["entropy"] == pytest.approx(np.mean([min(k, size - k) / (size - 2) for k in right]))
    assert m["kohavi_wolpert"] == pytest.approx(np.mean([k * (size - k) for k in right]) / size**2)
    # Kohavi-Wolpert variance is (L − 1) / 2L times the mean disagreement (Kuncheva & Whitaker 2003, eq. 20)
    assert m["kohavi_wolpert"] == pytest.approx((size - 1) / (2 * size) * m["mean_disagreement"])
    rng = np.random.default_rng(0)
    one = two = 0  # P(a random backbone fails), P(two different random backbones fail)
    for row in rng.permuted(np.repeat(~r, 200, axis=0), axis=1):
        one += row[0]
        two += row[0] & row[1]
    assert m["generalised_diversity"] == pytest.approx(1 - two / one, abs=0.01)
    p = np.bincount(size - right, minlength=size + 1) / n
    coincident = sum((size - i) / (size - 1) * p[i] for i in range(1, size + 1)) / (1 - p[0])
    assert m["coincident_failure_diversity"] == pytest.approx(coincident)


def test_every_subsets_oracle_and_the_shapley_values_equal_brute_force():
    p = c.patterns(R)
    table = c.oracle_of_subsets(p)
    oracle = {
        s: R[:, list(s)].any(1).double().mean().item()
        for k in range(5)
        for s in itertools.combinations(range(4), k)
    }
    for s, value in oracle.items():
        assert table[sum(1 << m for m in s)].item() == pytest.approx(value)
    shapley = np.zeros(4)
    for order in itertools.permutations(range(4)):
        for k, m in enumerate(order):
            shapley[m] += (
                oracle[tuple(sorted(order[: k + 1]))] - oracle[tuple(sorted(order[:k]))]
            ) / 24
    np.testing.assert_allclose(c.by_backbone(p)["shapley"], shapley, atol=1e-12)
    exclusive = [(R[:, m] & (R.sum(1) == 1)).double().mean() for m in range(4)]
    np.testing.assert_allclose(c.by_backbone(p)["exclusive"], exclusive)


def test_greedy_coverage_ends_at_the_oracle_and_starts_with_the_best():
    order = c.coverage_order(c.patterns(R))
    assert order[0][0] == int(R.double().mean(0).argmax())
    assert order[-1][1] == pytest.approx(R.any(1).double().mean().item())


def test_edge_cases_are_bounds_or_undefined():
    all_right = c.of_set(c.patterns(torch.ones(5, 3)))
    assert all_right["oracle"] == 1
    assert all_right["complementarity"].isnan()
    assert all_right["coincident_failure_diversity"] == 0
    alone = c.of_set(c.patterns(torch.tensor([[1], [0]])))
    assert alone["oracle_gain"] == 0
    assert alone["entropy"].isnan()


def test_resamples_spread_as_the_binomial_says():
    p = c.resample(c.patterns(R), 4000, seed=0)
    spread = (c.shares(p) @ p.rights_UM.double()).std(0).numpy()
    a = R.double().mean(0).numpy()
    np.testing.assert_allclose(spread, np.sqrt(a * (1 - a) / len(R)), rtol=0.1)
    assert c.pairs(p)["yule_q"].shape == (4000, 4, 4)
    assert c.oracle_of_subsets(p).shape == (4000, 16)


def test_a_million_images_of_nine_backbones_take_seconds():
    right = torch.rand(1_000_000, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    start = time.perf_counter()
    p = c.patterns(right)
    c.of_set(p), c.pairs(p), c.by_backbone(p), c.oracle_of_subsets(p)
    assert time.perf_counter() - start < 5  # 0.2 s alone; the machine may be busy
