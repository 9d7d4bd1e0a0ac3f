"""Gates: a small network on the embeddings that weighs the backbones for each image.

NLC, the Neural Logit Controller (Rodriguez-Opazo et al., ICLR 2025, arXiv 2405.17139), is the one the settings start
from. Stated by the paper: the input is the concatenation of all backbones' image embeddings; an MLP with one hidden
layer of 128 gives one temperature per backbone for this image, shared by all classes; the fused logits are
Σ_m w_m(x) z_m(x); cross-entropy; Adam, learning rate 2e-4, weight decay 0.01. Not stated, and therefore our reading:
everything else. SWIG (CustomEnsemble, arXiv 2311.17091) has 80 hidden units and softmax weights on probabilities; a
mixture of experts (Jacobs et al. 1991) has none.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support, alike, stacked, unit
from clipray.numerics.fusers import lone_gate
from clipray.numerics.solvers.adam import Adam, Decay, by_autograd, minimise, shuffled

_CACHED = 200_000  # features of a step of the networks that are trained together: what a core's cache holds
_FEWEST = 8  # networks that are trained together all the same: of fewer, each step costs more in calls than it saves


@dataclasses.dataclass(frozen=True)
class Gate:
    """Every choice of a gate; the defaults are `nlc`.

    Attributes:
        hidden, rate, weight_decay: the paper's. Without hidden units the gate is linear.
        decay: the paper says "Adam", whose weight decay is the L2 kind.
        weight_map: from the network's output to weights. "linear" may be negative; the others are positive. With
            positive weights a class that one rival beats in every backbone can never win.
        combine: "logits" fuses Σ w_m z_m, "probs" log Σ w_m p_m (which needs the softmax map).
        init: "torch" is nn.Linear's own; "mean" zeroes the last layer and sets its bias so that training starts at
            the plain mean.
        normalise_inputs: scale each backbone's embedding to length 1 before concatenation.
        epochs, batch: passes, and images per step; batch 0: all.
        max_steps: cap on the steps of a fit; 0: none.
    """

    hidden: int = 128
    rate: float = 2e-4
    weight_decay: float = 0.01
    decay: Decay = "l2"
    weight_map: Literal["linear", "softplus", "exp", "softmax"] = "linear"
    combine: Literal["logits", "probs"] = "logits"
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    init: Literal["torch", "mean"] = "mean"
    normalise_inputs: bool = True
    epochs: int = 300
    batch: int = 256
    max_steps: int = 300

    def __post_init__(self) -> None:
        if self.combine == "probs" and self.weight_map != "softmax":
            raise ValueError(
                "probabilities are mixed with weights that sum to 1: weight_map must be 'softmax'"
            )


_ACTIVATIONS = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}
_MAPS = {
    "linear": lambda o: o,
    "softplus": torch.nn.functional.softplus,
    "exp": torch.exp,
    "softmax": lambda o: torch.softmax(o, dim=-1),
}
_NAMES = {
    False: ("w1_DH", "b1_H", "w2_HM", "b2_M"),
    True: ("w2_HM", "b2_M"),
}  # True: without hidden units


def inputs(embeddings: Sequence[Tensor], normalise: bool) -> Tensor:
    """Concatenate the embeddings, N×ΣD."""
    return torch.cat([unit(e) if normalise else e.float() for e in embeddings], dim=-1)


def initial(dim: int, backbones: int, settings: Gate, seed: int) -> list[Tensor]:
    """w1_DH, b1_H, w2_HM, b2_M before training; without hidden units the last two, with H = D."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int, fan: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(fan)

    first = (
        [uniform(dim, settings.hidden, fan=dim), uniform(settings.hidden, fan=dim)]
        if settings.hidden
        else []
    )
    hidden = settings.hidden or dim
    w2, b2 = uniform(hidden, backbones, fan=hidden), uniform(backbones, fan=hidden)
    if settings.init == "mean":
        mean = 1 / backbones
        start = {
            "linear": mean,
            "softplus": math.log(math.expm1(mean)),
            "exp": math.log(mean),
            "softmax": 0.0,
        }
        w2, b2 = torch.zeros_like(w2), torch.full_like(b2, start[settings.weight_map])
    return [*first, w2, b2]


def weights(parameters: Sequence[Tensor], x: Tensor, settings: Gate) -> Tensor:
    """Compute w_m(x) for one problem (x N×D) or S of them (x S×N×D, parameters with a first axis S)."""
    *first, w2, b2 = parameters
    hidden = (
        _ACTIVATIONS[settings.activation](x @ first[0] + first[1].unsqueeze(-2)) if first else x
    )
    return _MAPS[settings.weight_map](hidden @ w2 + b2.unsqueeze(-2))


def fuse(weights_XM: Tensor, logits_XMC: Tensor, combine: str) -> Tensor:
    """Compute log-probabilities under these weights, over any leading axes X.

    >>> fuse(torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "logits").exp()
    tensor([0.5000, 0.5000])
    """
    if combine == "probs":
        return (torch.log_softmax(logits_XMC, dim=-1) + weights_XM.log()[..., None]).logsumexp(-2)
    return torch.log_softmax((weights_XM[..., None, :] @ logits_XMC)[..., 0, :], dim=-1)


def fit(supports: Sequence[Support], settings: Gate) -> list[State]:
    """Train one network per support set; those of one shot in one tensor program."""
    return next(path(supports, [settings] * len(supports), 1), [])


def path(
    supports: Sequence[Support], settings: Sequence[Gate], parts: int
) -> Iterator[list[State]]:
    """Return the networks after each of `parts` equal parts of their training; the last are those of `fit`.

    Networks of one shape are one tensor program, also where their rates, weight decays, inputs or starts differ.

    Args:
        settings: one for each support set.
    """
    groups = _alike(supports, settings)
    trainings = [
        _training([supports[i] for i in group], [settings[i] for i in group], parts)
        for group in groups
    ]
    for after in zip(*trainings, strict=True):
        states = {}
        for group, parameters in zip(groups, after, strict=True):
            for position, i in enumerate(group):
                names = _NAMES[not settings[i].hidden]
                tensors = {
                    name: p[position].clone() for name, p in zip(names, parameters, strict=True)
                }
                states[i] = State(settings[i], tensors)
        yield [states[i] for i in range(len(supports))]


def _alike(supports: Sequence[Support], settings: Sequence[Gate]) -> list[list[int]]:
    """Positions of the trainings that can be stacked."""
    found: dict[tuple, list[int]] = {}
    for number, group in enumerate(alike(supports)):
        for i in group:
            shape = dataclasses.replace(
                settings[i], rate=0.0, weight_decay=0.0, normalise_inputs=True, init="mean"
            )
            found.setdefault((number, shape), []).append(i)
    return [part for group in found.values() for part in _cached(group, supports, settings)]


def _cached(
    group: Sequence[int], supports: Sequence[Support], settings: Sequence[Gate]
) -> list[list[int]]:
    """Cut a group evenly into parts of as many networks as a cache holds."""
    first, batch = supports[group[0]], settings[group[0]].batch
    images = len(first.labels_K)
    features = min(images, batch or images) * sum(e.shape[1] for e in first.embeddings)
    most = max(_FEWEST, _CACHED // max(1, features))
    parts = -(-len(group) // most)
    edges = [len(group) * part // parts for part in range(parts + 1)]
    return [list(group[start:end]) for start, end in pairwise(edges)]


def _training(
    supports: Sequence[Support], settings: Sequence[Gate], parts: int
) -> Iterator[list[Tensor]]:
    """The parameters of networks of one shape after each part, a first axis for the support sets; changed in place."""
    how, seeds = settings[0], [s.seed for s in supports]
    x_SKD = torch.stack(
        [inputs(s.embeddings, g.normalise_inputs) for s, g in zip(supports, settings, strict=True)]
    )
    logits_SKMC = stacked([s.logits_KMC.float() for s in supports])
    labels_SK = torch.stack([s.labels_K for s in supports])
    images, backbones = logits_SKMC.shape[1:3]
    starts = [
        initial(x_SKD.shape[2], backbones, g, seed) for g, seed in zip(settings, seeds, strict=True)
    ]
    parameters = [torch.stack(p) for p in zip(*starts, strict=True)]

    def some(rows_Sb: Tensor) -> tuple[Tensor, ...]:
        every = x_SKD, logits_SKMC, labels_SK
        if rows_Sb.shape[1] == images:
            return every
        return tuple(_rows(whole, rows_Sb) for whole in every)

    def loss(leaves: Sequence[Tensor], rows_Sb: Tensor) -> Tensor:
        x, z, y = some(rows_Sb)
        fused = fuse(weights(leaves, x, how), z, how.combine)
        return (
            torch.nn.functional.nll_loss(fused.flatten(0, 1), y.flatten(), reduction="sum")
            / y.shape[1]
        )

    def lone(now: Sequence[Tensor], rows_Sb: Tensor) -> list[Tensor]:
        x, z, y = some(rows_Sb)
        return lone_gate.gradient(now, x, z[:, :, 0], y, how)

    optimiser = Adam(
        parameters, [g.rate for g in settings], [g.weight_decay for g in settings], how.decay
    )
    batches = shuffled(images, seeds, how.batch, how.epochs, how.max_steps) if images else []
    for part in range(parts):
        own = batches[len(batches) * part // parts : len(batches) * (part + 1) // parts]
        minimise(lone if backbones == 1 else by_autograd(loss), parameters, optimiser, own)
        yield parameters


def _rows(whole_SKX: Tensor, rows_Sb: Tensor) -> Tensor:
    """Each problem's rows, S×b×…; copied whole, which is several times as fast as indexing by two tensors."""
    first_S1 = torch.arange(len(whole_SKX))[:, None] * whole_SKX.shape[1]
    flat = whole_SKX.flatten(0, 1).index_select(0, (rows_Sb + first_S1).flatten())
    return flat.view(*rows_Sb.shape, *whole_SKX.shape[2:])


def image_weights(state: State, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute weights_NM that a fitted gate gives to the backbones, per image."""
    settings = state.settings
    parameters = [state.tensors[name] for name in _NAMES[not settings.hidden]]
    return weights(parameters, inputs(embeddings, settings.normalise_inputs), settings)


def weight_shares(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute each backbone's share in an image's weights by their absolute values, N×M."""
    size_NM = image_weights(state, embeddings).abs().double()
    return size_NM / size_NM.sum(1, keepdim=True)


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Mix the backbones under the gate's weights."""
    return fuse(image_weights(state, embeddings).to(logits_NMC), logits_NMC, state.settings.combine)
