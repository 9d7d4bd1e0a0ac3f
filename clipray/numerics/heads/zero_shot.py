"""CLIP's zero-shot head, which learns nothing: the cosines to the class vectors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from clipray.numerics.contracts import Head, Shots, State, unit


def zero_shot(embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float) -> Tensor:
    """Compute CLIP's zero-shot logits: scale · cos(f, t_c) + bias, scale and bias the model's own.

    Args:
        embeddings_ND: image embeddings, not necessarily normalised.
        classifier_CD: unit class vectors.
        scale: the model's logit scale, already exponentiated (about 100 for most CLIPs).
        bias: the model's logit bias (0 save for SigLIP).

    Returns:
        logits_NC. Equal class vectors have equal logits to the last bit, so that ties are ties on every machine.

    >>> import torch
    >>> zero_shot(torch.tensor([[3.0, 4.0]]), torch.eye(2), 10.0, -1.0)
    tensor([[5., 7.]])
    """
    distinct_UD, number_C = unit(classifier_CD).unique(dim=0, return_inverse=True)
    return (scale * (unit(embeddings_ND) @ distinct_UD.T) + bias)[:, number_C]


def alike(classifier_CD: Tensor) -> Tensor:
    """Tell which classes, bool C, have the class vector of another one: names that a text tower cannot tell apart.

    >>> import torch
    >>> alike(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    tensor([ True, False,  True])
    """
    _, number_C, count_U = unit(classifier_CD).unique(
        dim=0, return_inverse=True, return_counts=True
    )
    return count_U[number_C] > 1


def fit_nothing(problems: Sequence[Shots | None], settings: Any) -> list[State]:
    """Return one empty state a problem; what is in the problems plays no part."""
    return [State(settings) for _ in problems]


def apply(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """Return the zero-shot logits; the state is empty."""
    return zero_shot(embeddings_ND, classifier_CD, scale, bias)


HEAD = Head(fit_nothing, apply, needs_labels=False, keeps_text=True)
