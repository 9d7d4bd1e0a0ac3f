"""Images without labels, and what they teach a fitted fuser."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import Lazy, of_backbone
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS


class Images(NamedTuple):
    """Images as a fuser sees them: logits_NMC of a head, and M embedding matrices N×D_m."""

    logits_NMC: Tensor | Lazy
    embeddings: tuple[Tensor, ...]

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.embeddings[0].device

    @property
    def here(self) -> AbstractContextManager:
        """A context in which tensors are made where they lie; it costs each call some time, so CPUs need none."""
        return nullcontext() if self.device.type == "cpu" else self.device

    def of(self, backbone: int) -> "Images":
        """Return the images as one backbone alone sees them."""
        own = self.embeddings[backbone : backbone + 1]
        return Images(of_backbone(self.logits_NMC, backbone), own)

    def take(self, rows: slice) -> "Images":
        """Return some of the images, their logits computed."""
        return Images(self.logits_NMC[rows], tuple(e_ND[rows] for e_ND in self.embeddings))


def taught(name: str, state: State, batch: Images, pool: Images | None = None) -> State:
    """Let the unlabelled images that a fuser's settings name teach its state; most fusers learn from none.

    What comes back lies where the images do.

    Args:
        name: the fuser's.
        batch: the images that are to be classified.
        pool: those of the train split, where they are there.
    """
    adapt = FUSERS[name].adapt
    state = state.to(batch.device)
    wanted = getattr(state.settings, "unlabelled", "none")
    teachers = {"batch": batch, "train": pool}.get(wanted)
    if adapt is None or teachers is None:
        return state
    with batch.here:
        return adapt(state, *teachers)
