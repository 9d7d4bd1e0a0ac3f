"""Which of several methods to take, from the support set alone: each is fitted on parts of it, scored on the rest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipray.config import Fuser, Head
from clipray.errors import ConfigError
from clipray.numerics import declared

FOLDS = 5


class Candidate(NamedTuple):
    """A head and a fuser."""

    head: Head
    fuser: Fuser


class Held(NamedTuple):
    """How a method does on support images that its fit has not seen: `nll` in nats, `top1` a fraction."""

    nll: float
    top1: float
    images: int


def candidates(heads: Sequence[Head], fusers: Sequence[Fuser]) -> list[Candidate]:
    """List every head with every fuser that gives single images a label of their own."""
    known = declared.fusers()
    return [
        Candidate(head, fuser)
        for head in heads
        for fuser in fusers
        if not known[fuser.fuser].transductive
    ]


def held_out(
    train: Any, draw: Any, weights: tuple, scales: tuple, folds: int, every: Sequence[Candidate]
) -> list[Held]:
    """Score each candidate by cross-validation on one support set; empty where one image is all there is.

    Args:
        train: the train split's images (`read.Split`). draw: the support set.
        weights: M class-vector tensors. scales: logit scale and bias of each backbone.
        folds: at most, of the cross-fitting inside each part.
    """
    from clipray.numerics.fusers.convex import in_turn
    from clipray.numerics.heads import cross_fit, head_of

    rows_K = np.sort(draw.rows_K)
    if len(rows_K) < 2:
        return []
    labels_K = train.labels_N[rows_K]
    number_K = in_turn(labels_K, FOLDS).numpy()
    places = np.arange(len(rows_K))
    pairs = [
        (places[number_K != fold], places[number_K == fold]) for fold in range(number_K.max() + 1)
    ]
    every_view = zip(weights, scales, train.embeddings, strict=True)
    views = [cross_fit.View("", w_CD, *scale, e_ND[rows_K]) for w_CD, scale, e_ND in every_view]
    cases: dict[str, list] = {}
    found = []
    for one in every:
        key = one.head.model_dump_json()
        if key not in cases:
            settings = one.head.settings_for(draw.shots, draw.seed)
            head = head_of(one.head.head, settings)
            cases[key] = [
                cross_fit.held_out(head, views, labels_K, pair, draw.seed, folds) for pair in pairs
            ]
        found.append(_score(one.fuser, cases[key], draw))
    return found


def _score(entry: Fuser, cases: list, draw: Any) -> Held:
    from clipray.numerics.fusers import FUSERS, settings_of
    from clipray.numerics.measures import outcomes

    fuser, nll, right, images = FUSERS[entry.fuser], 0.0, 0.0, 0
    own = (draw.shots, draw.seed) if fuser.needs_labels else (0, 0)
    settings = settings_of(entry.fuser, entry.settings_for(*own))
    for support, held in cases:
        (state,) = fuser.fit([support], settings)
        log_p = fuser.apply(state, held.logits_KMC, held.embeddings)
        nll += float(outcomes.nll(log_p, held.labels_K).sum())
        right += float(outcomes.top(log_p, held.labels_K, 1).sum())
        images += len(held.labels_K)
    return Held(nll / images, right / images, images)


def best(every: Sequence[Candidate], scored: Sequence[Held], by: str) -> Candidate:
    """Return the candidate with the least NLL, or the highest top-1; the other measure decides between equals.

    Raises:
        ConfigError: nothing could be held out.
    """
    if not scored:
        raise ConfigError(
            "from_campaign: a support set of one image leaves nothing to choose a method on: raise `shots`"
        )

    def order(number: int) -> tuple[float, float]:
        held = scored[number]
        return (held.nll, -held.top1) if by == "nll" else (-held.top1, held.nll)

    return every[min(range(len(scored)), key=order)]
