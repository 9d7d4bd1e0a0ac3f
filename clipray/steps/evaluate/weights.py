"""How fusers weigh the backbones from image to image, as rows of measures named `<fuser>/<backbone>`.

They are no methods. `weight` is a backbone's mean weight with its interval over images; `weight_p10`, `weight_p50` and
`weight_p90` are quantiles over images. What moves the weights is seen from `weight_where_right` and
`weight_where_wrong`: the means over images that the backbone alone has right, and over the others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.config import Fuser as Entry
from clipray.numerics.blocks import by_block
from clipray.numerics.contracts import Fuser, State
from clipray.numerics.fusers import FUSERS
from clipray.numerics.fusers.unlabelled import Images
from clipray.numerics.measures.intervals import normal_interval
from clipray.steps.evaluate.rows import Place, Scores

QUANTILES = {"weight_p10": 0.1, "weight_p50": 0.5, "weight_p90": 0.9}


def weights_of(fuser: Fuser, state: State, batch: Images) -> Tensor | None:
    """Compute the backbones' weights for each image, N×M; None where a fuser has none or the same for all images."""
    if fuser.weights is None:
        return None

    def one(logits_BMC: Tensor, embeddings: tuple[Tensor, ...]) -> Tensor:
        return fuser.weights(state, logits_BMC, embeddings).double()

    return by_block(one, *batch)


class Weights:
    """The weights of one fuser, collected from one span of images after another.

    Attributes:
        whole: it never has to see all images at once.
    """

    whole = False

    def __init__(self, entry: Entry, state: State, labels_N: Tensor):
        self.entry, self.state, self.labels_N = entry, state, labels_N
        self.weights: list[Tensor] = []
        self.right: list[Tensor] = []

    def update(self, images: Images, rows: slice) -> None:
        """Collect the weights of these images, and which backbone has them right."""
        said_NM = images.logits_NMC.argmax(-1).to(self.labels_N.device)
        weights_NM = weights_of(FUSERS[self.entry.fuser], self.state, images)
        self.weights.append(weights_NM.to(self.labels_N.device))
        self.right.append(said_NM == self.labels_N[rows, None])

    def compute(self) -> tuple[Tensor, Tensor]:
        """Join them: weights_NM and right_NM."""
        return torch.cat(self.weights), torch.cat(self.right)


def score_weights(scores: Scores, here: Place, names: Sequence[str], weights: Weights) -> None:
    """Add the rows of one fuser.

    Args:
        here: of the fuser. names: of the M backbones.
    """
    weights_NM, right_NM = weights.compute()
    for name, weight_N, right_N in zip(names, weights_NM.T, right_NM.T, strict=True):
        place = here._replace(method=f"{here.method}/{name}")
        scores.interval(place, "measure", "weight", normal_interval(weight_N))
        values = {key: float(weight_N.quantile(q)) for key, q in QUANTILES.items()}
        parts = {"weight_where_right": weight_N[right_N], "weight_where_wrong": weight_N[~right_N]}
        values |= {key: float(part.mean()) for key, part in parts.items() if len(part)}
        scores.plain(place, "measure", values)
