"""`proto_fusion`: every backbone is two experts, what text says of an image and what the support images say of it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from clipray.numerics.blocks import blocks
from clipray.numerics.contracts import State, Support, unit
from clipray.numerics.fewshot.prototypes import class_means
from clipray.numerics.fusers.averages import (
    CALIBRATED,
    Calibrated,
    calibrate,
    fit_twice_calibrated,
    twice_calibrated,
)
from clipray.numerics.solvers.newton import inverse_temperatures


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


def fit(supports: Sequence[Support], settings: ProtoFusion) -> list[State]:
    """Fit temperatures of both experts of every backbone, then the weights of text and prototypes."""
    calibrated = fit_twice_calibrated(supports, settings.temperatures)
    return [_fit_one(s, c, settings) for s, c in zip(supports, calibrated, strict=True)]


def _fit_one(s: Support, calibrated: State, settings: ProtoFusion) -> State:
    """Fit one support set whose zero-shot logits are calibrated."""
    classes = s.logits_KMC.shape[2]
    count_C = torch.bincount(s.labels_K, minlength=classes)
    seen_C = count_C > 0
    # An image that is alone in its class has no mean without it, so nothing is fitted on it.
    paired_K = count_C[s.labels_K] > 1
    labels = s.labels_K[paired_K]
    prototypes, spread_M, cosine_KMC = _prototypes(s, count_C, paired_K, settings.centre)
    prior_M = settings.d_prime / spread_M
    scaled_KMC = neutral(cosine_KMC * prior_M[:, None], seen_C)
    bounds = settings.temperatures.low, settings.temperatures.high
    (ratio_M,) = inverse_temperatures(scaled_KMC[None], labels[None], settings.prior_count, *bounds)
    proto_KMC = scaled_KMC.double() * ratio_M[:, None]

    text_KC = twice_calibrated(calibrated, s.logits_KMC[paired_K].double())
    balance_K2C = torch.stack([text_KC, proto_KMC.mean(1)], 1)
    weight_2 = positive_weights(balance_K2C, labels, settings.balance_count)

    said = [_text_evidence(s, calibrated), evidence(proto_KMC, labels)]
    tensors = {
        **calibrated.tensors,
        **prototypes,
        "seen_C": seen_C,
        "gamma_M": prior_M.double() * ratio_M,
        "weight_2": weight_2,
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

    paired = [cosine_BMC[paired_K[rows]] for rows, cosine_BMC in cosines()]
    return tensors, spread(cosines, s.labels_K, count_C > 0), torch.cat(paired)


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
    cosines: Callable[[], Iterable[tuple[slice, Tensor]]], labels_K: Tensor, seen_C: Tensor
) -> Tensor:
    """Compute σ_m: the deviation of the cosines to wrong classes, at least 0.05 (two classes at one shot have none).

    Args:
        cosines: gives rows of images and their cosines B×M×C, block by block; it is looked through twice.
    """

    def wrong(rows: slice, cosine_BMC: Tensor) -> Tensor:
        right_BC = torch.nn.functional.one_hot(labels_K[rows], len(seen_C)).bool()
        return (~right_BC[:, None] & seen_C).expand_as(cosine_BMC)

    sums, counts = [], []
    for rows, cosine_BMC in cosines():
        wrong_BMC = wrong(rows, cosine_BMC)
        counts.append(wrong_BMC.sum((0, 2)))
        sums.append((cosine_BMC * wrong_BMC).sum((0, 2)))
    count_M = sum(counts).clamp_min(1)
    mean_M = sum(sums) / count_M
    squares = [
        ((cosine_BMC - mean_M[:, None]) ** 2 * wrong(rows, cosine_BMC)).sum((0, 2))
        for rows, cosine_BMC in cosines()
    ]
    return (sum(squares) / count_M).sqrt().clamp_min(0.05)


def neutral(logits_NMC: Tensor, seen_C: Tensor) -> Tensor:
    """Give a class without prototype the mean logit of those that have one, which speaks neither for nor against it."""
    seen = logits_NMC * seen_C
    mean = seen.sum(2, keepdim=True) / seen_C.sum().clamp_min(1)
    return torch.where(seen_C, logits_NMC, mean)


def positive_weights(
    logits_KJC: Tensor, labels_K: Tensor, prior_count: float, steps: int = 60
) -> Tensor:
    """Find w_J > 0 minimising Σ_k −log softmax(Σ_j w_j z_kj)[y_k] + prior_count · Σ_j (w_j − log w_j).

    Convex; the prior's mode is 1 for every weight, which is also the answer without images. Damped Newton.

    >>> positive_weights(torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64), 1.0)
    tensor([1., 1.], dtype=torch.float64)
    """
    z = logits_KJC.double()
    z = z - z.gather(2, labels_K[:, None, None].expand(-1, z.shape[1], 1))

    def value(w: Tensor) -> Tensor:
        return (
            torch.einsum("j,kjc->kc", w, z).logsumexp(1).sum() + prior_count * (w - w.log()).sum()
        )

    w = torch.ones(z.shape[1], dtype=torch.float64)
    for _ in range(steps):
        p = torch.softmax(torch.einsum("j,kjc->kc", w, z), dim=1)
        mean = torch.einsum("kc,kjc->kj", p, z)
        first = mean.sum(0) + prior_count * (1 - 1 / w)
        second = (
            torch.einsum("kc,kjc,kic->ji", p, z, z)
            - mean.T @ mean
            + torch.diag(prior_count / w.square())
        )
        along = torch.linalg.solve(second, first)
        decrease, length = (
            float(first @ along),
            min(1.0, 0.99 / max(0.99, float((along / w).max()))),
        )
        if decrease < 1e-12:
            break
        now = value(w)
        while value(w - length * along) > now - 1e-4 * length * decrease and length > 1e-9:
            length /= 2
        w = w - length * along
    return w


def _text_evidence(s: Support, calibrated: State) -> Tensor:
    """`evidence` of the calibrated zero-shot logits."""
    sure_1 = calibrated.tensors["sure_1"]
    said = [
        _said(calibrate(calibrated, s.logits_KMC[rows].double()) * sure_1, s.labels_K[rows])
        for rows in blocks(s.logits_KMC)
    ]
    right_KM, nll_KM = (torch.cat(part) for part in zip(*said, strict=True))
    return _evidence(right_KM, nll_KM, s.logits_KMC.shape[2])


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
    kinds = [
        kind_NMC.mean(1) for kind_NMC in experts(state, logits_NMC, cosines(state, embeddings))
    ]
    return torch.log_softmax(torch.einsum("j,njc->nc", weight_2, torch.stack(kinds, 1)), dim=1)
