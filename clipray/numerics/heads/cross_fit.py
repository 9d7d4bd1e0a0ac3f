"""From backbones and a support set to what heads and fusers learn from, without a look at an image's own label."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipray.numerics import draws
from clipray.numerics.blocks import Lazy, wide
from clipray.numerics.contracts import Head, Shots, State, Support
from clipray.numerics.heads.zero_shot import zero_shot
from clipray.numerics.solvers.logistic import folds

LEARNED = (
    2 * 10**8
)  # logits of support images that fusers learn from at most: 22,222 images of 9 × 1,000


class View(NamedTuple):
    """One backbone as it sees some images of a dataset.

    Attributes:
        name: the backbone's.
        classifier_CD: its zero-shot class vectors.
        scale, bias: the model's own.
        embeddings_ND: the images', as the model gives them, not normalised.
        cost: per image, see `cost.method_cost`; empty where it is not known.
    """

    name: str
    classifier_CD: Tensor
    scale: float
    bias: float
    embeddings_ND: Tensor
    cost: Mapping[str, float] = {}

    def to(self, device: torch.device | str) -> "View":
        """Return the same on a device."""
        classifier_CD, embeddings_ND = self.classifier_CD.to(device), self.embeddings_ND.to(device)
        return self._replace(classifier_CD=classifier_CD, embeddings_ND=embeddings_ND)


def shots_of(views: Sequence[View], labels_N: Tensor, rows_K: Tensor, seed: int) -> list[Shots]:
    """List what each backbone's head may learn from in one support set.

    Args:
        views: M backbones on the N images that the set is drawn from. labels_N: the images' classes.
        rows_K: the support images. seed: the support set's number.
    """
    labels_K = labels_N[rows_K]
    return [
        Shots(view.embeddings_ND[rows_K], labels_K, view.classifier_CD, view.scale, view.bias, seed)
        for view in views
    ]


Room = Callable[[int, int, int], Tensor]
"""Makes the tensor, of a shape, that the logits of a support set are written to."""


def support(head: Head, problem: Sequence[Shots], most: int, room: Room = torch.empty) -> Support:
    """Make what a fuser may learn from: the support images' embeddings, labels and cross-fitted logits.

    Of a support set that is too large for that, fusers learn from some images of each class, and heads from all.

    Args:
        problem: what each of M backbones' heads may learn from. most: as `cross_fitted` takes it.
        room: where the logits are to lie.
    """
    rows_L = learners(problem)
    kept = [shots if rows_L is None else shots.take(rows_L) for shots in problem]
    logits_LMC = room(len(kept[0].labels_K), len(problem), len(problem[0].classifier_CD))
    for m, shots in enumerate(problem):
        logits_LMC[:, m] = cross_fitted(head, shots, head.settings, most, rows_L)
    return Support(
        logits_LMC,
        tuple(shots.embeddings_KD for shots in kept),
        kept[0].labels_K,
        seed=problem[0].seed,
        borrowed=borrowed(head, problem[0].labels_K, most),
    )


def learners(problem: Sequence[Shots]) -> Tensor | None:
    """Return the rows of the support images that fusers learn from, where all make more logits than `LEARNED`.

    There is one of each class at least, for some fusers know a class by its images alone.
    """
    shots = problem[0]
    classes = len(shots.classifier_CD)
    most = max(len(shots.labels_K.unique()), LEARNED // (len(problem) * classes))
    if len(shots.labels_K) <= most:
        return None
    places = [draws.place(shots.seed, f"kept {row}") for row in range(len(shots.labels_K))]
    return torch.from_numpy(draws.evenly(shots.labels_K.numpy(), np.array(places, np.uint64), most))


class Parted(NamedTuple):
    """What is learned from one support set: `problem` by M backbones' heads, `support` by fusers."""

    problem: list[Shots]
    support: Support


def parted(
    head: Head, problem: Sequence[Shots], most: int, share: float, room: Room = torch.empty
) -> Parted:
    """Share a support set out between heads and fusers.

    Args:
        problem: what each of M backbones' heads may learn from. most: as `cross_fitted` takes it.
        share: part of each class that fusers alone learn from, see `draws.held_out`; with 0 both learn from all, as
            they do where no class has two images.
        room: as in `support`.
    """
    held_K = torch.zeros(0, dtype=torch.bool)
    if share:
        labels_K = problem[0].labels_K.numpy()
        held_K = torch.from_numpy(draws.held_out(labels_K, share, problem[0].seed))
    if not held_K.any():
        return Parted(list(problem), support(head, problem, most, room))
    own = [shots.take(~held_K) for shots in problem]
    held = [shots.take(held_K) for shots in problem]
    rows_L = learners(held)
    held = held if rows_L is None else [shots.take(rows_L) for shots in held]
    states = head.fit(own, head.settings)
    logits_LMC = room(len(held[0].labels_K), len(held), len(held[0].classifier_CD))
    for m, (state, shots) in enumerate(zip(states, held, strict=True)):
        logits_LMC[:, m] = _said(head, state, shots)
    embeddings = tuple(shots.embeddings_KD for shots in held)
    return Parted(own, Support(logits_LMC, embeddings, held[0].labels_K, held[0].seed))


def _said(head: Head, state: State, shots: Shots) -> Tensor:
    """Apply one backbone's fitted head to support images: logits_KC."""
    parts = (shots.embeddings_KD, shots.classifier_CD, shots.scale, shots.bias)
    return head.apply(state, *parts)


def logits(head: Head, states: Sequence[State], views: Sequence[View]) -> Tensor:
    """Apply a fitted head, whose states are one a backbone, to the images of M views: logits_NMC."""
    return lazy(head, states, views)[:]


def lazy(head: Head, states: Sequence[State], views: Sequence[View]) -> Lazy:
    """Give the logits of a fitted head for the images of M views, computed as they are looked at."""

    def compute(rows: slice, backbone: int) -> Tensor:
        view = views[backbone]
        (embeddings_BD,) = wide([view.embeddings_ND[rows]])
        parts = (embeddings_BD, view.classifier_CD, view.scale, view.bias)
        return head.apply(states[backbone], *parts)

    images, classes = range(len(views[0].embeddings_ND)), len(views[0].classifier_CD)
    return Lazy(compute, images, tuple(range(len(views))), classes)


def held_out(
    head: Head,
    views: Sequence[View],
    labels_N: Tensor,
    parts: tuple[Tensor, Tensor],
    seed: int,
    most: int,
) -> tuple[Support, Support]:
    """Fit a head on some images, and give what a fuser is fitted on and what it is scored on.

    The head learns from the first part alone; the fuser sees its cross-fitted logits there.

    Args:
        views: M backbones on N images. labels_N: the images' classes.
        parts: rows to fit on, and rows to score. seed: the support set's number. most: as `cross_fitted` takes it.
    """
    rows_K, held_K = parts
    problem = shots_of(views, labels_N, rows_K, seed)
    states = head.fit(problem, head.settings)
    unseen = [view._replace(embeddings_ND=view.embeddings_ND[held_K]) for view in views]
    held = Support(
        logits(head, states, unseen),
        tuple(view.embeddings_ND for view in unseen),
        labels_N[held_K],
        seed=seed,
    )
    return support(head, problem, most), held


def cross_fitted(
    head: Head, problem: Shots, settings: Any, most: int, rows_L: Tensor | None = None
) -> Tensor:
    """Compute logits_LC of support images, each by a head that has not seen it; for fusers on the same labels.

    With one image per class there is nothing to spare, and the zero-shot logits are given (`borrowed`). Heads that lack
    some classes' images were tried in their place: temperatures gain by them, `nlc` and `stacking`, which then see no
    image of a class that the head knows, fall below chance.

    Args:
        head: one of `HEADS`.
        most: the most folds. rows_L: the images that are asked for; by default all.
    """
    asked = problem if rows_L is None else problem.take(rows_L)
    fold_K = folds(problem.labels_K, most)
    whole = zero_shot(asked.embeddings_KD, asked.classifier_CD, asked.scale, asked.bias)
    count = int(fold_K.max()) + 1 if len(fold_K) else 1
    if not head.needs_labels or count == 1:
        return whole
    states = head.fit([problem.take(fold_K != f) for f in range(count)], settings)
    fold_L = fold_K if rows_L is None else fold_K[rows_L]
    for f, state in enumerate(states):
        held = fold_L == f
        whole[held] = _said(head, state, asked.take(held))
    return whole


def borrowed(head: Head, labels_K: Tensor, most: int) -> bool:
    """Tell whether `cross_fitted` has to give zero-shot logits in place of a head's that are unlike them.

    >>> from clipray.numerics.heads import HEADS
    >>> one_each = torch.arange(3)
    >>> [borrowed(HEADS[name], one_each, most=3) for name in ("linear_probe", "tip_adapter")]
    [True, False]
    """
    return head.needs_labels and not head.keeps_text and not folds(labels_K, most).any()
