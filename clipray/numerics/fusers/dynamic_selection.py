"""Dynamic selection: a backbone counts by how it does on the support images near the image, in its own space."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support, unit
from clipray.numerics.solvers.logistic import rotate, solve


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """How competence becomes weights.

    Attributes:
        rule: "knora_u": weight = number of neighbours that the backbone has right (Ko et al. 2008). "knora_e": the
            backbones right on all of the nearest k' neighbours, for the largest k' ≤ k that leaves any. "ola": the
            backbones with the highest local accuracy (Woods et al. 1997), all of them where several tie.
        neighbours: k; fewer where the support set is smaller.
    """

    rule: Literal["knora_u", "knora_e", "ola"]
    neighbours: int = 7


@dataclasses.dataclass(frozen=True)
class MetaDes:
    """META-DES (Cruz et al. 2015): a classifier that tells from meta-features whether a backbone will be right.

    Attributes:
        neighbours: k, images near in the backbone's embedding space.
        profiles: images near in the space of all backbones' probabilities.
        penalty: of the meta-classifier, a logistic regression (ours; the authors take naive Bayes or an MLP).
        threshold: backbones of at least this competence are weighed by it; where there is none, all count alike.
    """

    neighbours: int = 7
    profiles: int = 5
    penalty: float = 1.0
    threshold: float = 0.5


def fit_neighbours(supports: Sequence[Support], settings: Neighbours) -> list[State]:
    """Keep the support images' unit embeddings, and which backbones are right on them."""
    return [State(settings, memory(s)) for s in supports]


def memory(support: Support) -> dict[str, Tensor]:
    """Collect what the selection keeps of a support set."""
    right_KM = support.logits_KMC.argmax(2) == support.labels_K[:, None]
    keys = {f"keys_KD/{m}": unit(e) for m, e in enumerate(support.embeddings)}
    return keys | {"right_KM": right_KM.to(torch.uint8)}


def nearest(
    tensors: dict[str, Tensor], embeddings: Sequence[Tensor], k: int, leave_self_out: bool = False
) -> Tensor:
    """Find the k support images nearest to each image by cosine, rows N×M×k, nearest first, for each backbone."""
    found = []
    for m, e in enumerate(embeddings):
        near_NK = unit(e) @ tensors[f"keys_KD/{m}"].T
        if leave_self_out:
            near_NK.fill_diagonal_(-torch.inf)
        found.append(near_NK.topk(min(k, near_NK.shape[1] - leave_self_out), dim=1).indices)
    return torch.stack(found, dim=1)


def competence(right_NMk: Tensor, rule: str) -> Tensor:
    """Weigh backbones, N×M (summing to 1), by which of them are right on the nearest k images, nearest first.

    >>> right = torch.tensor([[[1, 1, 0], [1, 0, 1]]])
    >>> competence(right, "knora_u"), competence(right, "knora_e"), competence(right, "ola")
    (tensor([[0.5000, 0.5000]]), tensor([[1., 0.]]), tensor([[0.5000, 0.5000]]))
    """
    if rule == "knora_e":
        streak_NM = right_NMk.cumprod(2).sum(2)
        weights_NM = ((streak_NM == streak_NM.amax(1, keepdim=True)) & (streak_NM > 0)).float()
    else:
        weights_NM = right_NMk.sum(2).float()
        if rule == "ola":
            weights_NM = (weights_NM == weights_NM.amax(1, keepdim=True)).float()
    total_N1 = weights_NM.sum(1, keepdim=True)
    return torch.where(
        total_N1 > 0, weights_NM / total_N1.clamp_min(1e-30), 1 / weights_NM.shape[1]
    )


def mixed(weights_NM: Tensor, logits_NMC: Tensor) -> Tensor:
    """Compute log Σ_m w_m p_m: a soft vote, so ties of hard votes do not arise."""
    log_w = weights_NM.log().clamp_min(
        -80
    )  # a weight of 0 leaves a trace, so that no class has probability 0
    return torch.log_softmax(
        (torch.log_softmax(logits_NMC, -1) + log_w[..., None]).logsumexp(1), dim=-1
    )


def neighbours(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Mix the backbones, weighed by their competence near each image."""
    return mixed(weights_by_neighbours(state, logits_NMC, embeddings).to(logits_NMC), logits_NMC)


def weights_by_neighbours(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute the backbones' competence near each image, N×M (see `competence`)."""
    rows_NMk = nearest(state.tensors, embeddings, state.settings.neighbours)
    right_KM = state.tensors["right_KM"].long()
    right_NMk = right_KM[rows_NMk, torch.arange(rows_NMk.shape[1])[:, None]]
    return competence(right_NMk, state.settings.rule)


def features(
    tensors: dict[str, Tensor],
    logits_NMC: Tensor,
    embeddings: Sequence[Tensor],
    settings: MetaDes,
    leave_self_out: bool,
) -> Tensor:
    """Compute meta-features N×M×F of each backbone on each image.

    Per neighbour, nearest first: right or wrong, and the probability it gave to the label; their mean; right or wrong
    on each image with a similar profile of probabilities; its own confidence. Where the support set is too small for
    k neighbours the missing ones hold the mean of those there are.
    """
    p_NMC = torch.softmax(logits_NMC, dim=-1)
    column = torch.arange(p_NMC.shape[1])[:, None]
    right_KM = tensors["right_KM"].float()
    rows = nearest(tensors, embeddings, settings.neighbours, leave_self_out)
    right, own = right_KM[rows, column], tensors["own_KM"][rows, column]
    profile = p_NMC.flatten(1) @ tensors["profile_KX"].T * 2 - tensors["profile_KX"].square().sum(
        1
    )  # −distance² + const
    if leave_self_out:
        profile.fill_diagonal_(-torch.inf)
    alike = profile.topk(min(settings.profiles, profile.shape[1] - leave_self_out), dim=1).indices
    similar = right_KM[alike].transpose(1, 2)

    def padded(v: Tensor, k: int) -> Tensor:
        mean = v.mean(2, keepdim=True)
        return torch.cat([v, mean.expand(-1, -1, k - v.shape[2]), mean], dim=2)

    parts = [
        padded(right, settings.neighbours),
        padded(own, settings.neighbours),
        padded(similar, settings.profiles),
    ]
    return torch.cat([*parts, p_NMC.amax(2, keepdim=True)], dim=2)


def fit_meta_des(supports: Sequence[Support], settings: MetaDes) -> list[State]:
    """Keep the memory, and train the meta-classifier on the support images, each left out of its own neighbours."""
    states = []
    for s in supports:
        p_KMC = torch.softmax(s.logits_KMC.float(), dim=-1)
        own_KM = p_KMC.gather(2, s.labels_K[:, None, None].expand(-1, p_KMC.shape[1], 1))[..., 0]
        tensors = memory(s) | {"own_KM": own_KM, "profile_KX": p_KMC.flatten(1)}
        count = 2 * (settings.neighbours + 1) + settings.profiles + 2
        mean_F, w_F2 = torch.zeros(count), torch.zeros(count + 1, 2)
        if len(s.labels_K) > 1:
            x = features(
                tensors, s.logits_KMC.float(), s.embeddings, settings, leave_self_out=True
            ).flatten(0, 1)
            mean_F = x.mean(0)
            x = torch.cat([x - mean_F, torch.ones(len(x), 1)], dim=1)
            x_SKR, basis_SDR, lengths_SR = rotate(x[None])
            penalty, ones = torch.full((1, 1, 1, 1), settings.penalty), torch.ones(1, len(x), 1)
            v = solve(
                x_SKR,
                lengths_SR,
                tensors["right_KM"].long().flatten()[None],
                ones,
                penalty,
                None,
                classes=2,
            )
            w_F2 = (basis_SDR @ v[:, :, 0])[0].float()
        states.append(State(settings, tensors | {"mean_F": mean_F, "w_F2": w_F2}))
    return states


def meta_des(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Mix the backbones of enough predicted competence, weighed by it."""
    return mixed(weights_by_competence(state, logits_NMC, embeddings).to(logits_NMC), logits_NMC)


def weights_by_competence(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute the predicted competence of backbones that reach the threshold, N×M, summing to 1."""
    settings, tensors = state.settings, state.tensors
    if len(tensors["right_KM"]) == 0:
        return torch.full_like(logits_NMC[..., 0], 1 / logits_NMC.shape[1])
    x = (
        features(tensors, logits_NMC.float(), embeddings, settings, leave_self_out=False)
        - tensors["mean_F"]
    )
    sure_NM = torch.softmax(x @ tensors["w_F2"][:-1] + tensors["w_F2"][-1], dim=-1)[..., 1]
    kept_NM = torch.where(sure_NM >= settings.threshold, sure_NM, 0.0)
    total_N1 = kept_NM.sum(1, keepdim=True)
    return torch.where(total_N1 > 0, kept_NM / total_N1.clamp_min(1e-30), 1 / kept_NM.shape[1])
