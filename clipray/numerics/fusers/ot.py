"""`ot`: label-free pseudo-labels for a whole set of images by optimal transport (after arXiv 2506.13723).

Our reading: images and classes are the two sides; moving image n to class c costs −log of what the backbones say of it.
The plan must use every image equally and every class as often as `class_share` says. From the plan come class means in
every backbone's space, whose opinion joins the cost, and so on for some rounds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clipray.numerics.contracts import State, unit


@dataclasses.dataclass(frozen=True)
class Transport:
    """Settings of `ot`.

    Attributes:
        epsilon: weight of the plan's entropy; 1 leaves log p as it is, smaller is sharper.
        class_share: "predicted" takes the mean of the averaged probabilities, "uniform" says all classes are as many.
        rounds: times that class means are made from the plan; 0: text alone.
        visual: weight of the class means' opinion beside the text's.
        temperature: of the cosine to the class means.
        iterations: of Sinkhorn's scaling.
    """

    epsilon: float = 1.0
    class_share: Literal["predicted", "uniform"] = "predicted"
    rounds: int = 3
    visual: float = 1.0
    temperature: float = 0.1
    iterations: int = 50


def sinkhorn(score_NC: Tensor, log_share_C: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Compute log of the entropic optimal-transport plan (Cuturi 2013), N×C, each row summing to 1.

    The plan is exp((score + column)/ε) with rows normalised; columns are scaled until they hold `share` of the images.

    >>> score = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> sinkhorn(score, torch.tensor([0.5, 0.5]).log(), 1.0, 20).exp()
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    score = score_NC / epsilon
    images = torch.tensor(float(len(score))).log()
    column_C = torch.zeros_like(log_share_C)
    for _ in range(iterations):
        plan = torch.log_softmax(score + column_C, dim=1)
        column_C = column_C + log_share_C - (plan.logsumexp(0) - images)
    return torch.log_softmax(score + column_C, dim=1)


def apply(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]) -> Tensor:
    """Compute log of the plan's rows; an image's row depends on the other images of the call."""
    settings = state.settings
    text_NC = torch.log_softmax(logits_NMC, dim=-1).mean(1)
    if settings.class_share == "uniform":
        log_share_C = torch.full_like(text_NC[0], 1 / text_NC.shape[1]).log()
    else:
        log_share_C = torch.softmax(text_NC, dim=1).mean(0).clamp_min(1e-12).log()
    plan = sinkhorn(text_NC, log_share_C, settings.epsilon, settings.iterations)
    spaces = [unit(e) for e in embeddings]
    spaces = [unit(x - x.mean(0)) for x in spaces] if len(plan) > 1 else spaces
    for _ in range(settings.rounds):
        weight_CN = plan.exp().T.to(spaces[0])
        opinion = [
            torch.log_softmax(x @ unit(weight_CN @ x).T / settings.temperature, dim=1)
            for x in spaces
        ]
        score = text_NC + settings.visual * torch.stack(opinion).mean(0).to(text_NC)
        plan = sinkhorn(score, log_share_C, settings.epsilon, settings.iterations)
    return plan
