"""Tip-Adapter (Zhang et al. 2022): zero-shot logits plus a cache of the support images."""

from collections.abc import Sequence

from torch import Tensor

from clipray.numerics.contracts import Head, Shots, State, unit
from clipray.numerics.fewshot.prototypes import Tip, affinity
from clipray.numerics.heads.zero_shot import zero_shot


def fit_tip_adapter(problems: Sequence[Shots], settings: Tip) -> list[State]:
    """Make the cache: unit keys and labels."""
    return [
        State(settings, {"keys_KD": unit(p.embeddings_KD), "labels_K": p.labels_K})
        for p in problems
    ]


def tip_adapter(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """Compute the zero-shot logits plus α · the cache's affinities."""
    settings, keys, labels = state.settings, state.tensors["keys_KD"], state.tensors["labels_K"]
    cache_NC = affinity(keys, labels, unit(embeddings_ND), settings.beta, len(classifier_CD))
    return zero_shot(embeddings_ND, classifier_CD, scale, bias) + settings.alpha * cache_NC


HEAD = Head(fit_tip_adapter, tip_adapter, Tip(), keeps_text=True)
