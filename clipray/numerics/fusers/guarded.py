"""`guarded`: a mixture of other fusers by what they do on support images that they have not seen.

Each candidate is calibrated on those images first, so that one that is right but too sure of itself is not shut out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from clipray.numerics.contracts import Fuser, State, Support
from clipray.numerics.fusers.averages import CALIBRATED, Calibrated
from clipray.numerics.fusers.convex import log_mix, simplex_weights
from clipray.numerics.fusers.flops import logits_only
from clipray.numerics.solvers.logistic import folds
from clipray.numerics.solvers.newton import inverse_temperatures

# Candidates that are not a fuser with its defaults. One penalty each, for a probe that chooses its own in every fold
# costs more than all else, and the mixture does the choosing.
CANDIDATES = {
    "anchored_near": ("anchored", {"penalty": 0.5}),
    "probe": ("linear_probe_concat", {"penalties": (0.1,), "one_shot": 0.1, "folds": 1}),
}


@dataclasses.dataclass(frozen=True)
class Guarded:
    """Settings of `guarded`.

    The candidates, `least` and `otherwise` were chosen by what they do on images of the train splits of real sets
    (`benchmarks/RESULTS.md` says which), so figures on those very sets flatter them; the weights are learned from the
    support set alone. `nlc` is no candidate: five more fits of it cost more than all else, and a probe on the same
    embeddings does that better.

    Attributes:
        candidates: names of fusers, with their default settings, or of `CANDIDATES`.
        least: images of the largest class from which on candidates are compared; below, nothing can be held out.
        otherwise: the fuser that is taken below `least`.
        blind: the fusers that are mixed evenly below `least` where the support set's logits are borrowed: what is
            fitted on them misleads least where each backbone has one number, and one backbone may tower over all.
        prior_count: worth, in images, of the prior that all candidates weigh the same.
        folds: the most folds.
        temperatures: how the candidates are calibrated on the images that they have not seen.
    """

    candidates: tuple[str, ...] = (
        "best_single_on_support",
        "c_log_avg",
        "proto_fusion",
        "anchored",
        "anchored_near",
        "probe",
    )
    least: int = 2
    otherwise: str = "anchored"
    blind: tuple[str, ...] = ("best_single_on_support", "c_log_avg", "proto_fusion")
    prior_count: float = 10.0
    folds: int = 3
    temperatures: Calibrated = CALIBRATED

    def __post_init__(self) -> None:
        if missing := {self.otherwise, *self.blind} - set(self.candidates):
            raise ValueError(
                f"{', '.join(sorted(missing))} must be among the candidates to be taken in their place"
            )


def fit(fusers: Mapping[str, Fuser], supports: Sequence[Support], settings: Guarded) -> list[State]:
    """Fit every candidate on the whole support set, and weigh them by cross-validated NLL (a super learner of fusers).

    All folds of all support sets are fitted in one call of each candidate's `fit`.
    """
    splits = [_split(s.labels_K, settings) for s in supports]
    parts = [s.take(f != k) for s, f in zip(supports, splits, strict=True) for k in _counted(f)]
    whole, partial = {}, {}
    for name in settings.candidates:
        fuser = _candidate(fusers, name)
        whole[name] = fuser.fit(supports, fuser.settings)
        partial[name] = fuser.fit(parts, fuser.settings) if parts else []
    states, at = [], 0
    for i, (s, f) in enumerate(zip(supports, splits, strict=True)):
        held_out = []
        for k in _counted(f):
            held = s.take(f == k)
            fused = [
                _candidate(fusers, n).apply(partial[n][at], held.logits_KMC, held.embeddings)
                for n in settings.candidates
            ]
            held_out.append((torch.stack(fused, 1).double(), held.labels_K))
            at += 1
        if held_out:
            log_p, labels = (torch.cat(p) for p in zip(*held_out, strict=True))
            how = settings.temperatures
            beta_J = inverse_temperatures(
                log_p[None], labels[None], how.prior_count, how.low, how.high
            )[0]
            log_p = torch.log_softmax(log_p * beta_J[:, None], dim=-1).clamp_min(-80)
            ones, count = torch.ones(1, len(labels)), torch.tensor([settings.prior_count])
            w_J = simplex_weights(log_p, labels, ones, count, "prob")[0]
        else:
            beta_J = torch.ones(len(settings.candidates), dtype=torch.float64)
            taken = settings.blind if s.borrowed else (settings.otherwise,)
            w_J = torch.tensor(
                [(n in taken) / len(taken) for n in settings.candidates], dtype=torch.float64
            )
        tensors, numbers = (
            {"w_J": w_J, "beta_J": beta_J},
            {"weights": dict(zip(settings.candidates, w_J.tolist(), strict=True))},
        )
        for name in settings.candidates:
            tensors |= {f"{name}/{key}": tensor for key, tensor in whole[name][i].tensors.items()}
        states.append(State(settings, tensors, numbers))
    return states


def _candidate(fusers: Mapping[str, Fuser], name: str) -> Fuser:
    kind, changes = CANDIDATES.get(name, (name, {}))
    return fusers[kind]._replace(settings=dataclasses.replace(fusers[kind].settings, **changes))


def _split(labels_K: Tensor, settings: Guarded) -> Tensor:
    """Fold numbers; all 0 where the support set is too small to hold anything out."""
    enough = len(labels_K) and int(labels_K.bincount().max()) >= settings.least
    return folds(labels_K, settings.folds) if enough else torch.zeros_like(labels_K)


def _counted(fold_K: Tensor) -> range:
    """The folds to hold out: none where there is only one."""
    count = int(fold_K.max()) + 1 if len(fold_K) else 1
    return range(count if count > 1 else 0)


def apply(
    fusers: Mapping[str, Fuser], state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> Tensor:
    """log Σ_j w_j p_j over the calibrated candidates of any weight."""
    fused, kept = [], []
    for fuser, inner, weight, beta in _parts(fusers, state):
        log_p_NC = fuser.apply(inner, logits_NMC, embeddings)
        fused.append(torch.log_softmax(beta * log_p_NC, dim=1))
        kept.append(weight)
    w_1J = torch.tensor([kept], dtype=logits_NMC.dtype)
    return log_mix(w_1J / w_1J.sum(), torch.stack(fused, 1).to(logits_NMC), "prob")[:, 0].clamp_min(
        -87.0
    )


def flops(
    fusers: Mapping[str, Fuser], state: State, backbones: int, classes: int, dims: Sequence[int]
) -> float:
    """Those of the candidates of any weight, and of their mixture; see `fusers.flops`."""
    parts = [
        fuser.flops(inner, backbones, classes, dims) for fuser, inner, _, _ in _parts(fusers, state)
    ]
    return sum(parts) + logits_only(state, len(parts), classes, dims)


def _parts(
    fusers: Mapping[str, Fuser], state: State
) -> Iterator[tuple[Fuser, State, float, float]]:
    """The candidates of any weight: each with its own state, its weight and its 1/T."""
    every = zip(
        state.settings.candidates,
        state.tensors["w_J"].tolist(),
        state.tensors["beta_J"].tolist(),
        strict=True,
    )
    for name, weight, beta in every:
        if weight > 1e-6:
            tensors = {
                k.removeprefix(f"{name}/"): t
                for k, t in state.tensors.items()
                if k.startswith(f"{name}/")
            }
            fuser = _candidate(fusers, name)
            yield fuser, State(fuser.settings, tensors), weight, beta
