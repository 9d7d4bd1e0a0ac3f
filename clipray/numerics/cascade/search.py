"""Which backbones: every subset of up to ten backbones by what it costs and what it has right.

Two things are known of a subset: its oracle, how often any of its backbones is right, and its accuracy when it is
fused. `log_avg` needs no fit, so its accuracy can be had for all subsets at once. It stands in for the fusers that
would have to be fitted 2^M times.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import Lazy, spans
from clipray.numerics.measures import intervals

MOST = 10  # backbones whose subsets are all looked at
RESAMPLES = 1000
BLOCK = 2**24  # fused logits held at once


class Choice(NamedTuple):
    """A subset as an answer to "which backbones?".

    Attributes:
        members: numbers of the backbones, rising.
        gflops: per image.
        accuracy: of their `log_avg` fusion, with its interval over images.
        oracle: share of images that any of them has right, with its interval.
        best_in: share of bootstrap resamples of the images in which it is the most accurate of those that it was chosen
            from: how sure the choice is.
    """

    members: tuple[int, ...]
    gflops: float
    accuracy: intervals.Interval
    oracle: intervals.Interval
    best_in: float


def subsets(backbones: int) -> list[tuple[int, ...]]:
    """List all 2^M − 1 subsets, small ones first.

    Raises:
        ValueError: there are too many backbones.

    >>> subsets(2)
    [(0,), (1,), (0, 1)]
    """
    if backbones > MOST:
        raise ValueError(f"{backbones} backbones have too many subsets; choose at most {MOST}")
    sizes = range(1, backbones + 1)
    return [members for size in sizes for members in combinations(range(backbones), size)]


def by_cost(members: Sequence[int], gflops_M: Sequence[float]) -> tuple[int, ...]:
    """Sort backbones from the cheapest up: the order in which a cascade runs them by default.

    >>> by_cost((0, 1, 2), [3.0, 1.0, 2.0])
    (1, 2, 0)
    """
    return tuple(sorted(members, key=lambda m: (gflops_M[m], m)))


def right_of(logits_NMC: Tensor | Lazy, labels_N: Tensor, sets: Sequence[Sequence[int]]) -> Tensor:
    """Tell whether the `log_avg` fusion of each set of backbones has each image right, bool N×V."""
    mask_VM = torch.zeros(len(sets), logits_NMC.shape[1], dtype=torch.float64)
    for row, members in enumerate(sets):
        mask_VM[row, list(members)] = 1 / len(members)
    step = max(1, BLOCK // (len(sets) * logits_NMC.shape[2]))
    said_NV = torch.zeros(len(labels_N), len(sets), dtype=torch.int64)
    for span in spans(logits_NMC):
        parts = logits_NMC[span].split(step), said_NV[span].split(step)
        for logits_BMC, said_BV in zip(*parts, strict=True):
            log_p_BMC = torch.log_softmax(logits_BMC, dim=-1)
            said_BVC = torch.einsum("vm,nmc->nvc", mask_VM.to(log_p_BMC), log_p_BMC)
            said_BV[:] = said_BVC.argmax(2)
    return said_NV == labels_N[:, None]


def which_backbones(
    logits_NMC: Tensor,
    labels_N: Tensor,
    gflops_M: Sequence[float],
    size: int | None = None,
    max_gflops: float = math.inf,
    seed: int = 0,
) -> list[Choice]:
    """Rank the subsets that one can afford, from the most accurate down: "I can afford two: which?".

    The images are those of a support set; the first answer is the best on these images, and so looks a little better
    than it is. `best_in` says how often another sample of images would give the same answer. Ties go to the cheaper.

    Args:
        logits_NMC: of labelled images.
        labels_N: their classes.
        gflops_M: what each backbone costs.
        size: how many backbones; None: any number.
        max_gflops: the most that they may cost together.
        seed: of the bootstrap.

    Returns:
        nothing where no subset is cheap enough.
    """
    afforded = [
        members
        for members in subsets(len(gflops_M))
        if (size is None or len(members) == size) and _total(members, gflops_M) <= max_gflops
    ]
    if not afforded or not len(labels_N):
        return []
    fused_NV = right_of(logits_NMC, labels_N, afforded)
    right_NM = logits_NMC.argmax(2) == labels_N[:, None]
    any_NV = torch.stack([right_NM[:, list(members)].any(1) for members in afforded], dim=1)
    both = torch.cat([fused_NV, any_NV], dim=1).double()
    samples_BV, any_BV = intervals.resampled_means(both, RESAMPLES, seed).split(len(afforded), 1)
    cost_V = torch.tensor([_total(m, gflops_M) for m in afforded], dtype=torch.float64)
    first_B = (samples_BV - 1e-12 * cost_V.argsort().argsort()).argmax(1)
    share_V = torch.bincount(first_B, minlength=len(afforded)) / len(first_B)
    choices = []
    for v, members in enumerate(afforded):
        accuracy = intervals.percentiles(samples_BV[:, v])
        oracle = intervals.percentiles(any_BV[:, v])
        choice = Choice(
            members,
            float(cost_V[v]),
            intervals.Interval(float(both[:, v].mean()), *accuracy),
            intervals.Interval(float(both[:, len(afforded) + v].mean()), *oracle),
            float(share_V[v]),
        )
        choices.append(choice)
    return sorted(choices, key=lambda one: (-one.accuracy.value, one.gflops, one.members))


def _total(members: Sequence[int], gflops_M: Sequence[float]) -> float:
    return sum(gflops_M[m] for m in members)
