"""The fair reference of a fuser: the same method, settings and labels with one backbone (M = 1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import SPAN
from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import FUSERS, singles
from clipray.numerics.fusers.grouped import fit_each
from clipray.numerics.fusers.unlabelled import Images, taught
from clipray.numerics.solvers.logistic import folds

FOLDS = 3  # at most, to choose the backbone on; each costs a fit of every backbone


class Alone(NamedTuple):
    """A fuser fitted on each of M backbones alone.

    Attributes:
        backbone: the one that is best on the support set.
        states: M fits, in the order of the backbones.
    """

    backbone: int
    states: list[State]


def fit_alone(
    name: str, supports: Sequence[Support], changes: Sequence[Mapping[str, Any]]
) -> list[Alone]:
    """Fit a fuser on each backbone of each support set, and choose a backbone on each support set.

    It is the backbone of the least held-out negative log-likelihood by cross-validation inside the support set. Where
    a class has one image only, nothing can be held out: then the backbone whose own logits are right most often on
    the support set is taken, as `best_single_on_support` does. All fits are made in one call.

    Args:
        name: the fuser's. changes: by support set, the settings that differ from the defaults.
    """
    problems: list[
        Support
    ] = []  # for each support set, backbone by backbone: all of it, then without each fold
    own_changes: list[Mapping[str, Any]] = []
    held: list[list[Tensor]] = []
    for support, own in zip(supports, changes, strict=True):
        fold_K = folds(support.labels_K, FOLDS)
        parts = [fold_K == fold for fold in range(int(fold_K.max()) + 1)] if fold_K.any() else []
        held.append(parts)
        for backbone in range(support.logits_KMC.shape[1]):
            single = of_backbone(support, backbone)
            problems += [single, *(single.take(~part_K) for part_K in parts)]
            own_changes += [own] * (1 + len(parts))
    states = iter(_fit_together(name, problems, own_changes))
    found = []
    for support, parts in zip(supports, held, strict=True):
        backbones = range(support.logits_KMC.shape[1])
        fitted = [[next(states) for _ in range(1 + len(parts))] for _ in backbones]
        found.append(Alone(_best(name, support, parts, fitted), [own[0] for own in fitted]))
    return found


def _fit_together(
    name: str, problems: Sequence[Support], changes: Sequence[Mapping[str, Any]]
) -> list[State]:
    """Fit all at once, or one after another where their logits are too large to be stacked."""
    if sum(problem.logits_KMC.numel() for problem in problems) <= SPAN:
        return fit_each(name, problems, changes)
    each = zip(problems, changes, strict=True)
    return [fit_each(name, [problem], [own])[0] for problem, own in each]


def apply_alone(
    name: str, alone: Alone, batch: Images, pool: Images | None = None
) -> Iterator[Tensor]:
    """Apply each backbone's own fit, taught by unlabelled images as the fuser is: log_probs_NC, one after another."""
    for backbone, state in enumerate(taught_alone(name, alone, batch, pool)):
        yield FUSERS[name].apply(state, *batch.of(backbone))


def taught_alone(name: str, alone: Alone, batch: Images, pool: Images | None = None) -> list[State]:
    """Let unlabelled images teach each backbone's own fit, as they teach the fuser: M states."""
    return [
        taught(name, state, batch.of(backbone), None if pool is None else pool.of(backbone))
        for backbone, state in enumerate(alone.states)
    ]


def of_backbone(support: Support, backbone: int) -> Support:
    """Take one backbone out of a support set."""
    return replace(
        support,
        logits_KMC=support.logits_KMC[:, backbone : backbone + 1],
        embeddings=support.embeddings[backbone : backbone + 1],
    )


def _best(
    name: str, support: Support, parts: Sequence[Tensor], fitted: Sequence[Sequence[State]]
) -> int:
    """Choose a backbone; `fitted` holds its fit on all images, then those without each part."""
    if not parts:
        return singles.best(support.logits_KMC, support.labels_K)
    losses = []
    for backbone, states in enumerate(fitted):
        single = of_backbone(support, backbone)
        total = 0.0
        for part_K, state in zip(parts, states[1:], strict=True):
            held = single.take(part_K)
            log_p = FUSERS[name].apply(state, held.logits_KMC, held.embeddings).double()
            total -= float(log_p.gather(1, held.labels_K[:, None]).sum())
        losses.append(total)
    return int(torch.tensor(losses).argmin())
