"""Temperatures by maximum likelihood: an exact one-dimensional convex solve, all support sets and backbones at once."""

import math
from collections.abc import Callable, Iterable
from itertools import starmap

import torch
from torch import Tensor

from clipray.numerics.solvers.softmax import softmax

CHUNK = (
    200_000  # logits solved at once, where there are several problems: what a core's cache holds
)
_BLOCK = 2**23  # logits of one problem that are looked at together
_PATIENCE = 20  # steps of Newton that need not shrink: far from the minimum they have length 1, and it takes a few


def inverse_temperatures(
    logits_SKMC: Tensor,
    labels_SK: Tensor,
    prior_count: float,
    low: float,
    high: float,
    steps: int = 100,
) -> Tensor:
    """Find β = 1/T per support set and backbone: the minimum over β in [low, high] of

        Σ_k −log softmax(β z_k)[y_k]  +  prior_count · (β − log β)

    (Guo et al. 2017 with a Gamma prior on β whose mode is 1, worth `prior_count` images.) The sum is convex in β. With
    few images every backbone may be right on all of them, and β would run to infinity, or worse than chance, and it
    would run to 0: with `prior_count` > 0 the minimum is finite and positive, with 0 the bounds hold it.
    Newton's method on log β inside a bracket, which is halved where Newton leaves it or does not halve its last step.

    Args:
        logits_SKMC: logits of the support images.
        labels_SK: int64 classes.
        prior_count: ≥ 0, weight of the prior, in images.
        low, high: bounds of β, both positive.
        steps: the most iterations; stops early when all are solved to 1e-10 in log β.

    Returns:
        beta_SM, float64. Without images all are 1 (the prior's mode), or 1 without a prior too.

    >>> z = torch.tensor([2.0, 0.0]).repeat(4, 1)[None, :, None]  # p = softmax(2β, 0); three of four are class 0
    >>> beta = inverse_temperatures(z, torch.tensor([[0, 0, 0, 1]]), prior_count=0.0, low=0.01, high=100.0)
    >>> round(beta.item(), 6)  # sigmoid(2β) = 3/4, so β = log(3) / 2
    0.549306
    """
    sets, images, backbones, _ = logits_SKMC.shape
    if images == 0:
        return torch.ones(sets, backbones, dtype=torch.float64).clamp(low, high)
    if sets * backbones > 1 and logits_SKMC.numel() > CHUNK:
        return _in_chunks(logits_SKMC, labels_SK, prior_count, low, high, steps)
    size = max(1, _BLOCK // max(1, logits_SKMC[:, :1].numel()))
    blocks = [*zip(logits_SKMC.split(size, 1), labels_SK.split(size, 1), strict=True)]
    whole = [_margin(*blocks[0])] if len(blocks) == 1 else None

    def margins() -> Iterable[Tensor]:
        return whole or starmap(_margin, blocks)

    return _solve(margins, (sets, backbones), prior_count, low, high, steps).exp()


def _in_chunks(logits_SKMC: Tensor, labels_SK: Tensor, *how: float) -> Tensor:
    """`inverse_temperatures` of some problems after others, as many at once as a chunk holds: sets, or backbones."""
    sets, _, backbones, _ = logits_SKMC.shape
    many = sets if sets > 1 else backbones
    at_once = max(1, CHUNK * many // logits_SKMC.numel())
    if sets == 1:
        parts = logits_SKMC.split(at_once, dim=2)
        return torch.cat([inverse_temperatures(z, labels_SK, *how) for z in parts], dim=1)
    every = zip(logits_SKMC.split(at_once), labels_SK.split(at_once), strict=True)
    return torch.cat([inverse_temperatures(z, y, *how) for z, y in every])


def _margin(logits_SKMC: Tensor, labels_SK: Tensor) -> Tensor:
    """z − z[y] in double precision, S×M×K×C."""
    z = logits_SKMC.double()
    own = labels_SK[:, :, None, None].expand(-1, -1, z.shape[2], 1)
    return (z - z.gather(3, own)).transpose(1, 2).contiguous()


def _moments(margin_SMKC: Tensor, beta_SM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over images of E[m], E[m]² and E[m²], for each problem; E is the mean under softmax(β m)."""
    p = softmax(margin_SMKC * beta_SM[..., None, None])
    pulled = p.mul_(margin_SMKC)
    mean_SMK = pulled.sum(3)
    square = torch.linalg.vecdot(pulled.flatten(2), margin_SMKC.flatten(2))
    return mean_SMK.sum(2), mean_SMK.square().sum(2), square


def _solve(
    margins: Callable[[], Iterable[Tensor]],
    shape_SM: tuple[int, int],
    prior_count: float,
    low: float,
    high: float,
    steps: int,
) -> Tensor:
    """log β from z − z[y], which `margins` gives block by block."""
    bottom = torch.full(shape_SM, math.log(low), dtype=torch.float64)
    top = torch.full_like(bottom, math.log(high))
    u, last, done = (
        torch.zeros_like(bottom).clamp(bottom, top),
        top - bottom,
        torch.zeros_like(bottom).bool(),
    )
    for step in range(steps):
        beta = u.exp()
        parts = zip(*(_moments(margin, beta) for margin in margins()), strict=True)
        mean, mean_square, square = (sum(part[1:], part[0]) for part in parts)
        first = mean + prior_count * (1 - 1 / beta)
        second = square - mean_square + prior_count / beta.square()
        bottom, top = torch.where(first < 0, u, bottom), torch.where(first > 0, u, top)
        newton = u - first / (beta * second + first).clamp_min(
            1e-300
        )  # d/du = β d/dβ; one β cancels
        length = (newton - u).abs()
        done |= (length < 1e-10) | (first == 0)  # stays where it is, so company changes no result
        good = (newton > bottom) & (newton < top) & ((length < last / 2) | (step < _PATIENCE))
        new = torch.where(done, u, torch.where(good, newton, (bottom + top) / 2))
        u, last = new, (new - u).abs()
        if done.all():
            break
    return u
