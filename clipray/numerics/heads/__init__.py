"""Heads that learn from labels: one backbone's support embeddings to logits for new embeddings."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipray.numerics.contracts import NoSettings, State, changed, unit
from clipray.numerics.fewshot.prototypes import Probe, Tip, affinity, fit_probes, probe
from clipray.numerics.heads import zero_shot
from clipray.numerics.solvers.adam import Adam, minimise, shuffled
from clipray.numerics.solvers.logistic import fit_path
from clipray.numerics.ties import exact_head


class Shots(NamedTuple):
    """What a head may learn from.

    Attributes:
        embeddings_KD, labels_K: the support images.
        classifier_CD: the zero-shot class vectors.
        scale, bias: the model's own.
        seed: the only source of chance.
    """

    embeddings_KD: Tensor
    labels_K: Tensor
    classifier_CD: Tensor
    scale: float
    bias: float
    seed: int = 0

    def take(self, rows: Tensor) -> "Shots":
        """These rows only."""
        return self._replace(embeddings_KD=self.embeddings_KD[rows], labels_K=self.labels_K[rows])


class Head(NamedTuple):
    """A pair of functions, like a fuser, for a single backbone.

    Attributes:
        fit: (problems, settings) -> one `State` each.
        apply: (state, embeddings_ND, classifier_CD, scale, bias) -> logits_NC.
        keeps_text: its logits at one shot are the zero-shot ones and little more (a cache adds 1 at most per image).
    """

    fit: Callable[[Sequence[Shots], Any], list[State]]
    apply: Callable[[State, Tensor, Tensor, float, float], Tensor]
    settings: Any = NoSettings()
    needs_labels: bool = True
    keeps_text: bool = False


@dataclasses.dataclass(frozen=True)
class Pulled:
    """Zero-shot probe: logistic regression that starts at the zero-shot weights and is pulled towards them.

    After CLAP (Silva-Rodríguez et al. 2024): the pull on a class is its mean zero-shot probability on its own support
    images, so classes that text describes well stay near it. No validation set.

    Attributes:
        strength: factor of the pull, in images.
        least: the smallest pull of a class, as a share of `strength`.
        tolerance: as in `Probe`.
    """

    strength: float = 1.0
    least: float = 0.01
    tolerance: float = 1e-3


@dataclasses.dataclass(frozen=True)
class TipTrained:
    """Tip-Adapter-F: the cache's keys are trained (AdamW, the authors' rate)."""

    alpha: float = 1.0
    beta: float = 5.5
    rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 20
    batch: int = 256


def fit_linear_probe(problems: Sequence[Shots], settings: Probe) -> list[State]:
    """Multinomial logistic regression on centred unit features; the penalty by cross-validation."""
    classes = len(problems[0].classifier_CD) if problems else 0
    return fit_probes(
        [unit(p.embeddings_KD) for p in problems], [p.labels_K for p in problems], classes, settings
    )


def linear_probe(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """The probe's logits; text and the model's scale play no part."""
    return probe(state, unit(embeddings_ND))


def fit_zero_shot_probe(problems: Sequence[Shots], settings: Pulled) -> list[State]:
    """W = T + V minimising Σ cross-entropy(scale · x W + bias) + strength · Σ_c pull_c / 2 · scale² ‖v_c‖²."""
    states = []
    for p in problems:
        x, classes = unit(p.embeddings_KD), len(p.classifier_CD)
        z = zero_shot.zero_shot(x, p.classifier_CD, p.scale, p.bias)
        own_K = torch.softmax(z, dim=1).gather(1, p.labels_K[:, None])[:, 0]
        images_C = torch.bincount(p.labels_K, minlength=classes)
        pull_C = torch.zeros(classes).index_add_(0, p.labels_K, own_K) / images_C.clamp_min(1)
        pull_C = (
            torch.where(images_C > 0, pull_C, 1.0).clamp_min(settings.least) * settings.strength
        )
        one_fold = torch.zeros(1, len(x), dtype=torch.int64)
        v_SDC, _ = fit_path(
            x[None],
            p.labels_K[None],
            one_fold,
            torch.ones(1),
            1.0,
            classes,
            z[None],
            pull_C,
            settings.tolerance,
        )
        states.append(State(settings, {"v_DC": v_SDC[0].float().contiguous()}))
    return states


def zero_shot_probe(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """Zero-shot logits plus the learned departure from them (which already holds the scale)."""
    return (
        zero_shot.zero_shot(embeddings_ND, classifier_CD, scale, bias)
        + unit(embeddings_ND) @ state.tensors["v_DC"]
    )


def fit_tip_adapter(problems: Sequence[Shots], settings: Tip) -> list[State]:
    """The cache: unit keys and labels."""
    return [
        State(settings, {"keys_KD": unit(p.embeddings_KD), "labels_K": p.labels_K})
        for p in problems
    ]


def fit_tip_adapter_f(problems: Sequence[Shots], settings: TipTrained) -> list[State]:
    """The cache with trained keys, those of one shape in one tensor program; keys start at the support embeddings."""
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(problems):
        groups.setdefault((tuple(p.embeddings_KD.shape), p.scale, p.bias), []).append(i)
    states: dict[int, State] = {}
    for group in groups.values():
        some = [problems[i] for i in group]
        x_SKD = torch.stack([unit(p.embeddings_KD) for p in some])
        z_SKC = torch.stack(
            [zero_shot.zero_shot(p.embeddings_KD, p.classifier_CD, p.scale, p.bias) for p in some]
        )
        labels_SK = torch.stack([p.labels_K for p in some])
        value_SKC = torch.nn.functional.one_hot(labels_SK, z_SKC.shape[2]).float()
        row_S1 = torch.arange(len(some))[:, None]

        def loss(leaves, rows_Sb, x=x_SKD, z=z_SKC, y=labels_SK, value=value_SKC, s=row_S1):
            near = torch.exp(settings.beta * (x[s, rows_Sb] @ leaves[0].transpose(1, 2) - 1))
            logits = z[s, rows_Sb] + settings.alpha * near @ value
            whole = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), y[s, rows_Sb].flatten(), reduction="sum"
            )
            return whole / rows_Sb.shape[1]

        keys = [x_SKD.clone()]
        if x_SKD.shape[1]:
            adam = Adam(
                keys, settings.rate, settings.weight_decay, "decoupled", eps=1e-4
            )  # the authors' eps
            minimise(
                loss,
                keys,
                adam,
                shuffled(
                    x_SKD.shape[1], [p.seed for p in some], settings.batch, settings.epochs, 0
                ),
            )
        for i, keys_KD, labels_K in zip(group, keys[0], labels_SK, strict=True):
            states[i] = State(settings, {"keys_KD": keys_KD.clone(), "labels_K": labels_K})
    return [states[i] for i in range(len(problems))]


def tip_adapter(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """Zero-shot logits plus α · the cache's affinities."""
    settings, keys, labels = state.settings, state.tensors["keys_KD"], state.tensors["labels_K"]
    cache_NC = affinity(keys, labels, unit(embeddings_ND), settings.beta, len(classifier_CD))
    return (
        zero_shot.zero_shot(embeddings_ND, classifier_CD, scale, bias) + settings.alpha * cache_NC
    )


def _fit_nothing(problems: Sequence[Shots], settings: Any) -> list[State]:
    return [State(settings) for _ in problems]


def _zero_shot(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    return zero_shot.zero_shot(embeddings_ND, classifier_CD, scale, bias)


FITTED_HEADS = {
    "zero_shot": Head(_fit_nothing, _zero_shot, needs_labels=False, keeps_text=True),
    "linear_probe": Head(fit_linear_probe, linear_probe, Probe()),
    "zero_shot_probe": Head(fit_zero_shot_probe, zero_shot_probe, Pulled()),
    "tip_adapter": Head(fit_tip_adapter, tip_adapter, Tip(), keeps_text=True),
    "tip_adapter_f": Head(fit_tip_adapter_f, tip_adapter, TipTrained(), keeps_text=True),
}
FITTED_HEADS.update({name: exact_head(head) for name, head in FITTED_HEADS.items()})


def head_of(name: str, changes: Mapping[str, Any] | None = None) -> Head:
    """A head, the given settings changed.

    Raises:
        KeyError: no such head. TypeError: no such setting.

    >>> head_of("tip_adapter", {"alpha": 2.0}).settings.alpha
    2.0
    """
    if name not in FITTED_HEADS:
        raise KeyError(f"no head {name!r}; known: {', '.join(FITTED_HEADS)}")
    return FITTED_HEADS[name]._replace(settings=changed(FITTED_HEADS[name].settings, changes or {}))
