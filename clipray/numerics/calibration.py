"""Temperatures by maximum likelihood: an exact one-dimensional convex solve, all support sets and backbones at once."""

import torch
from torch import Tensor

_CHUNK = 64_000_000  # logits held at once in float64: half a gigabyte


def inverse_temperatures(
    logits_SKMC: Tensor, labels_SK: Tensor, prior_count: float, low: float, high: float, steps: int = 100
) -> Tensor:
    """β = 1/T per support set and backbone: the minimum over β in [low, high] of

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
        steps: the most iterations; stops early when all are solved to 1e-10.

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
    if sets * backbones > 1 and logits_SKMC.numel() > _CHUNK:
        halves = (logits_SKMC.split(1, dim=0) if sets > 1 else logits_SKMC.split(1, dim=2), 0 if sets > 1 else 1)
        parts = [
            inverse_temperatures(part, labels_SK[i : i + 1] if sets > 1 else labels_SK, prior_count, low, high, steps)
            for i, part in enumerate(halves[0])
        ]
        return torch.cat(parts, dim=halves[1])
    z = logits_SKMC.double()
    own = labels_SK[:, :, None, None].expand(-1, -1, backbones, 1)
    margin_SKMC = z - z.gather(3, own)

    def slopes(beta_SM: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(margin_SKMC * beta_SM[:, None, :, None], dim=3)
        mean = (p * margin_SKMC).sum(3)
        variance = (p * margin_SKMC.square()).sum(3) - mean.square()
        first = mean.sum(1) + prior_count * (1 - 1 / beta_SM)
        return first, variance.sum(1) + prior_count / beta_SM.square()

    bottom = torch.full((sets, backbones), low, dtype=torch.float64).log()
    top = torch.full((sets, backbones), high, dtype=torch.float64).log()
    u = torch.zeros_like(bottom).clamp(bottom, top)
    last = top - bottom
    for _ in range(steps):
        beta = u.exp()
        first, second = slopes(beta)
        bottom, top = torch.where(first < 0, u, bottom), torch.where(first > 0, u, top)
        newton = u - first / (beta * second + first).clamp_min(1e-300)  # d/du = β d/dβ; one β cancels
        good = (newton > bottom) & (newton < top) & ((newton - u).abs() < last / 2)
        new = torch.where(good, newton, (bottom + top) / 2)
        new = torch.where(first == 0, u, new)
        last = (new - u).abs()
        u = new
        if bool((last < 1e-10).all()):
            break
    return u.exp()
