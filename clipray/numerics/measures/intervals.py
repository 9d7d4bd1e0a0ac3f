"""How sure a number is: intervals over images, paired comparisons, spread over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import bdtr, ndtri  # scipy.stats takes 2 s of a core in every worker
from torch import Tensor


class Interval(NamedTuple):
    """A value with its interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A paired comparison of two methods on the same images.

    Attributes:
        difference: mean of a − b, with its interval `low`, `high`.
        p: two-sided p-value of "no difference".
    """

    difference: float
    low: float
    high: float
    p: float


def wilson(successes: float, images: int, confidence: float = 0.95) -> Interval:
    """Compute Wilson's score interval of a proportion (Wilson 1927).

    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.8, 0.4902, 0.9433]
    """
    if images == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = float(ndtri(0.5 + confidence / 2))
    share, weight = successes / images, z * z / images
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (share * (1 - share) / images + weight / (4 * images)) ** 0.5
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def share(right_N: Tensor) -> Interval:
    """Compute the share of ones among zeros and ones, with Wilson's interval.

    >>> [round(v, 4) for v in share(torch.tensor([1.0] * 8 + [0.0] * 2))]
    [0.8, 0.4902, 0.9433]
    """
    return wilson(float(right_N.sum()), len(right_N))


def normal_interval(values_N: Tensor, confidence: float = 0.95) -> Interval:
    """Compute a mean with its interval by the central limit theorem: mean ± z · s / √N.

    >>> [round(v, 4) for v in normal_interval(torch.tensor([1.0, 2.0, 3.0]))]
    [2.0, 0.8684, 3.1316]
    """
    values = values_N.double()
    mean = float(values.mean())
    half = float(ndtri(0.5 + confidence / 2) * values.std() / len(values) ** 0.5)
    return Interval(mean, mean - half, mean + half)


def resampled_counts(counts_U: Tensor, resamples: int, seed: int) -> Tensor:
    """Draw counts_BU: how often each of U kinds of image occurs when all images are drawn anew with replacement.

    >>> resampled_counts(torch.tensor([3, 7]), resamples=4, seed=0).sum(1)
    tensor([10, 10, 10, 10])
    """
    counts = counts_U.numpy().astype(np.int64)
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.multinomial(counts.sum(), counts / counts.sum(), size=resamples))


def resampled_means(values_NV: Tensor, resamples: int, seed: int) -> Tensor:
    """Draw means_BV: column means when the N rows are drawn anew with replacement; rows stay whole, so it is paired.

    Rows that are equal are counted first, which is the same distribution at a fraction of the work.
    """
    rows_UV, counts_U = _rows_counted(values_NV.double())
    images = len(values_NV)
    if len(rows_UV) * 2 <= images:
        return resampled_counts(counts_U, resamples, seed).double() @ rows_UV / images
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(resamples):
        drawn = torch.randint(images, (images,), generator=generator)
        means.append(torch.bincount(drawn, minlength=images).double() @ values_NV.double() / images)
    return torch.stack(means)


def _rows_counted(values_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows in rising order, and how often each occurs; of one column PyTorch has them at a fraction of it."""
    if values_NV.shape[1] > 1:
        return torch.unique(values_NV, dim=0, return_counts=True)
    levels_U, counts_U = torch.unique(values_NV[:, 0], return_counts=True)
    return levels_U[:, None], counts_U


def percentiles(samples_B: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the percentile interval of bootstrap samples; samples that are undefined (nan) are left out.

    >>> percentiles(torch.arange(5.0), 0.5)
    (1.0, 3.0)
    >>> percentiles(torch.tensor([1.0, 2.0, torch.inf, torch.inf]))
    (1.0, inf)
    """
    kept = samples_B[~samples_B.isnan()].double().numpy()
    if not len(kept):
        return float("nan"), float("nan")
    # nothing lies between two samples that are infinite, such as ratios to nothing
    method = "linear" if np.isfinite(kept).all() else "inverted_cdf"
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2], method=method)
    return float(low), float(high)


def paired_bootstrap(
    a_N: Tensor, b_N: Tensor, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Compute the mean of a − b over the same images, with interval and p-value by resampling the images.

    p is twice the smaller share of resamples on either side of 0, counting the data themselves as one resample.

    >>> paired_bootstrap(torch.ones(5), torch.zeros(5), resamples=99)
    Comparison(difference=1.0, low=1.0, high=1.0, p=0.02)
    """
    difference_N = a_N.double() - b_N.double()
    samples = resampled_means(difference_N[:, None], resamples, seed)[:, 0]
    interval = percentiles(samples, confidence)
    return Comparison(float(difference_N.mean()), *interval, _p(samples))


def nested(
    differences: Sequence[Tensor], resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> Comparison:
    """Compute the mean of paired differences over datasets, with support sets and images drawn anew inside each.

    A resample draws datasets with replacement, and for each one anew its support sets and its images, so that the
    interval holds all three kinds of chance. With one dataset it is about that dataset: its images and support sets.

    Args:
        differences: for each dataset, differences_SN of S support sets on the same N images.

    >>> nested([torch.ones(2, 5), torch.zeros(3, 4)], resamples=99).difference
    0.5
    """
    samples_GB = torch.stack(
        [_within(one, resamples, seed + group) for group, one in enumerate(differences)]
    )
    value = float(torch.stack([one.double().mean() for one in differences]).mean())
    groups = len(differences)
    samples_B = samples_GB[0]
    if groups > 1:
        rng = np.random.default_rng(seed)
        chosen_BG = torch.from_numpy(rng.integers(groups, size=(resamples, groups)))
        # a dataset that is drawn twice has two resamples of its own
        own_BG = torch.from_numpy(rng.integers(resamples, size=(resamples, groups)))
        samples_B = samples_GB[chosen_BG, own_BG].mean(1)
    return Comparison(value, *percentiles(samples_B, confidence), _p(samples_B))


def _within(difference_SN: Tensor, resamples: int, seed: int) -> Tensor:
    """means_B of one dataset when its images and its support sets are drawn anew; all sets share the images."""
    means_BS = resampled_means(difference_SN.double().T.contiguous(), resamples, seed)
    sets = means_BS.shape[1]
    rng = np.random.default_rng([seed, 1])  # not the stream that draws the images
    times_BS = rng.multinomial(sets, [1 / sets] * sets, size=resamples)
    return (means_BS * torch.from_numpy(times_BS)).sum(1) / sets


def _p(samples_B: Tensor) -> float:
    """Twice the smaller share of resamples on either side of 0, counting the data themselves as one resample."""
    below, above = int((samples_B <= 0).sum()), int((samples_B >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(samples_B) + 1))


def mcnemar(right_a_N: Tensor, right_b_N: Tensor) -> tuple[int, int, float]:
    """Apply McNemar's exact test to two methods' correctness on the same images.

    Returns:
        images only a has right, images only b has right, the two-sided binomial p-value.

    >>> mcnemar(torch.tensor([1, 1, 1, 1, 0]), torch.tensor([0, 0, 0, 0, 0]))
    (4, 0, 0.125)
    """
    only_a = int((right_a_N.bool() & ~right_b_N.bool()).sum())
    only_b = int((~right_a_N.bool() & right_b_N.bool()).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    lower_tail = bdtr(min(only_a, only_b), only_a + only_b, 0.5)
    return only_a, only_b, min(1.0, 2 * float(lower_tail))
