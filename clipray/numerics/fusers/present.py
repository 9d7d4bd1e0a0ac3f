"""How many classes a batch shows, by what a start says of its images.

Where it is about one, differences between the images are none between classes, and a mixture of Gaussians takes a part
of the class for another one. What the batch teaches is then its class shares: those that make the start's probabilities
more likely (EM, as for a shift of class shares: Saerens et al. 2002, https://doi.org/10.1162/089976602753284446).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Shares of one class are there after a few rounds. After many, a class that text takes for another one on a part of its
# images loses all of them to that one.
ROUNDS = 3
# Mean probabilities of more effective classes than these are of no batch of one class whose start is right on half of
# it: no round is needed.
MANY = 8.0
_TINY = 1e-12


class Present(NamedTuple):
    """What a start says of the classes of a batch: the logs of their shares, and the effective number of them."""

    log_share_C: Tensor
    classes: float


def effective(count_C: Tensor) -> float:
    """Compute how many classes of equal size would be as even: (Σn)² / Σn².

    >>> effective(torch.tensor([2.0, 2.0, 0.0])), effective(torch.tensor([9.0, 1.0]))
    (2.0, 1.2195122241973877)
    """
    return float(count_C.sum() ** 2 / count_C.square().sum().clamp_min(_TINY))


def present(
    sums: Callable[[Any], tuple[Tensor, ...]], start_C: Tensor, rounds: int = ROUNDS
) -> Present:
    """Compute class shares from a start, on the way to those of greatest likelihood.

    Args:
        sums: over the unlabelled images, see `transductive.Sums`.
        start_C: Σ q over them.
        rounds: of EM, each a pass over the images.
    """
    log_share_C = _log_share(start_C)
    if effective(start_C) > MANY:
        return Present(log_share_C, effective(start_C))
    for _ in range(rounds):
        (count_C,) = sums(partial(_counted, log_share_C))
        log_share_C = _log_share(count_C)
    return Present(log_share_C, effective(log_share_C.exp()))


def _counted(log_share_C: Tensor, block: Any) -> tuple[Tensor]:
    """Σ over a block of the start's probabilities, as they are if classes have these shares."""
    log_z_BC = block.start_BC + log_share_C.to(block.start_BC)
    return (torch.softmax(log_z_BC, dim=1).double().sum(0),)


def _log_share(count_C: Tensor) -> Tensor:
    return (count_C / count_C.sum().clamp_min(_TINY)).clamp_min(_TINY).log()
