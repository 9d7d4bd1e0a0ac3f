"""Methods compared over many data sets: ranks, Friedman's test, Nemenyi's critical difference, mean gain."""

from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from clipray.numerics.measures.intervals import Interval, percentiles


class Ranks(NamedTuple):
    """Friedman's test over data sets (Demšar 2006).

    Attributes:
        mean_rank: of each method, 1 is best; equal scores share their mean rank.
        statistic, p: Friedman's χ² (with its correction for ties) and p-value of "all methods are alike".
        critical_difference: two methods whose mean ranks lie at least this far apart differ (Nemenyi).
    """

    mean_rank: list[float]
    statistic: float
    p: float
    critical_difference: float


def ranks(scores_XY: Tensor, alpha: float = 0.05) -> Ranks:
    """Rank Y methods on X data sets, higher scores being better.

    >>> ranks(torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [5.0, 3.0, 3.0]])).mean_rank
    [1.0, 2.5, 2.5]
    """
    scores = scores_XY.double().numpy()
    sets, methods = scores.shape
    each = np.vstack([stats.rankdata(-row) for row in scores])
    mean = each.mean(0)
    if methods > 2 and np.ptp(each, axis=1).any():
        statistic, p = stats.friedmanchisquare(*scores.T)
    else:
        statistic, p = float("nan"), float("nan")
    q = (
        stats.studentized_range.ppf(1 - alpha, methods, np.inf) / np.sqrt(2)
        if methods > 1
        else float("nan")
    )
    difference = q * np.sqrt(methods * (methods + 1) / (6 * sets))
    return Ranks(mean.tolist(), float(statistic), float(p), float(difference))


def correlation(a_X: Tensor, b_X: Tensor, resamples: int = 2000, seed: int = 0) -> Interval:
    """Compute Pearson's correlation over data sets with its percentile-bootstrap interval.

    >>> round(correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0])).value, 6)
    1.0
    """
    pair = torch.stack([a_X.double(), b_X.double()])
    drawn = torch.randint(
        pair.shape[1], (resamples, pair.shape[1]), generator=torch.Generator().manual_seed(seed)
    )
    sample = pair[:, drawn]
    centred = sample - sample.mean(2, keepdim=True)
    product, squares = (centred[0] * centred[1]).sum(1), centred.square().sum(2)
    return Interval(
        float(torch.corrcoef(pair)[0, 1]), *percentiles(product / (squares[0] * squares[1]).sqrt())
    )


class Agreement(NamedTuple):
    """How alike two orders are: Kendall's τ-b and Spearman's ρ, each with its bootstrap interval."""

    kendall: Interval
    spearman: Interval


def agreement(a_X: Tensor, b_X: Tensor, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Compare the orders that two methods give to X cases; the interval resamples the cases.

    >>> agreement(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])).spearman.value
    0.5
    """
    pair = torch.stack([a_X.double(), b_X.double()])
    cases = pair.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(cases, (resamples, cases), generator=generator)
    every = torch.cat([torch.arange(cases)[None], drawn])
    a_BX, b_BX = pair[:, every]
    kendall_B, spearman_B = _kendall(a_BX, b_BX), _spearman(a_BX, b_BX)
    return Agreement(
        Interval(float(kendall_B[0]), *percentiles(kendall_B[1:])),
        Interval(float(spearman_B[0]), *percentiles(spearman_B[1:])),
    )


def _kendall(a_BX: Tensor, b_BX: Tensor) -> Tensor:
    """τ-b: pairs in the same order less those in opposite orders; ties are taken out of the bounds."""
    signs = [torch.sign(x[:, :, None] - x[:, None, :]).flatten(1) for x in (a_BX, b_BX)]
    lengths = [sign.square().sum(1) for sign in signs]
    return (signs[0] * signs[1]).sum(1) / (lengths[0] * lengths[1]).sqrt()


def _spearman(a_BX: Tensor, b_BX: Tensor) -> Tensor:
    """Pearson's correlation of the ranks, equal values sharing theirs."""
    both = [torch.from_numpy(stats.rankdata(x.numpy(), axis=1)) for x in (a_BX, b_BX)]
    a, b = (x - x.mean(1, keepdim=True) for x in both)
    return (a * b).sum(1) / (a.square().sum(1) * b.square().sum(1)).sqrt()
