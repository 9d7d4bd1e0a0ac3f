"""Zero-shot probe, after CLAP (Silva-Rodríguez et al. 2024): a linear probe pulled towards the zero-shot weights."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.contracts import Head, Shots, State, unit
from clipray.numerics.heads.zero_shot import zero_shot
from clipray.numerics.solvers.logistic import fit_path


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


def fit_zero_shot_probe(problems: Sequence[Shots], settings: Pulled) -> list[State]:
    """Find W = T + V minimising Σ cross-entropy(scale · x W + bias) + strength · Σ_c pull_c / 2 · scale² ‖v_c‖²."""
    states = []
    for p in problems:
        x, classes = unit(p.embeddings_KD), len(p.classifier_CD)
        z = zero_shot(x, p.classifier_CD, p.scale, p.bias)
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
    """Compute the zero-shot logits plus the learned departure from them (which already holds the scale)."""
    return (
        zero_shot(embeddings_ND, classifier_CD, scale, bias)
        + unit(embeddings_ND) @ state.tensors["v_DC"]
    )


HEAD = Head(fit_zero_shot_probe, zero_shot_probe, Pulled())
