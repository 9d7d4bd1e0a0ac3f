"""Heads: one backbone's embeddings to logits."""

from torch import Tensor

from clipray.numerics.support import unit


def classifier(text_CTD: Tensor) -> Tensor:
    """Class vectors t_c: the normalised mean over templates of normalised text embeddings (Radford et al. 2021, 3.1.4).

    Args:
        text_CTD: text embeddings, classes × templates × dimension, as the model gives them.

    Returns:
        classifier_CD of unit rows.

    >>> import torch
    >>> classifier(torch.tensor([[[2.0, 0.0], [0.0, 5.0]]]))
    tensor([[0.7071, 0.7071]])
    """
    return unit(unit(text_CTD).mean(dim=1))


def zero_shot(embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float) -> Tensor:
    """CLIP's zero-shot logits: scale · cos(f, t_c) + bias, scale and bias the model's own.

    Args:
        embeddings_ND: image embeddings, not necessarily normalised.
        classifier_CD: class vectors, see `classifier`.
        scale: the model's logit scale, already exponentiated (about 100 for most CLIPs).
        bias: the model's logit bias (0 save for SigLIP).

    Returns:
        logits_NC.

    >>> import torch
    >>> zero_shot(torch.tensor([[3.0, 4.0]]), torch.eye(2), 10.0, -1.0)
    tensor([[5., 7.]])
    """
    return scale * (unit(embeddings_ND) @ unit(classifier_CD).T) + bias


HEADS = {"zero_shot": zero_shot}
