"""`proto_fusion`: every backbone is two experts, what text says of an image and what the support images say of it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import blocks
from clipray.numerics.contracts import State, Support, alike, stacked, unit
from clipray.numerics.fewshot.prototypes import class_means
from clipray.numerics.fusers.averages import (
    CALIBRATED,
    Calibrated,
    calibrate,
    fit_twice_calibrated,
    twice_calibrated,
)
from clipray.numerics.solvers.newton import CHUNK, inverse_temperatures
from clipray.numerics.solvers.positive import positive_weights


@dataclasses.dataclass(frozen=True)
class ProtoFusion:
    """How far prototypes are trusted.

    The mean of the calibrated zero-shot logits is calibrated once more: backbones that err apart leave a mean that is
    less sure than it should be.

    The prototype logits of a backbone are γ_m · cosine to its class means. Were cosines to wrong classes spread by σ_m
    and to the right one shifted by d' σ_m, the right γ_m would be d'/σ_m. σ_m is measured, even at one shot, where
    nothing says how large d' is: there the prior holds. From two images per class on, each support image is compared
    with its class mean without it (leave one out), and γ_m and the two weights are fitted on that.

    Attributes:
        d_prime: the prior for d'.
        prior_count: its worth in images.
        balance_count: worth, in images, of the prior that text and prototypes weigh as their temperatures say.
        centre: subtract the mean support embedding.
        temperatures: how zero-shot logits are calibrated.
    """

    d_prime: float = 2.0
    prior_count: float = 10.0
    balance_count: float = 10.0
    centre: bool = True
    temperatures: Calibrated = CALIBRATED


class _Prepared(NamedTuple):
    """What the temperatures of one support set's prototypes are fitted on.

    Attributes:
        tensors: class means, centres and σ of the backbones, by name.
        prior_M: γ_m as the prior has it. scaled_PMC: prototype logits under it of the P images that are not alone in
            their class. paired_K: which these are. labels_P: their classes.
    """

    tensors: dict[str, Tensor]
    prior_M: Tensor
    scaled_PMC: Tensor
    paired_K: Tensor
    labels_P: Tensor


def fit(supports: Sequence[Support], settings: ProtoFusion) -> list[State]:
    """Fit temperatures of both experts of every backbone, then the weights of text and prototypes.

    Support sets of one shape are fitted in one tensor program, as many as a cache holds.
    """
    calibrated = fit_twice_calibrated(supports, settings.temperatures)
    states: dict[int, State] = {}
    for group in _alike(supports):
        at_once = max(1, CHUNK // max(1, supports[group[0]].logits_KMC.numel()))
        for start in range(0, len(group), at_once):
            own = group[start : start + at_once]
            some = [supports[i] for i in own]
            fitted = _fit_some(some, [calibrated[i] for i in own], settings)
            states.update(zip(own, fitted, strict=True))
    return [states[i] for i in range(len(supports))]


def _alike(supports: Sequence[Support]) -> list[list[int]]:
    """Positions of support sets of one shape, of which as many images are not alone in their class."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, group in enumerate(alike(supports)):
        for i in group:
            paired = int(_paired(supports[i]).sum())
            found.setdefault((number, paired), []).append(i)
    return list(found.values())


def _paired(s: Support) -> Tensor:
    """Which images are not alone in their class: one that is has no mean without it, so nothing is fitted on it."""
    return torch.bincount(s.labels_K, minlength=s.logits_KMC.shape[2])[s.labels_K] > 1


def _fit_some(
    supports: Sequence[Support], calibrated: Sequence[State], settings: ProtoFusion
) -> list[State]:
    """Fit support sets of one shape whose zero-shot logits are calibrated."""
    ready = [_prepared(s, settings) for s in supports]
    scaled_SPMC = stacked([one.scaled_PMC for one in ready])
    labels_SP = torch.stack([one.labels_P for one in ready])
    bounds = settings.temperatures.low, settings.temperatures.high
    ratio_SM = inverse_temperatures(scaled_SPMC, labels_SP, settings.prior_count, *bounds)
    proto_SPMC = scaled_SPMC.double() * ratio_SM[:, None, :, None]
    texts = [
        twice_calibrated(c, s.logits_KMC[one.paired_K].double())
        for s, c, one in zip(supports, calibrated, ready, strict=True)
    ]
    balance_SP2C = torch.stack([torch.stack(texts), proto_SPMC.mean(2)], dim=2)
    weight_S2 = positive_weights(balance_SP2C, labels_SP, settings.balance_count)
    every = zip(supports, calibrated, ready, ratio_SM, proto_SPMC, weight_S2, strict=True)
    return [_state(settings, *one) for one in every]


def _prepared(s: Support, settings: ProtoFusion) -> _Prepared:
    count_C = torch.bincount(s.labels_K, minlength=s.logits_KMC.shape[2])
    paired_K = _paired(s)
    prototypes, spread_M, cosine_PMC = _prototypes(s, count_C, paired_K, settings.centre)
    prior_M = settings.d_prime / spread_M
    scaled_PMC = neutral(cosine_PMC * prior_M[:, None], count_C > 0)
    tensors = prototypes | {"seen_C": count_C > 0}
    return _Prepared(tensors, prior_M, scaled_PMC, paired_K, s.labels_K[paired_K])


def _state(
    settings: ProtoFusion,
    s: Support,
    calibrated: State,
    ready: _Prepared,
    ratio_M: Tensor,
    proto_PMC: Tensor,
    weight_2: Tensor,
) -> State:
    said = [_text_evidence(s, calibrated), evidence(proto_PMC, ready.labels_P)]
    tensors = {
        **calibrated.tensors,
        **ready.tensors,
        "gamma_M": ready.prior_M.double() * ratio_M,
        "weight_2": weight_2.clone(),
        "evidence_E3": torch.cat(said).float(),
    }
    return State(settings, tensors, {"text": float(weight_2[0]), "prototypes": float(weight_2[1])})


def _prototypes(
    s: Support, count_C: Tensor, paired_K: Tensor, centre: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Unit class means and centre of each backbone by name, σ_M, and left-out cosines of the paired images, P×M×C."""
    classes = len(count_C)
    tensors, spaces = {}, []
    for m, embeddings_KD in enumerate(s.embeddings):
        x_KD = unit(embeddings_KD)
        centre_D = x_KD.mean(0) if centre and len(x_KD) else torch.zeros(x_KD.shape[1])
        x_KD = unit(x_KD - centre_D)
        means_CD, _ = class_means(x_KD, s.labels_K, classes)
        tensors[f"means_CD/{m}"] = unit(means_CD)
        tensors[f"centre_D/{m}"] = centre_D
        spaces.append((x_KD, means_CD))

    def cosines_of(rows: slice) -> Tensor:
        every = [
            left_out_cosines(x_KD[rows], means_CD, s.labels_K[rows], count_C)
            for x_KD, means_CD in spaces
        ]
        return torch.stack(every, 1)

    parts = [*blocks(s.logits_KMC)]
    whole = cosines_of(parts[0]) if len(parts) == 1 else None

    def cosines() -> Iterator[tuple[slice, Tensor]]:
        for rows in parts:
            yield rows, cosines_of(rows) if whole is None else whole

    paired_PMC = spaces[0][0].new_empty(int(paired_K.sum()), len(spaces), classes)
    at = 0
    for rows, cosine_BMC in cosines() if len(paired_PMC) else ():
        some_QMC = cosine_BMC[paired_K[rows]]
        paired_PMC[at : at + len(some_QMC)] = some_QMC
        at += len(some_QMC)
    return tensors, spread(cosines, s.labels_K, count_C > 0, len(spaces)), paired_PMC


def left_out_cosines(x_KD: Tensor, means_CD: Tensor, labels_K: Tensor, count_C: Tensor) -> Tensor:
    """Cosines K×C of unit rows to the class means, the row itself left out of its own class's mean (0 if it is alone).

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> y = torch.tensor([0, 0, 1])
    >>> left_out_cosines(x, class_means(x, y, 2)[0], y, torch.tensor([2, 1])).round(decimals=4)
    tensor([[ 0.0000, -1.0000],
            [ 0.0000,  0.0000],
            [-0.7071,  0.0000]])
    """
    cosines_KC = x_KD @ unit(means_CD).T
    rest_KD = means_CD[labels_K] * count_C[labels_K][:, None] - x_KD
    own_K = (x_KD * unit(rest_KD)).sum(1).masked_fill(count_C[labels_K] < 2, 0.0)
    return cosines_KC.scatter(1, labels_K[:, None], own_K[:, None])


def spread(
    cosines: Callable[[], Iterable[tuple[slice, Tensor]]],
    labels_K: Tensor,
    seen_C: Tensor,
    backbones: int,
) -> Tensor:
    """Compute σ_m: the deviation of the cosines to wrong classes, at least 0.05 (two classes at one shot have none).

    Sums are added up in place. A list of a few numbers of each block would lie in memory between the blocks, and none
    of these could be used again: at 20,000 classes that was 15 GB of holes.

    Args:
        cosines: gives rows of images and their cosines B×M×C, block by block; it is looked through twice.
        backbones: M.
    """

    def wrong(rows: slice, cosine_BMC: Tensor) -> Tensor:
        right_BC = torch.nn.functional.one_hot(labels_K[rows], len(seen_C)).bool()
        return (~right_BC[:, None] & seen_C).expand_as(cosine_BMC)

    count_M = torch.zeros(backbones, dtype=torch.int64)
    sum_M, square_M = torch.zeros(2, backbones)
    for rows, cosine_BMC in cosines():
        wrong_BMC = wrong(rows, cosine_BMC)
        count_M += wrong_BMC.sum((0, 2))
        sum_M += (cosine_BMC * wrong_BMC).sum((0, 2))
    count_M = count_M.clamp_min(1)
    mean_M = sum_M / count_M
    for rows, cosine_BMC in cosines():
        square_M += ((cosine_BMC - mean_M[:, None]) ** 2 * wrong(rows, cosine_BMC)).sum((0, 2))
    return (square_M / count_M).sqrt().clamp_min(0.05)


def neutral(logits_NMC: Tensor, seen_C: Tensor) -> Tensor:
    """Give a class without prototype the mean logit of those that have one, which speaks neither for nor against it."""
    seen = logits_NMC * seen_C
    mean = seen.sum(2, keepdim=True) / seen_C.sum().clamp_min(1)
    return torch.where(seen_C, logits_NMC, mean)


def _text_evidence(s: Support, calibrated: State) -> Tensor:
    """`evidence` of the calibrated zero-shot logits."""
    images, backbones, classes = s.logits_KMC.shape
    right_KM, nll_KM = torch.empty(2, images, backbones, dtype=torch.float64)
    for rows in blocks(s.logits_KMC):
        z_BMC = calibrate(calibrated, s.logits_KMC[rows].double()) * calibrated.tensors["sure_1"]
        right_KM[rows], nll_KM[rows] = _said(z_BMC, s.labels_K[rows])
    return _evidence(right_KM, nll_KM, classes)


def evidence(logits_KMC: Tensor, labels_K: Tensor) -> Tensor:
    """What support images say of M experts, M×3: accuracy, NLL in units of chance's (log C), and 1; or 0, 1, 0 if none.

    >>> evidence(torch.tensor([[[5.0, 0.0]], [[5.0, 0.0]]]), torch.tensor([0, 1])).round(decimals=2)
    tensor([[0.5000, 3.6200, 1.0000]])
    """
    return _evidence(*_said(logits_KMC, labels_K), logits_KMC.shape[2])


def _said(logits_KMC: Tensor, labels_K: Tensor) -> tuple[Tensor, Tensor]:
    """1 where an expert is right, else 0, and its NLL; K×M."""
    right_KM = (logits_KMC.argmax(2) == labels_K[:, None]).to(logits_KMC.dtype)
    own = labels_K[:, None, None].expand(-1, logits_KMC.shape[1], 1)
    return right_KM, -torch.log_softmax(logits_KMC, dim=2).gather(2, own)[..., 0]


def _evidence(right_KM: Tensor, nll_KM: Tensor, classes: int) -> Tensor:
    images, backbones = right_KM.shape
    if not images:
        return torch.tensor([[0.0, 1.0, 0.0]], dtype=right_KM.dtype).expand(backbones, 3)
    nll_M = nll_KM.mean(0) / max(math.log(classes), 1e-9)
    return torch.stack([right_KM.mean(0), nll_M, torch.ones_like(nll_M)], dim=1)


def cosines(state: State, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute cosines N×M×C of centred embeddings to the class means; 0 for a class without any."""
    tensors = state.tensors
    every = [
        unit(unit(e) - tensors[f"centre_D/{m}"]) @ tensors[f"means_CD/{m}"].T
        for m, e in enumerate(embeddings)
    ]
    return torch.stack(every, 1)


def experts(state: State, logits_NMC: Tensor, cosine_NMC: Tensor) -> tuple[Tensor, Tensor]:
    """Compute calibrated logits N×M×C of every backbone's two experts: text, and prototypes."""
    proto_NMC = neutral(
        cosine_NMC * state.tensors["gamma_M"].float()[:, None], state.tensors["seen_C"]
    )
    return calibrate(state, logits_NMC) * state.tensors["sure_1"].to(logits_NMC), proto_NMC.to(
        logits_NMC
    )


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of the weighted sum of both experts: they are evidence of different kinds, so they add up."""
    weight_2 = state.tensors["weight_2"].to(logits_NMC)
    text_NMC, proto_NMC = experts(state, logits_NMC, cosines(state, embeddings))
    sum_NC = weight_2[0] * text_NMC.mean(1) + weight_2[1] * proto_NMC.mean(1)
    return torch.log_softmax(sum_NC, dim=1)
