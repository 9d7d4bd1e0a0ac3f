"""`guarded`: a mixture of other fusers by what they do on support images that they have not seen.

Each candidate is calibrated on those images first, so that one that is right but too sure of itself is not shut out.
Where text is good enough to be trusted, unlabelled images teach as well (`transductive`), and that candidate too is
judged on held-out support images. It is one rule for any number of labels, none included.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clipray.numerics.blocks import by_block
from clipray.numerics.contracts import Fuser, State, Support, distinct
from clipray.numerics.fewshot.prototypes import axes_kept
from clipray.numerics.fusers import transductive
from clipray.numerics.fusers.anchored import features
from clipray.numerics.fusers.averages import CALIBRATED, Calibrated, log_avg
from clipray.numerics.fusers.convex import log_mix, simplex_weights
from clipray.numerics.fusers.flops import class_vectors, logits_only
from clipray.numerics.fusers.present import present
from clipray.numerics.fusers.transductive import Sums, Transductive
from clipray.numerics.solvers.logistic import folds
from clipray.numerics.solvers.newton import inverse_temperatures

# Candidates that are not a fuser with its defaults. One penalty each, for a probe that chooses its own in every fold
# costs more than all else, and the mixture does the choosing.
CANDIDATES = {
    "anchored_near": ("anchored", {"penalty": 0.5}),
    "probe": ("linear_probe_concat", {"penalties": (0.1,), "one_shot": 0.1, "folds": 1}),
}
MIXTURE = Transductive()
JUDGES = 4096  # support images at most that judge the mixture where there is one a class: N×C of each fit is kept


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
        with_text: the fusers that are mixed evenly there instead, where text is right on the support images as often
            as `mixture` asks of a start.
        blind: the fusers that are mixed evenly below `least` where the support set's logits are borrowed: what is
            fitted on them misleads least where each backbone has one number, and one backbone may tower over all.
        prior_count: worth, in images, of the prior that all candidates weigh the same.
        informed: a candidate that tells significantly less than this part of what the best one tells beyond a guess
            has no weight.
        folds: the most folds.
        temperatures: how the candidates are calibrated on the images that they have not seen.
        unlabelled: whose images teach: those to be classified, those of the train split, or nobody's.
        mixture: how they teach.
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
    with_text: tuple[str, ...] = ("anchored", "proto_fusion")
    blind: tuple[str, ...] = ("best_single_on_support", "c_log_avg", "proto_fusion")
    prior_count: float = 10.0
    informed: float = 0.5
    folds: int = 3
    temperatures: Calibrated = CALIBRATED
    unlabelled: Literal["batch", "train", "none"] = "batch"
    mixture: Transductive = MIXTURE

    def __post_init__(self) -> None:
        if missing := {self.otherwise, *self.blind, *self.with_text} - set(self.candidates):
            raise ValueError(
                f"{', '.join(sorted(missing))} must be among the candidates to be taken in their place"
            )


def fit(fusers: Mapping[str, Fuser], supports: Sequence[Support], settings: Guarded) -> list[State]:
    """Fit the candidates on the whole support set, and weigh them by cross-validated NLL (a super learner of fusers).

    Where nothing can be held out, a rule names the candidates, and no other is fitted. Without labels all is `log_avg`.
    """
    labelled = [s for s in supports if len(s.labels_K)]
    splits = [_split(s.labels_K, settings) for s in labelled]
    parts = [s.take(f != k) for s, f in zip(labelled, splits, strict=True) for k in _counted(f)]
    asked = [_asked(s, f, settings) for s, f in zip(labelled, splits, strict=True)]
    asked_of_parts = [settings.candidates] * len(parts)
    fitted = _fitted(fusers, [*labelled, *parts], [*asked, *asked_of_parts], settings)
    whole, partial = fitted[: len(labelled)], iter(fitted[len(labelled) :])
    made = []
    for s, fold_K, names, own in zip(labelled, splits, asked, whole, strict=True):
        held = [next(partial) for _ in _counted(fold_K)]
        tensors = {"support/x_KD": features(s.embeddings)}
        judges_K = slice(None) if held else _judges(len(s.labels_K))
        start_KC = _text(s.logits_KMC[judges_K])
        tensors |= {"support/labels_K": s.labels_K, "support/start_KC": start_KC}
        tensors |= (
            _weighed(fusers, s, fold_K, held, settings) if held else _unweighed(names, settings)
        )
        for name, state in own.items():
            tensors |= {f"{name}/{key}": tensor for key, tensor in state.tensors.items()}
        weights = dict(zip(settings.candidates, tensors["w_J"].tolist(), strict=True))
        made.append(State(settings, tensors, {"weights": weights}))
    taken = iter(made)
    return [next(taken) if len(s.labels_K) else State(settings) for s in supports]


def _fitted(
    fusers: Mapping[str, Fuser],
    supports: Sequence[Support],
    asked: Sequence[Sequence[str]],
    settings: Guarded,
) -> list[dict[str, State]]:
    """Fit the candidates that are asked for on each support set; return their states by name.

    Each candidate is fitted on all of its support sets in one call, on those that are equal once: what is left of a
    support set without a fold may be another one that is asked for.
    """
    kept, place_of = distinct(supports)
    wanted: list[set[str]] = [set() for _ in kept]
    for place, names in zip(place_of, asked, strict=True):
        wanted[place].update(names)
    states: list[dict[str, State]] = [{} for _ in kept]
    with axes_kept(kept):
        for name in settings.candidates:
            fuser = _candidate(fusers, name)
            places = [place for place, names in enumerate(wanted) if name in names]
            own = fuser.fit([kept[place] for place in places], fuser.settings)
            for place, state in zip(places, own, strict=True):
                states[place][name] = state
    return [
        {name: states[place][name] for name in names}
        for place, names in zip(place_of, asked, strict=True)
    ]


def start(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """log q, which the mixture of what unlabelled images teach starts from."""
    return _text(logits_NMC)


def _text(logits_NMC: Tensor) -> Tensor:
    """What text says: the start of the mixture, and all that is known without labels."""
    return by_block(lambda z_BMC, _: log_avg(State(None), z_BMC), logits_NMC)


def _weighed(
    fusers: Mapping[str, Fuser],
    support: Support,
    fold_K: Tensor,
    partial: Sequence[Mapping[str, State]],
    settings: Guarded,
) -> dict[str, Tensor]:
    """Weights and inverse temperatures by what each fold's candidates say of the images that they have not seen."""
    classes = support.logits_KMC.shape[2]
    log_p = torch.zeros(len(fold_K), len(settings.candidates), classes, dtype=torch.float64)
    for k in _counted(fold_K):
        held = support.take(fold_K == k)
        fused = [
            _candidate(fusers, n).apply(partial[k][n], held.logits_KMC, held.embeddings)
            for n in settings.candidates
        ]
        log_p[fold_K == k] = torch.stack(fused, 1).double()
    beta_J, log_p = _calibrated(log_p, support.labels_K, settings)
    kept_J = _informed(_own(log_p, support.labels_K) + math.log(classes), settings.informed)
    w_J = torch.zeros(len(kept_J), dtype=torch.float64)
    w_J[kept_J] = _simplex(log_p[:, kept_J], support.labels_K, settings)
    held_KC = log_mix(w_J[None], log_p, "prob")[:, 0]
    return {"w_J": w_J, "beta_J": beta_J, "held/fold_K": fold_K, "held/log_p_KC": held_KC}


def _informed(told_KJ: Tensor, part: float) -> Tensor:
    """Tell which candidates say more than a set part of what the best one says, so that chance decides less.

    Args:
        told_KJ: nats of each held-out image beyond a guess.
    """
    best_K1 = told_KJ[:, told_KJ.mean(0).argmax()][:, None]
    lack_KJ = part * best_K1 - told_KJ
    error_J = lack_KJ.std(0, correction=0) / len(lack_KJ) ** 0.5
    return lack_KJ.mean(0) <= 2 * error_J


def _asked(support: Support, fold_K: Tensor, settings: Guarded) -> Sequence[str]:
    """Name the candidates that may have a weight: all of them, or where no image can be held out those of a rule."""
    if len(_counted(fold_K)):
        return settings.candidates
    if support.borrowed:
        return settings.blind
    first_K = by_block(lambda z_BMC, _: log_avg(State(None), z_BMC).argmax(1), support.logits_KMC)
    right_K = first_K == support.labels_K
    chance = 1 / support.logits_KMC.shape[2]
    reliable = (float(right_K.double().mean()) - chance) / max(1 - chance, 1e-12)
    return settings.with_text if reliable > settings.mixture.doubtful else (settings.otherwise,)


def _unweighed(taken: Sequence[str], settings: Guarded) -> dict[str, Tensor]:
    """Return even weights of the candidates that a rule takes."""
    w_J = [(name in taken) / len(taken) for name in settings.candidates]
    return {
        "w_J": torch.tensor(w_J, dtype=torch.float64),
        "beta_J": torch.ones(len(w_J), dtype=torch.float64),
    }


def _calibrated(log_p_KJC: Tensor, labels_K: Tensor, settings: Guarded) -> tuple[Tensor, Tensor]:
    """Fit the candidates' inverse temperatures, and return them with the calibrated log-probabilities."""
    how = settings.temperatures
    beta_J = inverse_temperatures(
        log_p_KJC[None], labels_K[None], how.prior_count, how.low, how.high
    )[0]
    return beta_J, torch.log_softmax(log_p_KJC * beta_J[:, None], dim=-1).clamp_min(-80)


def _own(log_p_KJC: Tensor, labels_K: Tensor) -> Tensor:
    """Take log p of the label, K×J."""
    return log_p_KJC.gather(2, labels_K[:, None, None].expand(-1, log_p_KJC.shape[1], 1))[..., 0]


def _simplex(log_p_KJC: Tensor, labels_K: Tensor, settings: Guarded) -> Tensor:
    ones, count = torch.ones(1, len(labels_K)), torch.tensor([settings.prior_count])
    return simplex_weights(log_p_KJC, labels_K, ones, count, "prob")[0]


def _candidate(fusers: Mapping[str, Fuser], name: str) -> Fuser:
    kind, changes = CANDIDATES.get(name, (name, {}))
    return fusers[kind]._replace(settings=dataclasses.replace(fusers[kind].settings, **changes))


def _split(labels_K: Tensor, settings: Guarded) -> Tensor:
    """Fold numbers; all 0 where the support set is too small to hold anything out."""
    enough = len(labels_K) and int(labels_K.bincount().max()) >= settings.least
    return folds(labels_K, settings.folds) if enough else torch.zeros_like(labels_K)


def _counted(fold_K: Tensor) -> range:
    """Return the folds to hold out: none where there is only one."""
    count = int(fold_K.max()) + 1 if len(fold_K) else 1
    return range(count if count > 1 else 0)


def _judges(images: int) -> Tensor | slice:
    """Return the rows of the support images that judge what unlabelled images teach, spread evenly over all."""
    return slice(None) if images <= JUDGES else torch.arange(JUDGES) * images // JUDGES


def adapt(fusers: Mapping[str, Fuser], state: State, sums: Sums, classes: int) -> State:
    """Let unlabelled images teach, where text may be trusted and the support images do not speak against it.

    What other images may have taught the state before is forgotten.
    """
    settings = state.settings.mixture
    own = {name: t for name, t in state.tensors.items() if not name.startswith("mixture/")}
    seen = transductive.Look(*sums(transductive.look))
    reliable = transductive.reliability(seen, classes)
    trust = transductive.trust_in(reliable, settings)
    numbers = state.numbers | {"reliability": reliable, "trust": trust, "share": 0.0}
    if trust <= 0:
        return State(state.settings, own, numbers)
    shown = None if "support/labels_K" in own else present(sums, seen.start_C)

    def taught(rows: Tensor | None) -> dict[str, Tensor]:
        known = None
        if rows is not None:
            known = tuple(own[f"support/{name}"][rows] for name in ("x_KD", "labels_K"))
        return transductive.learn(sums, seen, shown, known, trust, settings)

    share, beta = _judged(state, taught)
    numbers["share"] = share
    if not share:
        return State(state.settings, own, numbers)
    labels_K = own.get("support/labels_K")
    learned = taught(None if labels_K is None else torch.ones_like(labels_K, dtype=torch.bool))
    tensors = {f"mixture/{name}": tensor for name, tensor in learned.items()}
    tensors["mixture/share_1"] = torch.tensor([share], dtype=torch.float64)
    tensors["mixture/beta_1"] = torch.tensor([beta], dtype=torch.float64)
    return State(state.settings, own | tensors, numbers)


def _judged(state: State, taught: Any) -> tuple[float, float]:
    """The share of what unlabelled images teach beside the other candidates, and its inverse temperature.

    With folds both are fitted as for the other candidates, on support images that did not teach. With one image a
    class all support images, of very many some, are held out: the mixture must not lose more of them than chance
    would, one standard deviation of a fair coin. Without labels nothing can be asked.
    """
    if "support/labels_K" not in state.tensors:
        return 1.0, 1.0
    settings, labels_K = state.settings, state.tensors["support/labels_K"]
    start_KC, x_KD = state.tensors["support/start_KC"], state.tensors["support/x_KD"]
    if "held/fold_K" not in state.tensors:
        judges_K = _judges(len(labels_K))
        said_KC = transductive.say(taught(None), start_KC, [x_KD[judges_K]], settings.mixture)
        firsts = (log_p.argmax(1) for log_p in (said_KC, start_KC))
        right_K, before_K = (first_K == labels_K[judges_K] for first_K in firsts)
        lost, won = int((before_K & ~right_K).sum()), int((right_K & ~before_K).sum())
        return float(lost - won <= (lost + won) ** 0.5), 1.0
    said_KC, fold_K = start_KC.clone(), state.tensors["held/fold_K"]
    for k in _counted(fold_K):
        held = fold_K == k
        said_KC[held] = transductive.say(
            taught(~held), start_KC[held], [x_KD[held]], settings.mixture
        )
    beta_1, said_K1C = _calibrated(said_KC[:, None].double(), labels_K, settings)
    log_p_K2C = torch.cat([state.tensors["held/log_p_KC"][:, None], said_K1C], dim=1)
    return float(_simplex(log_p_K2C, labels_K, settings)[1]), float(beta_1)


def apply(
    fusers: Mapping[str, Fuser], state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> Tensor:
    """Compute log Σ_j w_j p_j over the calibrated candidates of any weight, and what unlabelled images taught."""
    learned = _inside(state, "mixture")
    share = float(learned["share_1"]) if learned else 0.0
    plain_NC = _mixed(fusers, state, logits_NMC, embeddings) if share < 1 else None
    if not share:
        return plain_NC
    said_NC = transductive.say(learned, _text(logits_NMC), embeddings, state.settings.mixture)
    said_NC = torch.log_softmax(float(learned["beta_1"]) * said_NC, dim=1)
    if plain_NC is None:
        return said_NC.clamp_min(-87.0)
    w_12 = torch.tensor([[1 - share, share]], dtype=plain_NC.dtype)
    return log_mix(w_12, torch.stack([plain_NC, said_NC], 1), "prob")[:, 0].clamp_min(-87.0)


def _inside(state: State, name: str) -> dict[str, Tensor]:
    """Return the tensors of a part of the state."""
    start = f"{name}/"
    return {k.removeprefix(start): t for k, t in state.tensors.items() if k.startswith(start)}


def _mixed(
    fusers: Mapping[str, Fuser], state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> Tensor:
    """Return what the candidates say; without labels, what text says."""
    if "w_J" not in state.tensors:
        return _text(logits_NMC)
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
    """Count the operations of the candidates of any weight, and of their mixture; see `fusers.flops`."""
    learned = _inside(state, "mixture")
    share = float(learned["share_1"]) if learned else 0.0
    taught = class_vectors(state, backbones, classes, dims) if share else 0.0
    if share == 1:
        return taught
    if "w_J" not in state.tensors:
        return taught + logits_only(state, backbones, classes, dims)
    parts = [
        fuser.flops(inner, backbones, classes, dims) for fuser, inner, _, _ in _parts(fusers, state)
    ]
    return taught + sum(parts) + logits_only(state, len(parts), classes, dims)


def _parts(
    fusers: Mapping[str, Fuser], state: State
) -> Iterator[tuple[Fuser, State, float, float]]:
    """List the candidates of any weight, each with its own state, its weight and its 1/T."""
    every = zip(
        state.settings.candidates,
        state.tensors["w_J"].tolist(),
        state.tensors["beta_J"].tolist(),
        strict=True,
    )
    for name, weight, beta in every:
        if weight > 1e-6:
            fuser = _candidate(fusers, name)
            yield fuser, State(fuser.settings, _inside(state, name)), weight, beta
