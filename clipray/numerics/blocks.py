"""Compute what each image gives by itself in blocks of images, so that N×M×C is never held twice."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

ELEMENTS = 2**22  # logits of a block: 16 MiB in float32


def blocks(logits_NMC: Tensor) -> Iterator[slice]:
    """Give the rows of one block after another; one block where there is no image.

    >>> list(blocks(torch.zeros(3, 2, 2**20)))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    images = len(logits_NMC)
    rows = max(1, ELEMENTS // max(1, logits_NMC[:1].numel()))
    for at in range(0, max(1, images), rows):
        yield slice(at, min(at + rows, images))


def by_block(
    function: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
    logits_NMC: Tensor,
    embeddings: Sequence[Tensor] = (),
) -> Tensor:
    """Apply a function of (logits, embeddings) to each block, and join what it gives along the images.

    Embeddings of half precision are widened block by block.
    """
    parts = [
        function(logits_NMC[rows], wide([e_ND[rows] for e_ND in embeddings]))
        for rows in blocks(logits_NMC)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def wide(embeddings: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Embeddings in float32 at least.

    >>> wide([torch.zeros(1, 2, dtype=torch.float16)])[0].dtype
    torch.float32
    """
    return tuple(e_ND.float() if e_ND.itemsize < 4 else e_ND for e_ND in embeddings)
