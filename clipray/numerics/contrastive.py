"""The contrastive loss that trains a CLIP."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, caption_B: Tensor, scale: Tensor) -> Tensor:
    """Compute the multi-positive contrastive loss (UniCL, arXiv 2204.03610); it is CLIP's where captions are unique.

    Args:
        image_BD: normalised image embeddings.
        text_BD: normalised embedding of each image's caption.
        caption_B: integer that tells captions apart; equal captions are positives of each other.
        scale: what cosines are multiplied by.

    Returns:
        Mean over images and over captions of minus the mean log-probability of the positives, in nats.

    >>> one = torch.eye(2)
    >>> round(float(contrastive_loss(one, one, torch.tensor([0, 1]), torch.tensor(1.0))), 4)  # ln(1 + 1/e)
    0.3133
    """
    logits_BB = scale * image_BD @ text_BD.T
    same_BB = (caption_B[:, None] == caption_B[None, :]).to(logits_BB.dtype)
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    images = -(target_BB * log_softmax(logits_BB, dim=1)).sum(dim=1).mean()
    texts = -(target_BB * log_softmax(logits_BB.T, dim=1)).sum(dim=1).mean()
    return (images + texts) / 2


def shifted(pixels_NCHW: Tensor, pad: int, generator: torch.Generator | None = None) -> Tensor:
    """Move each image by up to `pad` pixels in both directions, its edge pixels repeated; the shape stays."""
    n, _, height, width = pixels_NCHW.shape
    padded = torch.nn.functional.pad(pixels_NCHW, (pad,) * 4, mode="replicate")
    top_N, left_N = torch.randint(
        0, 2 * pad + 1, (2, n), generator=generator, device=pixels_NCHW.device
    )
    rows_NH = top_N[:, None] + torch.arange(height, device=pixels_NCHW.device)
    columns_NW = left_N[:, None] + torch.arange(width, device=pixels_NCHW.device)
    index = torch.arange(n, device=pixels_NCHW.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows_NH[:, :, None], columns_NW[:, None, :]].permute(
        0, 3, 1, 2
    )
