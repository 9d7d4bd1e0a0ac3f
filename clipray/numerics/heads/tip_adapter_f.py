"""Tip-Adapter-F (Zhang et al. 2022): Tip-Adapter with trained keys."""

import dataclasses
from collections.abc import Sequence

import torch

from clipray.numerics.contracts import Head, Shots, State, unit
from clipray.numerics.heads.tip_adapter import tip_adapter
from clipray.numerics.heads.zero_shot import zero_shot
from clipray.numerics.solvers.adam import Adam, by_autograd, minimise, shuffled


@dataclasses.dataclass(frozen=True)
class TipTrained:
    """Tip-Adapter-F: the cache's keys are trained (AdamW, the authors' rate)."""

    alpha: float = 1.0
    beta: float = 5.5
    rate: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 20
    batch: int = 256


def fit_tip_adapter_f(problems: Sequence[Shots], settings: TipTrained) -> list[State]:
    """Train the cache's keys, those of one shape in one tensor program; keys start at the support embeddings."""
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(problems):
        groups.setdefault((tuple(p.embeddings_KD.shape), p.scale, p.bias), []).append(i)
    states: dict[int, State] = {}
    for group in groups.values():
        some = [problems[i] for i in group]
        x_SKD = torch.stack([unit(p.embeddings_KD) for p in some])
        z_SKC = torch.stack(
            [zero_shot(p.embeddings_KD, p.classifier_CD, p.scale, p.bias) for p in some]
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
                by_autograd(loss),
                keys,
                adam,
                shuffled(
                    x_SKD.shape[1], [p.seed for p in some], settings.batch, settings.epochs, 0
                ),
            )
        for i, keys_KD, labels_K in zip(group, keys[0], labels_SK, strict=True):
            states[i] = State(settings, {"keys_KD": keys_KD.clone(), "labels_K": labels_K})
    return [states[i] for i in range(len(problems))]


HEAD = Head(fit_tip_adapter_f, tip_adapter, TipTrained(), keeps_text=True)
