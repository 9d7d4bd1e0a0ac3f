"""Adam on many independent problems at once, by torch's fused kernel."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import (
    adam,
)  # the function: the class would load torch's compiler, seconds in every worker

Decay = Literal["l2", "decoupled"]


class Adam:
    """Adam (Kingma & Ba 2015) or AdamW (Loshchilov & Hutter 2019) over tensors whose first axis counts problems.

    The problems' losses are summed, which leaves each problem's gradient, and so its path, what it would be alone.

    Args:
        parameters: contiguous tensors S×…; changed in place by `step`.
        rate: learning rate, one for all or one for each of the S problems.
        weight_decay: λ, one for all or one for each problem.
        decay: "l2" adds λ·θ to the gradient (Adam), "decoupled" shrinks θ by rate·λ (AdamW).

    Attributes:
        pace: factor of all rates, for schedules.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rate: float | Sequence[float],
        weight_decay: float | Sequence[float],
        decay: Decay,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not all(p.is_contiguous() for p in parameters):
            raise ValueError("parameters must be contiguous to be changed in place")
        self.pace, problems = 1.0, len(parameters[0])
        rates = [rate] * problems if isinstance(rate, float | int) else list(rate)
        decays = (
            [weight_decay] * problems
            if isinstance(weight_decay, float | int)
            else list(weight_decay)
        )
        self.each = sorted(set(zip(rates, decays, strict=True)))
        self.rows = [
            [i for i, one in enumerate(zip(rates, decays, strict=True)) if one == how]
            for how in self.each
        ]
        self.how = {
            "beta1": betas[0],
            "beta2": betas[1],
            "eps": eps,
            "decoupled_weight_decay": decay == "decoupled",
        }
        self.parameters = self._parts(parameters)
        self.first = [[torch.zeros_like(p) for p in part] for part in self.parameters]
        self.second = [[torch.zeros_like(p) for p in part] for part in self.parameters]
        self.steps = [[torch.zeros(()) for _ in part] for part in self.parameters]

    def _parts(self, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
        """The tensors of the problems under each (rate, weight decay); views, so that updates reach the whole."""
        if len(self.each) == 1:
            return [[t.contiguous() for t in tensors]]
        return [[t[i].contiguous() for t in tensors for i in rows] for rows in self.rows]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Make one update."""
        every = zip(
            self.each,
            self.parameters,
            self._parts(gradients),
            self.first,
            self.second,
            self.steps,
            strict=True,
        )
        for (rate, decay), parameters, slopes, first, second, steps in every:
            adam(
                parameters, slopes, first, second, [], steps,
                fused=True, amsgrad=False, maximize=False, lr=self.pace * rate, weight_decay=decay, **self.how,
            )  # fmt: skip


Gradient = Callable[[Sequence[Tensor], Tensor], Sequence[Tensor]]
"""Gives the gradient by the parameters of the sum of the problems' mean losses on a batch: (parameters, batch)."""


def minimise(
    gradient: Gradient, parameters: Sequence[Tensor], optimiser: Adam, batches: Sequence[Tensor]
) -> None:
    """Run `optimiser` over `batches`."""
    for batch in batches:
        optimiser.step(gradient(parameters, batch))


def by_autograd(loss: Callable[[Sequence[Tensor], Tensor], Tensor]) -> Gradient:
    """Let PyTorch find the gradient of `loss(parameters, batch)`, the sum of the problems' mean losses."""

    def gradient(parameters: Sequence[Tensor], batch: Tensor) -> Sequence[Tensor]:
        leaves = [p.detach().requires_grad_(True) for p in parameters]
        return torch.autograd.grad(loss(leaves, batch), leaves)

    return gradient


def shuffled(images: int, seeds: Sequence[int], batch: int, epochs: int, most: int) -> list[Tensor]:
    """Yield batches of row numbers, S×b each: every epoch each problem visits its images in an order of its own.

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
