"""A cascade of any fuser: one fitted fuser a stage, and the thresholds between them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipray.numerics.cascade.thresholds import NEVER, Promise, Target, promise, route
from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import FUSERS, from_parts, to_parts
from clipray.numerics.fusers.convex import in_turn


@dataclasses.dataclass(frozen=True)
class Cascade:
    """A fitted cascade.

    Attributes:
        fuser: its name in the registry, and `settings`: a record of the fuser's own settings.
        order: numbers of the backbones in the order in which they run, one a stage.
        gflops: cost of an image that leaves at each stage, the fuser's own included.
        states: the fuser of each stage, fitted on the backbones that have run, in rising order of their numbers. That
            of the last stage is the full fusion, as it is fitted without a cascade.
        promise: thresholds, and what they are worth.
    """

    fuser: str
    settings: Any
    order: tuple[int, ...]
    gflops: tuple[float, ...]
    states: tuple[State, ...]
    promise: Promise

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One for each stage; nobody is held back at the last."""
        return (*self.promise.thresholds, 0.0)

    def members(self, stage: int) -> list[int]:
        """The backbones whose logits and embeddings a stage takes, in this order."""
        return sorted(self.order[: stage + 1])


class Stage(NamedTuple):
    """What a stage says: `log_probs_NC` of the images that it was given, and which of them `leaves_N`."""

    log_probs_NC: Tensor
    leaves_N: Tensor


def fit_cascade(
    support: Support,
    fuser: str,
    settings: Any,
    order: Sequence[int],
    gflops_M: Sequence[float],
    target: Target,
    folds: int = 5,
) -> Cascade:
    """Fit a fuser on each prefix of an order of backbones, and the thresholds between them.

    The thresholds are chosen on log-probabilities of support images that the fuser has not seen: the support set is
    dealt into folds, each left out once (see `thresholds` for what the promise then says). A fuser that needs no labels
    is applied as it is.

    Args:
        support: the labelled images, with all M backbones' logits (cross-fitted by the head where it has learned).
        fuser: a name of the registry; a transductive one cannot be cut in stages.
        settings: its settings.
        order: which backbones run, one after another, by number; see `search.by_cost`.
        gflops_M: cost per image of each backbone.
        target: what is asked for.
        folds: the most folds.

    Raises:
        ValueError: the fuser is transductive, or the order names a backbone twice.
    """
    if FUSERS[fuser].transductive:
        raise ValueError(
            f"{fuser} looks at all images together: it has no stages that images leave"
        )
    if len(set(order)) != len(order) or not order:
        raise ValueError(f"the order {list(order)} must name each of its backbones once")
    states, held_out, gflops = [], [], []
    for stage in range(len(order)):
        members = sorted(order[: stage + 1])
        some = narrowed(support, members)
        (state,) = FUSERS[fuser].fit([some], settings)
        states.append(state)
        held_out.append(_unseen(some, fuser, settings, state, folds))
        gflops.append(sum(gflops_M[m] for m in members) + _own_gflops(fuser, state, some))
    kept = promise(held_out, support.labels_K, gflops, target)
    return Cascade(fuser, settings, tuple(order), tuple(gflops), tuple(states), kept)


def apply_stage(
    cascade: Cascade, stage: int, logits_NmC: Tensor, embeddings: Sequence[Tensor]
) -> Stage:
    """Fuse what has run for the images that are still there, and say which of them need no more.

    Args:
        cascade: the fitted cascade.
        stage: counted from 0.
        logits_NmC: of the backbones `cascade.members(stage)`, in that order.
        embeddings: of the same backbones.
    """
    fuse = FUSERS[cascade.fuser].apply
    log_probs_NC = fuse(cascade.states[stage], logits_NmC, embeddings)
    if stage == len(cascade.order) - 1:
        return Stage(log_probs_NC, torch.ones(len(log_probs_NC), dtype=torch.bool))
    return Stage(log_probs_NC, route(log_probs_NC, cascade.thresholds[stage]))


def apply_cascade(
    cascade: Cascade,
    logits_NMC: Tensor,
    embeddings: Sequence[Tensor],
    left_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run all stages.

    Args:
        logits_NMC, embeddings: of all backbones. What belongs to a backbone that an image has not reached is not
            looked at.
        left_N: the stage at which each image has left, int64, where that is known; None: as the thresholds say.

    Returns:
        log_probs_NC of each image at the stage at which it left, and that stage, int64 N.
    """
    images, _, classes = logits_NMC.shape
    fused_NC = logits_NMC.new_zeros(images, classes)
    stage_N = torch.zeros(images, dtype=torch.int64)
    left = torch.arange(images)
    for stage in range(len(cascade.order)):
        members = cascade.members(stage)
        own = [embeddings[m][left] for m in members] if embeddings else []
        found = apply_stage(cascade, stage, logits_NMC[left][:, members], own)
        leaves = found.leaves_N if left_N is None else left_N[left] == stage
        gone = left[leaves]
        fused_NC[gone] = found.log_probs_NC[leaves].to(fused_NC)
        stage_N[gone] = stage
        left = left[~leaves]
    return fused_NC, stage_N


def cascade_to_parts(cascade: Cascade) -> tuple[dict[str, Tensor], dict]:
    """Take a cascade apart: tensors (for safetensors) and a JSON-able mapping; infinite thresholds are None."""
    tensors, stages = {}, []
    for stage, state in enumerate(cascade.states):
        own, mapping = to_parts(state)
        tensors |= {f"stage{stage}/{name}": tensor for name, tensor in own.items()}
        stages.append(mapping)
    kept = dataclasses.asdict(cascade.promise)
    kept["thresholds"] = [None if level == NEVER else level for level in kept["thresholds"]]
    mapping = {
        "fuser": cascade.fuser,
        "order": list(cascade.order),
        "gflops": list(cascade.gflops),
        "stages": stages,
        "promise": kept,
    }
    return tensors, mapping


def cascade_from_parts(tensors: Mapping[str, Tensor], mapping: Mapping[str, Any]) -> Cascade:
    """Put together the cascade that `cascade_to_parts` took apart."""
    states = []
    for stage, one in enumerate(mapping["stages"]):
        prefix = f"stage{stage}/"
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        states.append(from_parts(mapping["fuser"], own, one))
    levels = [NEVER if level is None else level for level in mapping["promise"]["thresholds"]]
    kept = Promise(**{**mapping["promise"], "thresholds": tuple(levels)})
    settings = states[-1].settings
    order, gflops = tuple(mapping["order"]), tuple(mapping["gflops"])
    return Cascade(mapping["fuser"], settings, order, gflops, tuple(states), kept)


def narrowed(support: Support, members: Sequence[int]) -> Support:
    """Return the support set as some of the backbones see it."""
    embeddings = tuple(support.embeddings[m] for m in members) if support.embeddings else ()
    logits_KmC = support.logits_KMC[:, list(members)]
    return dataclasses.replace(support, logits_KMC=logits_KmC, embeddings=embeddings)


def _unseen(support: Support, fuser: str, settings: Any, state: State, folds: int) -> Tensor:
    """Fuse support images, K×C log-probabilities, each by a fuser fitted without it (a lone image by itself)."""
    fuse = FUSERS[fuser]
    if not fuse.needs_labels or len(support.labels_K) < 2:
        return fuse.apply(state, support.logits_KMC, support.embeddings)
    fold_K = in_turn(support.labels_K, folds)
    parts = range(int(fold_K.max()) + 1 if len(fold_K) else 0)
    states = fuse.fit([support.take(fold_K != fold) for fold in parts], settings)
    images, _, classes = support.logits_KMC.shape
    log_probs_KC = support.logits_KMC.new_zeros(images, classes)
    for fold, one in zip(parts, states, strict=True):
        held = support.take(fold_K == fold)
        log_p = fuse.apply(one, held.logits_KMC, held.embeddings)
        log_probs_KC[fold_K == fold] = log_p.to(log_probs_KC)
    return log_probs_KC


def _own_gflops(fuser: str, state: State, support: Support) -> float:
    flops = FUSERS[fuser].flops
    if flops is None:
        return 0.0
    _, backbones, classes = support.logits_KMC.shape
    return flops(state, backbones, classes, [e.shape[1] for e in support.embeddings]) / 1e9
