"""`anchored`: a linear probe on all backbones' embeddings that starts from what text says of an image.

Where text is right, little is left to learn; where it is not, this is the probe on concatenated embeddings.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.blocks import by_block
from clipray.numerics.contracts import State, Support, alike, stacked
from clipray.numerics.fewshot.prototypes import axes_of, design, joined
from clipray.numerics.fusers.averages import (
    CALIBRATED,
    Calibrated,
    fit_twice_calibrated,
    twice_calibrated,
)
from clipray.numerics.solvers.logistic import fit_path


@dataclasses.dataclass(frozen=True)
class Anchored:
    """log p = log softmax(text + x V): text is the calibrated mean of the backbones' logits, V minimises

        Σ cross-entropy + penalty/2 · ‖V‖²,  x the centred embeddings, side by side and of length 1 together.

    One penalty for any number of shots does as well as one chosen by cross-validation, at a tenth of the cost
    (`benchmarks/RESULTS.md`). A class without support images keeps what text says.

    Attributes:
        penalty: pull of V towards 0, where all is text, in images.
        tolerance: as in `prototypes.Probe`.
        temperatures: how the backbones' logits are calibrated.
    """

    penalty: float = 0.05
    tolerance: float = 1e-3
    temperatures: Calibrated = CALIBRATED


def fit(supports: Sequence[Support], settings: Anchored) -> list[State]:
    """Fit temperatures, then the probe; support sets of one shape are fitted in one tensor program."""
    texts = fit_twice_calibrated(supports, settings.temperatures)
    kept = axes_of(supports)
    states: dict[int, State] = {}
    for group in alike(supports):
        xs = [features(supports[i].embeddings) for i in group]
        labels_SK = torch.stack([supports[i].labels_K for i in group])
        text_SKC = stacked([text(texts[i], supports[i].logits_KMC) for i in group])
        w_SDC, _ = fit_path(
            torch.stack([design(x_KD, centre(x_KD)) for x_KD in xs]),
            labels_SK,
            torch.zeros_like(labels_SK),
            torch.ones(1),
            settings.penalty,
            text_SKC.shape[2],
            text_SKC,
            tolerance=settings.tolerance,
            kept=kept and [kept[i] for i in group],
            scale=len(supports[group[0]].embeddings) ** -0.5,
        )
        for i, x_KD, w_DC in zip(group, xs, w_SDC.float(), strict=True):
            seen_C = torch.bincount(supports[i].labels_K, minlength=w_DC.shape[1]) > 0
            tensors = {"centre_D": centre(x_KD), "w_DC": (w_DC * seen_C).contiguous()}
            states[i] = State(settings, texts[i].tensors | tensors, texts[i].numbers)
    return [states[i] for i in range(len(supports))]


def text(state: State, logits_KMC: Tensor) -> Tensor:
    """What text says of support images, calibrated, K×C."""
    return by_block(lambda z_BMC, _: twice_calibrated(state, z_BMC.float()), logits_KMC)


def features(embeddings: Sequence[Tensor]) -> Tensor:
    """Put the embeddings side by side, N×ΣD, of length 1 together, each backbone's share the same."""
    return joined(embeddings) / len(embeddings) ** 0.5


def centre(x_KD: Tensor) -> Tensor:
    """Compute the mean row; zeros where there is no row."""
    return x_KD.sum(0) / max(1, len(x_KD))


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log softmax of text plus what was learned beyond it."""
    learned_NC = design(features(embeddings), state.tensors["centre_D"]) @ state.tensors["w_DC"]
    return torch.log_softmax(twice_calibrated(state, logits_NMC) + learned_NC, dim=1)
