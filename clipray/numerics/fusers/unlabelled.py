"""Images without labels, and what they teach a fitted fuser."""

from typing import NamedTuple

from torch import Tensor

from clipray.numerics.blocks import Lazy, of_backbone
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS


class Images(NamedTuple):
    """Images as a fuser sees them: logits_NMC of a head, and M embedding matrices N×D_m."""

    logits_NMC: Tensor | Lazy
    embeddings: tuple[Tensor, ...]

    def of(self, backbone: int) -> "Images":
        """Return the images as one backbone alone sees them."""
        own = self.embeddings[backbone : backbone + 1]
        return Images(of_backbone(self.logits_NMC, backbone), own)

    def take(self, rows: slice) -> "Images":
        """Return some of the images, their logits computed."""
        return Images(self.logits_NMC[rows], tuple(e_ND[rows] for e_ND in self.embeddings))


def taught(name: str, state: State, batch: Images, pool: Images | None = None) -> State:
    """Let the unlabelled images that a fuser's settings name teach its state; most fusers learn from none.

    Args:
        name: the fuser's.
        batch: the images that are to be classified.
        pool: those of the train split, where they are there.
    """
    adapt = FUSERS[name].adapt
    wanted = getattr(state.settings, "unlabelled", "none")
    teachers = {"batch": batch, "train": pool}.get(wanted)
    if adapt is None or teachers is None:
        return state
    return adapt(state, *teachers)
