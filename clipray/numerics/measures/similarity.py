"""How alike two embedding spaces are on the same images."""

import torch
from torch import Tensor

from clipray.numerics.contracts import unit


def cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Compute linear CKA (Kornblith et al. 2019): ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred columns, 0 to 1.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(cka(x, 3 * x), 6)
    1.0
    """
    x, y = (a.double() - a.double().mean(0) for a in (x_ND, y_NE))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def neighbour_overlap(x_ND: Tensor, y_NE: Tensor, k: int = 10, block: int = 1024) -> float:
    """Compute mutual k-NN: the mean share of an image's k nearest others (cosine) that both spaces have in common.

    (Huh et al. 2024.) Needs N > k.

    Args:
        block: rows compared at once; memory is block × N.
    """
    x, y, images = unit(x_ND), unit(y_NE), len(x_ND)
    if images <= k:
        raise ValueError(
            f"{k} neighbours of {images} images: there must be more images than neighbours"
        )
    shared = 0
    for start in range(0, images, block):
        rows = torch.arange(start, min(start + block, images))
        near = []
        for space in (x, y):
            cosine = space[rows] @ space.T
            cosine[torch.arange(len(rows)), rows] = -torch.inf
            near.append(cosine.topk(k, dim=1).indices)
        shared += int((near[0][:, :, None] == near[1][:, None, :]).sum())
    return shared / (images * k)
