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

BY_BACKBONE = ("beta_M",)  # what `Support.known` holds of each backbone by itself
FOLDS = 3  # at most, to choose the backbone on; each costs a fit of every backbone


class Alone(NamedTuple):
    """A fuser fitted on each of M backbones alone.

    Attributes:
        backbone: the one that is best on the support set.
        states: M fits, in the order of the backbones.
    """

    backbone: int
    states: list[State]


class Singles(NamedTuple):
    """A support set as each backbone alone sees it.

    Attributes:
        whole: the support set. parts: rows that are held out, one part after another, each a mask; none where a class
            has one image only.
        each: by backbone, all of it, then it without each part. They are made once for all fusers, which keep there
            what others need too (`Support.known`).
    """

    whole: Support
    parts: list[Tensor]
    each: list[list[Support]]


def singles_of(support: Support) -> Singles:
    """Show a support set to each backbone alone."""
    fold_K = folds(support.labels_K, FOLDS)
    parts = [fold_K == fold for fold in range(int(fold_K.max()) + 1)] if fold_K.any() else []
    each = []
    for backbone in range(support.logits_KMC.shape[1]):
        single = of_backbone(support, backbone)
        each.append([single, *(single.take(~part_K) for part_K in parts)])
    return Singles(support, parts, each)


def fit_alone(
    name: str, supports: Sequence[Singles], changes: Sequence[Mapping[str, Any]]
) -> list[Alone]:
    """Fit a fuser on each backbone of each support set, and choose a backbone on each support set.

    It is the backbone of the least held-out negative log-likelihood by cross-validation inside the support set. Where
    a class has one image only, nothing can be held out: then the backbone whose own logits are right most often on
    the support set is taken, as `best_single_on_support` does. All fits are made in one call.

    Args:
        name: the fuser's. changes: by support set, the settings that differ from the defaults.
    """
    problems: list[Support] = []
    own_changes: list[Mapping[str, Any]] = []
    for support, own in zip(supports, changes, strict=True):
        for single in support.each:
            problems += single
            own_changes += [own] * len(single)
    states = iter(_fit_together(name, problems, own_changes))
    found = []
    for support in supports:
        fitted = [[next(states) for _ in single] for single in support.each]
        found.append(Alone(_best(name, support, fitted), [own[0] for own in fitted]))
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
    """Take one backbone out of a support set, and what is known of each backbone by itself."""
    own = slice(backbone, backbone + 1)
    single = replace(
        support, logits_KMC=support.logits_KMC[:, own], embeddings=support.embeddings[own]
    )
    for key, value in support.known.items():
        if key[0] in BY_BACKBONE:
            single.known[key] = value[own].clone()
    return single


def _best(name: str, support: Singles, fitted: Sequence[Sequence[State]]) -> int:
    """Choose a backbone; `fitted` holds its fit on all images, then those without each part."""
    if not support.parts:
        return singles.best(support.whole.logits_KMC, support.whole.labels_K)
    losses = []
    for (single, *_), (_, *states) in zip(support.each, fitted, strict=True):
        total = 0.0
        for part_K, state in zip(support.parts, states, strict=True):
            held = single.take(part_K)
            log_p = FUSERS[name].apply(state, held.logits_KMC, held.embeddings).double()
            total -= float(log_p.gather(1, held.labels_K[:, None]).sum())
        losses.append(total)
    return int(torch.tensor(losses).argmin())
