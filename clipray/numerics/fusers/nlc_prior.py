"""`nlc_prior`: a gate that departs from the calibrated average only as far as the support set pays for it."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support, alike
from clipray.numerics.fewshot.prototypes import joined
from clipray.numerics.fusers.averages import CALIBRATED, Calibrated, calibrate, fit_calibrated
from clipray.numerics.fusers.convex import in_turn
from clipray.numerics.solvers.adam import Adam
from clipray.numerics.solvers.logistic import rotate


@dataclasses.dataclass(frozen=True)
class PriorGate:
    """log w_m(x) = −log T_m + g_m(x), with g linear in the centred, unit embeddings; fused logits = mean_m w_m(x) z_m.

    Attributes:
        penalties: strengths λ of λ/2 · ‖g's weights‖² (per image) to choose from; without a gain g stays 0.
        standard_errors: how many standard errors of its paired gain a penalty must save in held-out NLL to be taken.
        reach: |g| stays below it, so that no weight leaves T_m by more than a factor exp(reach).
        folds: of the cross-validation; images are dealt out in turn, so one per class is enough.
        rate, steps: of full-batch Adam.
        temperatures: how T_m is fitted.
    """

    penalties: tuple[float, ...] = (1e-3, 1e-2)
    standard_errors: float = 1.0
    reach: float = 2.0
    folds: int = 3
    rate: float = 0.1
    steps: int = 60
    temperatures: Calibrated = CALIBRATED


def fit(supports: Sequence[Support], settings: PriorGate) -> list[State]:
    """Fit temperatures first, then g: all seeds, folds and penalties of one shot in one tensor program."""
    calibrated = fit_calibrated(supports, settings.temperatures)
    states: dict[int, State] = {}
    for group in alike(supports):
        found = _fit_group([supports[i] for i in group], [calibrated[i] for i in group], settings)
        states |= dict(zip(group, found, strict=True))
    return [states[i] for i in range(len(supports))]


def _fit_group(
    supports: Sequence[Support], calibrated: Sequence[State], settings: PriorGate
) -> list[State]:
    """Fit support sets of one shape together."""
    x_SKD = torch.stack([joined(s.embeddings) for s in supports])
    _, images, dim = x_SKD.shape
    if images < 2:  # nothing can be held out, so g stays 0
        nothing_DM = torch.zeros(dim, supports[0].logits_KMC.shape[1])
        centre_D = torch.zeros(dim)
        return [_state(settings, one, nothing_DM, centre_D, None) for one in calibrated]
    centre_SD = x_SKD.mean(1)
    # K images span at most K dimensions: g is learned in these, and turned back at the end.
    x_SKR, basis_SDR, _ = rotate(x_SKD - centre_SD[:, None])
    x_SKR = x_SKR.float()
    pairs = zip(calibrated, supports, strict=True)
    z_SKMC = torch.stack([calibrate(one, s.logits_KMC.float()) for one, s in pairs])
    labels_SK = torch.stack([s.labels_K for s in supports])
    held_SKF = torch.nn.functional.one_hot(
        torch.stack([in_turn(s.labels_K, settings.folds) for s in supports])
    ).float()
    v_SRQM = _train_variants(x_SKR, z_SKMC, labels_SK, held_SKF, settings)
    chosen = _chosen(v_SRQM, x_SKR, z_SKMC, labels_SK, held_SKF, settings)
    grid = len(settings.penalties)
    # The last `grid` variants have seen all images: one for each penalty.
    rotated = torch.stack(
        [
            torch.zeros_like(v_RQM[:, 0]) if g is None else v_RQM[:, -grid + g]
            for v_RQM, g in zip(v_SRQM, chosen, strict=True)
        ]
    )
    v_SDM = (basis_SDR @ rotated.double()).float()
    parts = zip(calibrated, v_SDM, centre_SD, chosen, strict=True)
    return [_state(settings, *part) for part in parts]


def _train_variants(
    x_SKR: Tensor, z_SKMC: Tensor, labels_SK: Tensor, held_SKF: Tensor, settings: PriorGate
) -> Tensor:
    """Train g for every fold and penalty, and for no fold held out (the last): v_SRQM, Q = (folds + 1) · penalties."""
    nothing_held = torch.zeros(*held_SKF.shape[:2], 1)
    variants = torch.cat([held_SKF, nothing_held], dim=2)
    weights_SKQ = (1 - variants).repeat_interleave(len(settings.penalties), dim=2)
    penalty_Q = torch.tensor(settings.penalties).repeat(variants.shape[2])
    return _train(x_SKR, z_SKMC, labels_SK, weights_SKQ, penalty_Q, settings)


def _chosen(
    v_SRQM: Tensor,
    x_SKR: Tensor,
    z_SKMC: Tensor,
    labels_SK: Tensor,
    held_SKF: Tensor,
    settings: PriorGate,
) -> list[int | None]:
    """Choose for each support set the penalty whose gain in held-out NLL is the surest; None where none is sure."""
    grid, images = len(settings.penalties), x_SKR.shape[1]
    loss_SKQ = _loss(v_SRQM, x_SKR, z_SKMC, labels_SK, settings.reach)
    by_fold = loss_SKQ.unflatten(2, (-1, grid))[:, :, :-1]
    held_out_SKG = (by_fold * held_SKF[..., None]).sum(2)
    nothing = torch.zeros_like(v_SRQM[:, :, :1])
    plain_SK1 = _loss(nothing, x_SKR, z_SKMC, labels_SK, settings.reach)
    gain = plain_SK1 - held_out_SKG
    sure_SG = gain.mean(1) - settings.standard_errors * gain.std(1) / images**0.5
    return [int(g.argmax()) if g.max() > 0 else None for g in sure_SG]


def _state(
    settings: PriorGate, calibrated: State, v_DM: Tensor, centre_D: Tensor, chosen: int | None
) -> State:
    """A fitted gate; `chosen` is the position of its penalty, None where g is 0."""
    tensors = {
        "v_DM": v_DM.clone(),
        "centre_D": centre_D.clone(),
        "beta_M": calibrated.tensors["beta_M"],
    }
    numbers = {"penalty": None if chosen is None else settings.penalties[chosen]}
    return State(settings, tensors, numbers)


def _fused(g_XM: Tensor, z_XMC: Tensor, reach: float) -> Tensor:
    w_XM = torch.exp(reach * torch.tanh(g_XM / reach)) / g_XM.shape[-1]
    return (w_XM[..., None, :] @ z_XMC)[..., 0, :]


def _loss(v_SRQM: Tensor, x_SKR: Tensor, z_SKMC: Tensor, labels_SK: Tensor, reach: float) -> Tensor:
    g_SKQM = (x_SKR @ v_SRQM.flatten(2)).unflatten(2, v_SRQM.shape[2:])
    w_SKQM = torch.exp(reach * torch.tanh(g_SKQM / reach)) / g_SKQM.shape[-1]
    log_p = torch.log_softmax(w_SKQM @ z_SKMC, dim=-1)  # S×K×Q×C
    return -log_p.gather(3, labels_SK[:, :, None, None].expand(-1, -1, log_p.shape[2], 1))[..., 0]


def _train(
    x_SKR: Tensor,
    z_SKMC: Tensor,
    labels_SK: Tensor,
    weights_SKQ: Tensor,
    penalty_Q: Tensor,
    settings: PriorGate,
) -> Tensor:
    sets, _, rank = x_SKR.shape
    v = x_SKR.new_zeros(sets, rank, len(penalty_Q), z_SKMC.shape[2])
    share_SKQ = weights_SKQ / weights_SKQ.sum(1, keepdim=True).clamp_min(1)
    adam = Adam([v], settings.rate, 0.0, "l2")
    for _ in range(settings.steps):
        leaf = v.detach().requires_grad_(True)
        loss = (_loss(leaf, x_SKR, z_SKMC, labels_SK, settings.reach) * share_SKQ).sum()
        loss = loss + 0.5 * (penalty_Q[:, None] * leaf.square()).sum()
        adam.step(torch.autograd.grad(loss, [leaf]))
    return v


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of mean_m w_m(x) z_m(x)."""
    g_NM = (joined(embeddings) - state.tensors["centre_D"]) @ state.tensors["v_DM"]
    z_NMC = calibrate(state, logits_NMC)
    return torch.log_softmax(_fused(g_NM.to(z_NMC), z_NMC, state.settings.reach), dim=1)
