"""The gradient of a gate over one backbone, written out.

A fuser's fair reference trains several gates on each backbone alone, and half of that went into products with one
column, which libraries compute several times as slowly as those with one row. Gates over several backbones have no
such product, and PyTorch finds their gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clipray.numerics.solvers.softmax import softmax


def gradient(
    parameters: Sequence[Tensor], x_SKD: Tensor, z_SKC: Tensor, labels_SK: Tensor, how: Any
) -> list[Tensor]:
    """Compute the gradient of the mean −log p of the labels, summed over S gates, by their parameters.

    Args:
        parameters: w1_SDH, b1_SH, w2_SH1, b2_S1; the last two alone, with H = D, without hidden units.
        x_SKD: features of the images. z_SKC: logits of the one backbone. how: the gates' settings, `nlc.Gate`.
    """
    *first, w2_SH1, b2_S1 = parameters
    w2_S1H = w2_SH1.transpose(1, 2)
    before_SKH = hidden_SKH = x_SKD
    if first:
        before_SKH = (x_SKD @ first[0]).add_(first[1].unsqueeze(1))
        hidden_SKH = _ACTIVATIONS[how.activation](before_SKH)
    output_SK1 = (w2_S1H @ hidden_SKH.transpose(1, 2)).transpose(1, 2) + b2_S1.unsqueeze(1)
    slope_SK1 = _by_output(output_SK1, z_SKC, labels_SK, how)
    by_w2_S1H = slope_SK1.transpose(1, 2) @ hidden_SKH
    last = [by_w2_S1H.transpose(1, 2), slope_SK1.sum(1)]
    if not first:
        return last
    slope_SKH = _SLOPES[how.activation](slope_SK1 * w2_S1H, before_SKH, hidden_SKH)
    return [x_SKD.transpose(1, 2) @ slope_SKH, slope_SKH.sum(1), *last]


def _by_output(output_SK1: Tensor, z_SKC: Tensor, labels_SK: Tensor, how: Any) -> Tensor:
    """The gradient by what the network gives, S×K×1."""
    if how.weight_map == "softmax":
        return torch.zeros_like(output_SK1)  # the one weight is 1 whatever the network gives
    weight_SK1 = _MAPS[how.weight_map](output_SK1)
    expected_SK1 = (softmax(weight_SK1 * z_SKC) * z_SKC).sum(2, keepdim=True)
    own_SK1 = z_SKC.gather(2, labels_SK[..., None])
    slope_SK1 = (expected_SK1 - own_SK1) / labels_SK.shape[1]
    return _MAP_SLOPES[how.weight_map](slope_SK1, output_SK1, weight_SK1)


def _gelu_slope(g: Tensor, before: Tensor, after: Tensor) -> Tensor:
    below = (1 + torch.erf(before / 2**0.5)) / 2
    density = torch.exp(-before.square() / 2) / (2 * torch.pi) ** 0.5
    return g * (below + before * density)


# A function, and its slope: from the gradient by what it gave, what it was given, and what it gave.
Map = Callable[[Tensor], Tensor]
Slope = Callable[[Tensor, Tensor, Tensor], Tensor]

_ACTIVATIONS: dict[str, Map] = {
    "relu": torch.relu_,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh,
}
_SLOPES: dict[str, Slope] = {
    "relu": lambda g, _, after: torch.ops.aten.threshold_backward(g, after, 0.0),
    "gelu": _gelu_slope,
    "tanh": lambda g, _, after: g * (1 - after.square()),
}
_MAPS: dict[str, Map] = {
    "linear": lambda o: o,
    "softplus": torch.nn.functional.softplus,
    "exp": torch.exp,
}
_MAP_SLOPES: dict[str, Slope] = {
    "linear": lambda g, _, w: g,
    "softplus": lambda g, o, w: g * torch.sigmoid(o),
    "exp": lambda g, _, w: g * w,
}
