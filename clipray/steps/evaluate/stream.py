"""Test images, a span at once → what bounds and fusers say of them, collected image by image.

The logits of a span are computed once for all that look at them, so neither N×M×C nor N×C is held. Only a transductive
fuser, whose answer to an image depends on all others, is given all logits at once (`parts.memory` counts them).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.config import Fuser
from clipray.numerics.blocks import spans
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS, singles
from clipray.numerics.fusers.alone import Alone, taught_alone
from clipray.numerics.fusers.unlabelled import Images
from clipray.numerics.measures.outcomes import Outcomes
from clipray.steps.evaluate.weights import Weights


class Ready(NamedTuple):
    """A fuser that is fitted, and taught by the unlabelled images that its settings name."""

    entry: Fuser
    state: State


class Fused:
    """What one fuser says of the test images.

    Attributes:
        entry, state: as in `Ready`. outcomes: what it says. whole: whether it has to see all images at once.
    """

    def __init__(self, ready: Ready, labels_N: Tensor):
        self.entry, self.state = ready
        self.whole = FUSERS[self.entry.fuser].transductive
        self.outcomes = Outcomes(labels_N)

    def update(self, images: Images, rows: slice) -> None:
        """Collect what it says of these images."""
        fuser = FUSERS[self.entry.fuser]
        self.outcomes.update(fuser.apply(self.state, *images), rows)


class Singly:
    """What one fuser says of the test images with each backbone alone.

    Attributes:
        entry: the fuser's. own: its fits. states: these, taught by unlabelled images.
        outcomes: what it says, backbone by backbone.
    """

    def __init__(
        self,
        entry: Fuser,
        own: Alone,
        batch: Images,
        pool: Images | None,
        labels_N: Tensor,
    ):
        self.entry, self.own = entry, own
        self.whole = FUSERS[entry.fuser].transductive
        self.states = taught_alone(entry.fuser, own, batch, pool)
        self.outcomes = [Outcomes(labels_N) for _ in self.states]
        self.qualities = [singles.Quality(labels_N) for _ in self.states]

    def update(self, images: Images, rows: slice) -> None:
        """Collect what it says of these images."""
        fuser = FUSERS[self.entry.fuser]
        for backbone, state in enumerate(self.states):
            log_probs_NC = fuser.apply(state, *images.of(backbone))
            self.outcomes[backbone].update(log_probs_NC, rows)
            self.qualities[backbone].update(log_probs_NC, rows)

    def best(self) -> int:
        """Find the backbone that is best on the test labels: a bound."""
        return singles.first_best(self.qualities)


class Bounds:
    """What the single backbones say of the test images, and the oracle.

    Attributes:
        singles: what each backbone says. oracle: what the chooser does that knows the labels.
        every: whether all of it is scored, or only what fusers are compared with.
    """

    whole = False

    def __init__(self, backbones: int, labels_N: Tensor, every: bool = True):
        self.every = every
        self.singles = [Outcomes(labels_N) for _ in range(backbones)]
        self.qualities = [singles.Quality(labels_N) for _ in range(backbones)]
        self.oracle = Outcomes(labels_N)

    def update(self, images: Images, rows: slice) -> None:
        """Collect what they say of these images."""
        logits_NMC = images.logits_NMC
        for m, outcomes in enumerate(self.singles):
            outcomes.update(singles.single(logits_NMC, m), rows)
            self.qualities[m].update(logits_NMC[:, m], rows)
        labels_N = self.oracle.labels_N[rows].to(logits_NMC.device)
        self.oracle.update(singles.oracle(logits_NMC, labels_N), rows)

    def best(self) -> Outcomes:
        """Return what the backbone says that is best on the test labels: a bound."""
        return self.singles[singles.first_best(self.qualities)]

    def right(self) -> Tensor:
        """Tell which backbone is right on which image, right_NM."""
        return torch.stack([quality.right_N for quality in self.qualities], dim=1)


def stream(batch: Images, each: Sequence[Fused | Singly | Bounds | Weights]) -> None:
    """Show all of them all images, on the device that these lie on."""
    by_span = [one for one in each if not one.whole]
    with batch.here:
        for rows in spans(batch.logits_NMC) if by_span else ():
            images = batch.take(rows)
            for one in by_span:
                one.update(images, rows)
            del images  # or two spans are held while the next one is computed
        rows = slice(0, len(batch.logits_NMC))
        for one in each:
            if one.whole:
                one.update(batch.take(rows), rows)
