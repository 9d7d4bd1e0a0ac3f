"""Fusers with one weight per backbone for all images, fitted on the support set's log-probabilities."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers.averages import CALIBRATED, Calibrated, calibrate, fit_calibrated


@dataclasses.dataclass(frozen=True)
class Convex:
    """Convex weights by cross-validated NLL.

    Attributes:
        space: "log" fuses Σ w_m log p_m (then normalises), "prob" fuses log Σ w_m p_m (the super learner, van der
            Laan et al. 2007).
        prior_counts: strengths of the pull towards equal weights to choose from by cross-validation, in images.
        folds: the most folds; images are dealt out in turn, so one image per class is enough.
        temperatures: how the backbones are calibrated first.
    """

    space: Literal["log", "prob"]
    prior_counts: tuple[float, ...] = (1.0, 10.0, 100.0)
    folds: int = 5
    temperatures: Calibrated = CALIBRATED


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Forward selection with replacement (Caruana et al. 2004) of calibrated probabilities by support NLL."""

    rounds: int = 20
    temperatures: Calibrated = CALIBRATED


def log_mix(w_QM: Tensor, log_p_KMC: Tensor, space: str) -> Tensor:
    """Fuse log-probabilities, K×Q×C for Q weightings (rows summing to 1).

    >>> log_mix(torch.tensor([[0.5, 0.5]]), torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]).log(), "prob").exp()
    tensor([[[0.5000, 0.5000]]])
    """
    if space == "log":
        return torch.log_softmax(torch.einsum("qm,kmc->kqc", w_QM, log_p_KMC), dim=-1)
    return torch.einsum("qm,kmc->kqc", w_QM, log_p_KMC.exp()).clamp_min(1e-300).log()


def simplex_weights(
    log_p_KMC: Tensor,
    labels_K: Tensor,
    weights_QK: Tensor,
    counts_Q: Tensor,
    space: str,
    steps: int = 100,
) -> Tensor:
    """w_QM ≥ 0 with Σ_m w = 1 that minimises Σ_k weights_k · NLL_k(w) − counts / M · Σ_m log w_m, for Q problems.

    Both NLLs are convex in w, and so is the prior (a Dirichlet whose mode is equal weights, worth `counts` images).
    Newton's method under the equality constraint, with a step short enough to stay inside and to descend.

    Args:
        log_p_KMC: log-probabilities.
        weights_QK: weight of each image in each problem.
        counts_Q: positive strengths of the prior.
        space: see `Convex`.
    """
    log_p = log_p_KMC.double()
    backbones, problems = log_p.shape[1], len(counts_Q)
    own_KM = log_p.gather(2, labels_K[:, None, None].expand(-1, backbones, 1))[..., 0]
    weight, count = weights_QK.double(), counts_Q.double()[:, None] / backbones
    ratio_KM = (own_KM - own_KM.amax(1, keepdim=True)).exp()

    def value(w: Tensor) -> Tensor:
        prior = (count * w.clamp_min(1e-300).log()).sum(1)
        if space == "prob":
            return -(weight * (w @ ratio_KM.T).log()).sum(1) - prior
        z = torch.einsum("qm,kmc->qkc", w, log_p)
        return (weight * (z.logsumexp(2) - w @ own_KM.T)).sum(1) - prior

    def derivatives(w: Tensor) -> tuple[Tensor, Tensor]:
        if space == "prob":
            pull = ratio_KM / (w @ ratio_KM.T)[..., None]  # Q×K×M
            first = -(weight[..., None] * pull).sum(1)
            second = torch.einsum("qk,qkm,qkn->qmn", weight, pull, pull)
        else:
            p = torch.softmax(torch.einsum("qm,kmc->qkc", w, log_p), dim=2)
            mean = torch.einsum("qkc,kmc->qkm", p, log_p)
            first = (weight[..., None] * (mean - own_KM)).sum(1)
            each_m = log_p.unbind(1)
            rule = "qk,qkc,kc,knc->qn"
            square = torch.stack([torch.einsum(rule, weight, p, z, log_p) for z in each_m], 1)
            second = square - torch.einsum("qk,qkm,qkn->qmn", weight, mean, mean)
        return first - count / w, second + torch.diag_embed(count / w.square())

    w = torch.full((problems, backbones), 1 / backbones, dtype=torch.float64)
    now = value(w)
    for _ in range(steps):
        first, second = derivatives(w)
        solved = torch.linalg.solve(second, torch.stack([first, torch.ones_like(first)], dim=2))
        balance = solved[..., 0].sum(1) / solved[..., 1].sum(1)
        along = solved[..., 0] - solved[..., 1] * balance[:, None]
        slope = (first * along).sum(1)
        length = (0.99 / (along / w).amax(1).clamp_min(0.99))[:, None]
        for _ in range(30):
            new = w - length * along
            then = value(new)
            bad = then > now - 1e-4 * length[:, 0] * slope + 1e-12 * now.abs()
            if not bad.any():
                break
            length = torch.where(bad[:, None], length / 2, length)
        w, now = torch.where(bad[:, None], w, new), torch.where(bad, now, then)
        if slope.max() < 1e-12 * (1 + now.abs().max()):
            break
    return w / w.sum(1, keepdim=True)


def fit_convex(supports: Sequence[Support], settings: Convex) -> list[State]:
    """Fit convex weights on calibrated backbones; the strength of the prior by cross-validation, all folds at once."""
    counts = torch.tensor(settings.prior_counts, dtype=torch.float64)
    states = []
    for support, calibrated in zip(
        supports, fit_calibrated(supports, settings.temperatures), strict=True
    ):
        log_p, y = (
            torch.log_softmax(calibrate(calibrated, support.logits_KMC.double()), dim=-1),
            support.labels_K,
        )
        held_FK = torch.nn.functional.one_hot(in_turn(y, settings.folds)).T.double()
        chosen = counts[:1]
        if len(held_FK) > 1:
            kept_QK = (1 - held_FK).repeat_interleave(len(counts), 0)
            w_QM = simplex_weights(log_p, y, kept_QK, counts.repeat(len(held_FK)), settings.space)
            fused_KQC = log_mix(w_QM, log_p, settings.space)
            loss_QK = -fused_KQC.gather(2, y[:, None, None].expand(-1, len(w_QM), 1))[..., 0].T
            loss_G = (loss_QK.view(len(held_FK), len(counts), -1) * held_FK[:, None]).sum((0, 2))
            chosen = counts[loss_G.argmin()][None]
        w_M = simplex_weights(log_p, y, torch.ones(1, len(y)), chosen, settings.space)[0]
        tensors = {"w_M": w_M, "beta_M": calibrated.tensors["beta_M"]}
        states.append(
            State(settings, tensors, {"weights": w_M.tolist(), "prior_count": float(chosen)})
        )
    return states


def in_turn(labels_K: Tensor, most: int) -> Tensor:
    """Deal fold numbers 0, 1, 2, 0, … to the images sorted by class; for methods that need no image of every class."""
    count = max(1, min(most, len(labels_K)))
    number = torch.empty_like(labels_K)
    number[labels_K.argsort(stable=True)] = torch.arange(len(labels_K)) % count
    return number


def convex(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Mix calibrated backbones under the fitted weights."""
    log_p = torch.log_softmax(calibrate(state, logits_NMC), dim=-1)
    space = getattr(state.settings, "space", "prob")
    return log_mix(state.tensors["w_M"][None].to(log_p), log_p, space)[:, 0].clamp_min(-87.0)


def fit_greedy(supports: Sequence[Support], settings: Greedy) -> list[State]:
    """Add, in each round, the backbone that leaves the least support NLL of the average; the lower number wins ties."""
    states = []
    for support, calibrated in zip(
        supports, fit_calibrated(supports, settings.temperatures), strict=True
    ):
        log_p = torch.log_softmax(calibrate(calibrated, support.logits_KMC.double()), dim=-1)
        backbones = log_p.shape[1]
        own_KM = log_p.gather(2, support.labels_K[:, None, None].expand(-1, backbones, 1))[
            ..., 0
        ].exp()
        total_K, chosen_M = (
            torch.zeros(len(own_KM), dtype=torch.float64),
            torch.zeros(backbones, dtype=torch.float64),
        )
        for _ in range(settings.rounds):
            best = int((total_K[:, None] + own_KM).clamp_min(1e-300).log().sum(0).argmax())
            total_K, chosen_M[best] = total_K + own_KM[:, best], chosen_M[best] + 1
        w_M = chosen_M / chosen_M.sum()
        tensors = {"w_M": w_M, "beta_M": calibrated.tensors["beta_M"]}
        states.append(State(settings, tensors, {"weights": w_M.tolist()}))
    return states
