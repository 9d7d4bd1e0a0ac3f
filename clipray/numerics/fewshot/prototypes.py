"""Class means of the support embeddings, and the controls made of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from clipray.numerics.contracts import State, Support, unit
from clipray.numerics.solvers.logistic import Axes, fit_path, folds

AXES = 2**23  # features of support sets whose axes are kept, at most: 128 MiB in float64


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """Nearest class mean by cosine.

    Attributes:
        centre: subtract the mean support embedding first.
        temperature: of the cosines' softmax; moves no prediction, only its confidence.
    """

    centre: bool
    temperature: float = 0.1


@dataclasses.dataclass(frozen=True)
class Tip:
    """Tip-Adapter's key-value cache (Zhang et al. 2022), at its authors' fixed starting values.

    Attributes:
        alpha: weight of the cache beside the zero-shot logits.
        beta: sharpness of the affinity exp(−β (1 − cosine)).
    """

    alpha: float = 1.0
    beta: float = 5.5


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear probe; its penalty is chosen by cross-validation in the support set.

    Attributes:
        penalties: to choose from; the objective is Σ cross-entropy + penalty/2 · ‖W‖² (scikit-learn's C is 1/penalty).
        one_shot: the penalty where a single image per class leaves nothing to validate on.
        folds: the most folds.
        tolerance: as in `logistic.solve`; from 1e-5 up in float32, below in float64.
    """

    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    one_shot: float = 0.03
    folds: int = 3
    tolerance: float = 1e-3


def class_means(x_KD: Tensor, labels_K: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Compute the mean of each class's rows, means_CD (0 for a class without any), and the images per class, count_C.

    >>> class_means(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1]), 2)[0]
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    count_C = torch.bincount(labels_K, minlength=classes)
    sums_CD = x_KD.new_zeros(classes, x_KD.shape[1]).index_add_(0, labels_K, x_KD)
    return sums_CD / count_C.clamp_min(1)[:, None], count_C


def joined(embeddings: Sequence[Tensor]) -> Tensor:
    """Put all backbones' embeddings side by side, each scaled to length 1."""
    return torch.cat([unit(e) for e in embeddings], dim=1)


def fit_ncm_concat(supports: Sequence[Support], settings: Prototypes) -> list[State]:
    """Compute the class means of the concatenated embeddings."""
    return [
        _means([joined(s.embeddings)], s.labels_K, s.logits_KMC.shape[2], settings)
        for s in supports
    ]  # one "backbone"


def ncm_concat(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of the cosine to the class means of the concatenated embeddings, without zero-shot logits."""
    return torch.log_softmax(
        cosines(state, [joined(embeddings)])[:, 0] / state.settings.temperature, dim=1
    )


def fit_proto_avg(supports: Sequence[Support], settings: Prototypes) -> list[State]:
    """Compute the class means in each backbone's own space."""
    return [
        _means([unit(e) for e in s.embeddings], s.labels_K, s.logits_KMC.shape[2], settings)
        for s in supports
    ]


def proto_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of the mean over backbones of the cosine to its class means, without zero-shot logits."""
    cosines_NMC = cosines(state, [unit(e) for e in embeddings])
    return torch.log_softmax(cosines_NMC.mean(1) / state.settings.temperature, dim=1)


def _means(spaces: list[Tensor], labels_K: Tensor, classes: int, settings: Prototypes) -> State:
    tensors = {}
    for m, x_KD in enumerate(spaces):
        centre_D = x_KD.mean(0) if settings.centre and len(x_KD) else x_KD.new_zeros(x_KD.shape[1])
        means_CD, count_C = class_means(x_KD - centre_D, labels_K, classes)
        tensors |= {f"means_CD/{m}": unit(means_CD), f"centre_D/{m}": centre_D, "count_C": count_C}
    return State(settings, tensors)


def cosines(state: State, spaces: Sequence[Tensor]) -> Tensor:
    """Compute cosines_NMC to the class means; a class without support images gets −1, the least there is."""
    seen_C = state.tensors["count_C"] > 0
    all_of = [
        unit(x - state.tensors[f"centre_D/{m}"]) @ state.tensors[f"means_CD/{m}"].T
        for m, x in enumerate(spaces)
    ]
    return torch.where(seen_C, torch.stack(all_of, 1), -1.0)


def affinity(keys_KD: Tensor, labels_K: Tensor, x_ND: Tensor, beta: float, classes: int) -> Tensor:
    """Compute Tip-Adapter's affinities: Σ over the class's keys of exp(−β (1 − cosine)), N×C; keys and x of length 1.

    >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> affinity(keys, torch.tensor([0, 1]), torch.tensor([[1.0, 0.0]]), 1.0, 2)   # exp(0), exp(−1)
    tensor([[1.0000, 0.3679]])
    """
    near_NK = torch.exp(beta * (x_ND @ keys_KD.T - 1))
    return near_NK.new_zeros(len(x_ND), classes).index_add_(1, labels_K, near_NK)


def fit_tip(supports: Sequence[Support], settings: Tip) -> list[State]:
    """Make the cache: unit keys of every backbone, and the labels."""
    return [
        State(
            settings,
            {f"keys_KD/{m}": unit(e) for m, e in enumerate(s.embeddings)}
            | {"labels_K": s.labels_K},
        )
        for s in supports
    ]


def tip_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Apply Tip-Adapter to every backbone, then take the mean of their log p."""
    settings, classes = state.settings, logits_NMC.shape[2]
    cache_NMC = torch.stack(
        [
            affinity(
                state.tensors[f"keys_KD/{m}"],
                state.tensors["labels_K"],
                unit(e),
                settings.beta,
                classes,
            )
            for m, e in enumerate(embeddings)
        ],
        dim=1,
    )
    return torch.log_softmax((logits_NMC + settings.alpha * cache_NMC).mean(1), dim=1)


def design(x_KD: Tensor, centre_D: Tensor) -> Tensor:
    """Centre features and add a constant column, which makes the intercept a (penalised) weight."""
    return torch.cat([x_KD - centre_D, x_KD.new_ones(len(x_KD), 1)], dim=1)


def fit_probe_concat(supports: Sequence[Support], settings: Probe) -> list[State]:
    """Fit a linear probe on the concatenated embeddings of all backbones."""
    return fit_probes(
        [joined(s.embeddings) for s in supports],
        [s.labels_K for s in supports],
        supports[0].logits_KMC.shape[2] if supports else 0,
        settings,
        axes_of(supports),
    )


def probe_concat(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of the probe on the concatenated embeddings; zero-shot logits are not used."""
    return torch.log_softmax(probe(state, joined(embeddings)), dim=1)


@contextmanager
def axes_kept(supports: Sequence[Support]) -> Iterator[None]:
    """Let probes on the same features share the features' axes inside, where all of them take little memory."""
    if sum(e_KD.numel() for s in supports for e_KD in s.embeddings) > AXES:
        yield
        return
    for support in supports:
        support.known["axes"] = {}
    try:
        yield
    finally:
        for support in supports:
            del support.known["axes"]


def axes_of(supports: Sequence[Support]) -> list[Axes] | None:
    """Where axes of the support sets' features are kept, which `Support.known` says; None where not of all of them."""
    every = [support.known.get("axes") for support in supports]
    return None if any(own is None for own in every) else every


def fit_probes(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    classes: int,
    settings: Probe,
    kept: Sequence[Axes] | None = None,
) -> list[State]:
    """Fit linear probes on unit features K×D, those of one shape in one tensor program.

    Args:
        xs: features. ys: classes. kept: as in `logistic.fit_path`.
    """
    groups: dict[tuple, list[int]] = {}
    splits = [folds(y, settings.folds) for y in ys]
    for i, x in enumerate(xs):
        groups.setdefault((*x.shape, int(splits[i].max()) if len(x) else 0), []).append(i)
    states: dict[int, State] = {}
    for group in groups.values():
        centres = [xs[i].mean(0) for i in group]
        w_SDC, penalty_S = fit_path(
            torch.stack([design(xs[i], centre) for i, centre in zip(group, centres, strict=True)]),
            torch.stack([ys[i] for i in group]),
            torch.stack([splits[i] for i in group]),
            torch.tensor(settings.penalties),
            settings.one_shot,
            classes,
            tolerance=settings.tolerance,
            kept=kept and [kept[i] for i in group],
        )
        for i, w_DC, centre_D, penalty in zip(
            group, w_SDC, centres, penalty_S.tolist(), strict=True
        ):
            tensors = {"w_DC": w_DC.float().contiguous(), "centre_D": centre_D}
            states[i] = State(settings, tensors, {"penalty": penalty})
    return [states[i] for i in range(len(xs))]


def probe(state: State, x_ND: Tensor) -> Tensor:
    """Compute logits_NC of a fitted linear probe on unit features."""
    return design(x_ND, state.tensors["centre_D"]) @ state.tensors["w_DC"]
