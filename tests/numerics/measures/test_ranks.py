import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from clipray.numerics.fusers import FUSERS
from clipray.numerics.measures import cost, ranks, similarity
from tests.numerics.made import support


def test_ranks_and_friedman_equal_scipy_and_demsars_table():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(14, 4, generator=g).double()
    found = ranks.ranks(scores)
    expected = stats.friedmanchisquare(*scores.numpy().T)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert sum(found.mean_rank) == pytest.approx(10)
    # Demšar (2006), section 3.2.2: four methods, 14 data sets, q = 2.569, CD = 1.25
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)


def test_correlation_equals_scipy():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(30, generator=g)
    b = a + 0.3 * torch.rand(30, generator=g)
    found = ranks.correlation(a, b)
    assert found.value == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found.low < found.value < found.high


def test_cka_sees_no_rotation_or_scale_and_equals_its_kernel_form():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=g), torch.randn(50, 4, generator=g)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=g))[0]
    assert similarity.cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    centre = np.eye(50) - 1 / 50
    k, h = (
        centre @ (a @ a.T).numpy() @ centre for a in (x, y)
    )  # HSIC of the centred Gram matrices
    assert similarity.cka(x, y) == pytest.approx(
        (k * h).sum() / np.sqrt((k * k).sum() * (h * h).sum()), rel=1e-4
    )


def test_neighbour_overlap_equals_scikit_learn():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g)
    y = x + torch.randn(60, 6, generator=g)
    near = [
        NearestNeighbors(n_neighbors=5, metric="cosine").fit(a).kneighbors(return_distance=False)
        for a in (x, y)
    ]
    expected = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*near, strict=True)])
    assert similarity.neighbour_overlap(x, y, 5, block=17) == pytest.approx(expected)
    assert similarity.neighbour_overlap(x, 2 * x, 5) == 1


def test_backbones_that_run_are_those_that_the_state_names():
    s = support(images=12)
    state = FUSERS["knora_u"].fit([s], FUSERS["knora_u"].settings)[0]
    single = FUSERS["best_single_on_support"].fit([s], None)[0]
    assert list(cost.backbones_used(single, 3)) == [int(single.tensors["backbone"])]
    assert list(cost.backbones_used(state, 3)) == [0, 1, 2]


def test_agreement_is_scipys_with_an_interval_over_cases():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(6, (30,), generator=generator).double()  # with ties
    b = a + torch.randn(30, generator=generator).round()
    found = ranks.agreement(a, b, resamples=300)
    assert found.kendall.value == pytest.approx(stats.kendalltau(a, b).statistic)
    assert found.spearman.value == pytest.approx(stats.spearmanr(a, b).statistic)
    for value, low, high in found:
        assert low < value < high
    same = ranks.agreement(a, a)
    assert same.kendall == pytest.approx((1, 1, 1))
    opposite = ranks.agreement(a, -a)
    assert opposite.spearman == pytest.approx((-1, -1, -1))
