"""Room for the logits of a support set: memory, or a file where they are very many."""

import math
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from clipray.numerics.heads.cross_fit import LEARNED


def room(*shape: int) -> Tensor:
    """Make a float32 tensor of this shape, whose values are open; one of more than `LEARNED` numbers lies in a file.

    The file goes with the tensor. The system keeps as much of it in memory as is to spare. It lies where temporary
    files do (`TMPDIR`); where that has no room for it, the tensor is held in memory.

    >>> room(2, 1, 3).shape
    torch.Size([2, 1, 3])
    """
    count = math.prod(shape)
    if count <= LEARNED:
        return torch.empty(shape)
    with tempfile.TemporaryFile() as file:
        try:
            # without it a disk that fills up later would kill the process
            os.posix_fallocate(file.fileno(), 0, 4 * count)
        except (AttributeError, OSError):  # macOS has no such call
            return torch.empty(shape)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
