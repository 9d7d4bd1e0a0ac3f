"""Adam on many independent problems at once, exact to torch.optim."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Decay = Literal["l2", "decoupled"]


class Adam:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019) over tensors whose first axis counts problems.

    The same arithmetic as `torch.optim.Adam(W)`; here the problems' losses are summed, which leaves each problem's
    gradient, and so its path, what it would be alone.

    Args:
        parameters: tensors S×…; changed in place by `step`.
        rate: learning rate.
        weight_decay: λ.
        decay: "l2" adds λ·θ to the gradient (Adam), "decoupled" shrinks θ by rate·λ (AdamW).
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rate: float,
        weight_decay: float,
        decay: Decay,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.rate, self.weight_decay, self.decay, self.betas, self.eps = rate, weight_decay, decay, betas, eps
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update."""
        self.steps += 1
        b1, b2 = self.betas
        size = self.rate / (1 - b1**self.steps)
        root = (1 - b2**self.steps) ** 0.5
        gradients = list(gradients)
        if self.weight_decay and self.decay == "decoupled":
            torch._foreach_mul_(self.parameters, 1 - self.rate * self.weight_decay)
        elif self.weight_decay:
            gradients = torch._foreach_add(gradients, self.parameters, alpha=self.weight_decay)
        torch._foreach_lerp_(self.first, gradients, 1 - b1)
        torch._foreach_mul_(self.second, b2)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - b2)
        denominator = torch._foreach_sqrt(self.second)
        torch._foreach_div_(denominator, root)
        torch._foreach_add_(denominator, self.eps)
        torch._foreach_addcdiv_(self.parameters, self.first, denominator, -size)


def minimise(
    loss: Callable[[Sequence[Tensor], Tensor], Tensor],
    parameters: Sequence[Tensor],
    optimiser: Adam,
    batches: Sequence[Tensor],
) -> None:
    """Run `optimiser` over `batches`; `loss(parameters, batch)` is the sum of the problems' mean losses."""
    for batch in batches:
        leaves = [p.detach().requires_grad_(True) for p in parameters]
        gradients = torch.autograd.grad(loss(leaves, batch), leaves)
        optimiser.step(gradients)


def shuffled(images: int, seeds: Sequence[int], batch: int, epochs: int, most: int) -> list[Tensor]:
    """Batches of row numbers, S×b each: every epoch each problem visits its images in an order of its own.

    Args:
        images: K, the same for all problems.
        seeds: S seeds, one per problem.
        batch: images per step; the last batch of an epoch may be smaller. 0: all.
        epochs: passes over the images.
        most: cap on the number of steps; 0: none.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = batch if 0 < batch < images else images
    batches: list[Tensor] = []
    for _ in range(epochs):
        if size == images:
            order = torch.arange(images).expand(len(seeds), -1)
        else:
            order = torch.stack([torch.randperm(images, generator=g) for g in generators])
        batches.extend(order.split(size, dim=1))
        if most and len(batches) >= most:
            return batches[:most]
    return batches
