"""Fusers that search or regress over all backbones' outputs: `stacking` and `gac`."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support, alike
from clipray.numerics.fewshot.prototypes import Probe, fit_probes, probe
from clipray.numerics.fusers.averages import CALIBRATED, Calibrated, calibrate, fit_calibrated


@dataclasses.dataclass(frozen=True)
class Stacking:
    """Multinomial logistic regression (Wolpert 1992) on the concatenated calibrated log-probabilities.

    Attributes:
        probe: the regression's penalties and folds.
        temperatures: how the backbones are calibrated first.
    """

    probe: Probe = Probe((1.0, 10.0, 100.0), one_shot=10.0, folds=3, tolerance=1e-4)  # noqa: RUF009 - frozen
    temperatures: Calibrated = CALIBRATED


@dataclasses.dataclass(frozen=True)
class Genetic:
    """GAC: a genetic search of positive weights for support accuracy (arXiv 2312.14400; its numbers are not stated).

    Attributes:
        population, generations: sizes of the search.
        elite: share that survives unchanged and breeds.
        spread: standard deviation of log-weights at the start, and `mutation` of their changes.
    """

    population: int = 32
    generations: int = 30
    elite: float = 0.25
    spread: float = 1.0
    mutation: float = 0.3


def _columns(state: State, logits_NMC: Tensor) -> Tensor:
    return torch.log_softmax(calibrate(state, logits_NMC), dim=-1).clamp_min(-30.0).flatten(1)


def fit_stacking(supports: Sequence[Support], settings: Stacking) -> list[State]:
    """Fit temperatures, then the regression; its penalty by cross-validation."""
    calibrated = fit_calibrated(supports, settings.temperatures)
    xs = [_columns(c, s.logits_KMC.float()) for c, s in zip(calibrated, supports, strict=True)]
    classes = supports[0].logits_KMC.shape[2] if supports else 0
    probes = fit_probes(xs, [s.labels_K for s in supports], classes, settings.probe)
    return [
        State(settings, p.tensors | {"beta_M": c.tensors["beta_M"]}, p.numbers)
        for p, c in zip(probes, calibrated, strict=True)
    ]


def stacking(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Compute log softmax of the regression."""
    return torch.log_softmax(probe(state, _columns(state, logits_NMC)), dim=1)


def fit_genetic(supports: Sequence[Support], settings: Genetic) -> list[State]:
    """Evolve log-weights; fitness is support accuracy, the lower NLL among equals.

    Equal weights are in the first generation and the best survive, so support accuracy is never below `mean_logits`'s.
    """
    states: dict[int, State] = {}
    for group in alike(supports):
        some = [supports[i] for i in group]
        z_SKMC = torch.stack([s.logits_KMC.float() for s in some])
        labels_SK = torch.stack([s.labels_K for s in some])
        generators = [torch.Generator().manual_seed(s.seed) for s in some]
        best_SM = _evolve(z_SKMC, labels_SK, generators, settings)
        for i, w_M in zip(group, best_SM, strict=True):
            states[i] = State(settings, {"w_M": w_M.clone()}, {"weights": w_M.tolist()})
    return [states[i] for i in range(len(supports))]


def _evolve(
    z_SKMC: Tensor, labels_SK: Tensor, generators: list[torch.Generator], settings: Genetic
) -> Tensor:
    backbones, size = z_SKMC.shape[2], settings.population
    keep = max(2, round(settings.elite * size))

    def normal(*shape: int) -> Tensor:
        return torch.stack([torch.randn(*shape, generator=g) for g in generators])

    def parents() -> Tensor:
        return torch.stack([torch.randint(keep, (2, size - keep), generator=g) for g in generators])

    def mask() -> Tensor:
        return torch.stack(
            [torch.rand(size - keep, backbones, generator=g) < 0.5 for g in generators]
        )

    genes_SPM = settings.spread * normal(size, backbones)
    genes_SPM[:, 0] = 0
    row = torch.arange(len(generators))[:, None]
    for _ in range(settings.generations):
        genes_SPM = genes_SPM[
            row, _fitness(genes_SPM, z_SKMC, labels_SK).argsort(dim=1, descending=True, stable=True)
        ]
        mother, father = parents().unbind(1)
        children = torch.where(mask(), genes_SPM[row, mother], genes_SPM[row, father])
        children = children + settings.mutation * normal(size - keep, backbones)
        genes_SPM = torch.cat([genes_SPM[:, :keep], children], dim=1)
    best_S = _fitness(genes_SPM, z_SKMC, labels_SK).argmax(1)
    return torch.softmax(genes_SPM[row[:, 0], best_S], dim=1)


def _fitness(genes_SPM: Tensor, z_SKMC: Tensor, labels_SK: Tensor) -> Tensor:
    """Compute support accuracy, plus less than half an image's worth of NLL to tell equals apart; S×P in float64."""
    w_SPM = torch.softmax(genes_SPM, dim=2)
    fused_SPKC = torch.einsum("spm,skmc->spkc", w_SPM, z_SKMC)
    right = (fused_SPKC.argmax(3) == labels_SK[:, None]).double().sum(2)
    own = labels_SK[:, None, :, None].expand(-1, w_SPM.shape[1], -1, 1)
    nll = (fused_SPKC.logsumexp(3) - fused_SPKC.gather(3, own)[..., 0]).double().mean(2)
    return right - 0.5 * nll / (1 + nll)


def weighted_logits(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Compute log softmax of Σ_m w_m z_m."""
    return torch.log_softmax(
        torch.einsum("m,nmc->nc", state.tensors["w_M"].to(logits_NMC), logits_NMC), dim=1
    )
