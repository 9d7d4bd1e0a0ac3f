"""`nlc_meta`: a gate that is the same function for every expert, learned on other datasets.

An expert is a backbone's calibrated zero-shot logits, or its calibrated prototype logits (`fusion`). What the gate sees
of an expert holds for any dataset: how sure it is of this image, how far the others agree, what the support images say
of it, how many labels and classes there are. So it can be learned on datasets whose labels are known, and applied to
one that it has not seen; and permuting the backbones permutes its weights (Zaheer et al. 2017, Deep Sets).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import proto_fusion
from clipray.numerics.fusers.flops import MULTIPLY_ADD, text_and_prototypes
from clipray.numerics.solvers.adam import Adam

OWN, CONTEXT = 13, 5  # features of an expert; those whose mean over the experts is seen beside them
FEATURES = OWN + CONTEXT
EXPERTS = proto_fusion.ProtoFusion()


@dataclasses.dataclass(frozen=True)
class MetaGate:
    """A gate w_e(x) = b_e · exp(g(features_e(x))), with b the weights of `proto_fusion`.

    Attributes:
        weights: the parameters of g, flat, as `learn` gives them; none: g is 0, and all is `proto_fusion`.
        hidden: units of g's one hidden layer.
        reach: |g| stays below it.
        experts: how they are made.
    """

    weights: tuple[float, ...] = ()
    hidden: int = 16
    reach: float = 2.0
    experts: proto_fusion.ProtoFusion = EXPERTS

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != size(self.hidden):
            raise ValueError(
                f"{len(self.weights)} weights; a gate of {self.hidden} hidden units has {size(self.hidden)}"
            )


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a gate is learned: AdamW on batches of episodes, every dataset as often as any other."""

    rate: float = 3e-3
    weight_decay: float = 1e-2
    steps: int = 400
    batch: int = 16
    seed: int = 0


class Episode(NamedTuple):
    """A support set of a dataset whose other images' labels are known too.

    Attributes:
        features_QEF, logits_QEC, base_E: of Q query images, see `seen`.
        labels_Q: their classes.
        group: the dataset.
    """

    features_QEF: Tensor
    logits_QEC: Tensor
    base_E: Tensor
    labels_Q: Tensor
    group: str


def size(hidden: int) -> int:
    """Count the parameters of g."""
    return (FEATURES + 1) * hidden + hidden + 1


def fit(supports: Sequence[Support], settings: MetaGate) -> list[State]:
    """Fit the experts of each support set; the gate itself is not fitted to them."""
    states = proto_fusion.fit(supports, settings.experts)
    for state, support in zip(states, supports, strict=True):
        state.tensors["images"] = torch.tensor([float(len(support.labels_K))])
    return [
        State(settings, state.tensors, state.numbers | {"learned": bool(settings.weights)})
        for state in states
    ]


def seen(
    state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what the gate sees of N images, and what it weighs.

    Returns:
        features_NEF, the 2M experts' logits_NEC (text first), and base_E, their weights in `proto_fusion`.
    """
    cosine_NMC = proto_fusion.cosines(state, embeddings)
    logits_NEC = torch.cat(proto_fusion.experts(state, logits_NMC, cosine_NMC), dim=1).float()
    images, backbones, _ = cosine_NMC.shape
    base_E = (state.tensors["weight_2"] / backbones).float().repeat_interleave(backbones)
    of_image = _of_image(state, logits_NEC, cosine_NMC)
    of_expert = _of_expert(state, backbones).expand(images, -1, -1)
    of_task = _of_task(state, logits_NEC.shape[2]).expand(images, 2 * backbones, 2)
    own = torch.cat([of_image, of_expert, of_task], dim=2)
    context = of_image[..., :CONTEXT].mean(1, keepdim=True).expand(-1, 2 * backbones, -1)
    return torch.cat([own, context], dim=2), logits_NEC, base_E


def _of_image(state: State, logits_NEC: Tensor, cosine_NMC: Tensor) -> Tensor:
    """How sure each expert is of each image and how far the others agree, N×E×6.

    The features: the highest probability, its lead over the second, the entropy in units of log C, the share of the
    other experts with the same answer, the probability that they give it, and the cosine to the nearest class mean.
    """
    _, experts, classes = logits_NEC.shape
    p_NEC = torch.softmax(logits_NEC, dim=2)
    best = p_NEC.topk(2, dim=2).values if classes > 1 else p_NEC.expand(-1, -1, 2)
    entropy_NE = -(p_NEC * p_NEC.clamp_min(1e-12).log()).sum(2) / math.log(max(classes, 2))
    said_NE = p_NEC.argmax(2)
    others = experts - 1
    same_NE = ((said_NE[:, :, None] == said_NE[:, None]).sum(2) - 1) / others
    rest_NEC = p_NEC.sum(1, keepdim=True) - p_NEC
    trust_NE = rest_NEC.gather(2, said_NE[..., None])[..., 0] / others
    near_NE = cosine_NMC.masked_fill(~state.tensors["seen_C"], -1.0).amax(2).repeat(1, 2)
    lead_NE = best[..., 0] - best[..., 1]
    return torch.stack([best[..., 0], lead_NE, entropy_NE, same_NE, trust_NE, near_NE], 2)


def _of_expert(state: State, backbones: int) -> Tensor:
    """What the support images say of each expert, its temperature, and whether it is one of prototypes; E×5."""
    gains = [state.tensors["beta_M"] * state.tensors["sure_1"], state.tensors["gamma_M"]]
    gain_E = torch.cat([gain.log() for gain in gains]).float() / 5
    kind_E = torch.arange(2 * backbones).ge(backbones).float()
    return torch.cat([state.tensors["evidence_E3"], gain_E[:, None], kind_E[:, None]], 1)


def _of_task(state: State, classes: int) -> Tensor:
    """How many labels and classes there are, 2 numbers of about 0 to 2."""
    shots = float(state.tensors["images"]) / max(1, int(state.tensors["seen_C"].sum()))
    return torch.tensor([math.log2(1 + shots) / 4, math.log(max(classes, 2)) / 5])


def gate(weights: Tensor, features_XF: Tensor, hidden: int, reach: float) -> Tensor:
    """Compute g of any number of experts: one hidden layer of tanh, the output bent to stay within ±reach."""
    first, bias, second, last = weights.split([FEATURES * hidden, hidden, hidden, 1])
    units = torch.tanh(features_XF @ first.view(FEATURES, hidden) + bias)
    return reach * torch.tanh((units @ second + last) / reach)


def weigh(gate_NE: Tensor, logits_NEC: Tensor, base_E: Tensor) -> Tensor:
    """Compute log-probabilities N×C of the sum of the experts' logits, weighted by base · exp(gate)."""
    return torch.log_softmax(((base_E * gate_NE.exp())[:, None] @ logits_NEC)[:, 0], dim=1)


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Weigh the experts by the gate; without learned weights this is `proto_fusion`."""
    settings = state.settings
    if not settings.weights:
        return proto_fusion.apply(state, logits_NMC, embeddings)
    weights = torch.tensor(settings.weights)
    features_NEF, logits_NEC, base_E = seen(state, logits_NMC, embeddings)
    return weigh(
        gate(weights, features_NEF, settings.hidden, settings.reach), logits_NEC, base_E
    ).to(logits_NMC)


def flops(state: State, backbones: int, classes: int, dims: Sequence[int]) -> float:
    """Count the operations of the experts, and of a small network for each of them; see `fusers.flops`."""
    experts = text_and_prototypes(state, backbones, classes, dims)
    if not state.settings.weights:
        return experts
    network = MULTIPLY_ADD * 2 * backbones * (FEATURES + 1) * state.settings.hidden
    weighing = MULTIPLY_ADD * 2 * backbones * classes
    return experts + network + weighing


def episode(support: Support, query: Support, settings: MetaGate, group: str) -> Episode:
    """Make what a gate can learn from one dataset's support set and further labelled images of it."""
    (state,) = fit([support], settings)
    return Episode(*seen(state, query.logits_KMC, query.embeddings), query.labels_K, group)


def learn(episodes: Sequence[Episode], settings: MetaGate, how: Learning) -> tuple[float, ...]:
    """Learn the gate's weights: the least mean NLL of the queries, from `proto_fusion` (a last layer of 0)."""
    generator = torch.Generator().manual_seed(how.seed)
    groups: dict[str, list[Episode]] = {}
    for one in episodes:
        groups.setdefault(one.group, []).append(one)
    names = sorted(groups)
    weights = [_start(settings, generator)]
    optimiser = Adam(weights, how.rate, how.weight_decay, "decoupled")

    def drawn() -> Episode:
        own = groups[names[int(torch.randint(len(names), (), generator=generator))]]
        return own[int(torch.randint(len(own), (), generator=generator))]

    for step in range(how.steps):
        leaf = weights[0].detach().requires_grad_(True)
        loss = _mean_loss(leaf, [drawn() for _ in range(how.batch)], settings)
        optimiser.pace = 0.5 * (1 + math.cos(math.pi * step / how.steps))
        optimiser.step(torch.autograd.grad(loss, [leaf]))
    return tuple(weights[0].tolist())


def _start(settings: MetaGate, generator: torch.Generator) -> Tensor:
    """A random first layer; all else 0, so that g is 0 at first."""
    start = torch.zeros(size(settings.hidden))
    first = FEATURES * settings.hidden
    start[:first] = torch.randn(first, generator=generator) / math.sqrt(FEATURES)
    return start


def _mean_loss(weights: Tensor, episodes: Sequence[Episode], settings: MetaGate) -> Tensor:
    """Compute the mean over episodes of their queries' mean NLL."""
    # One call for all episodes: they differ in classes, not in features.
    features = torch.cat([one.features_QEF for one in episodes])
    sizes = [len(one.labels_Q) for one in episodes]
    gates = gate(weights, features, settings.hidden, settings.reach).split(sizes)
    losses = []
    for gate_QE, one in zip(gates, episodes, strict=True):
        log_p_QC = weigh(gate_QE, one.logits_QEC, one.base_E)
        losses.append(torch.nn.functional.nll_loss(log_p_QC, one.labels_Q))
    return torch.stack(losses).mean()
