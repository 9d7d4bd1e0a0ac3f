"""Single backbones and the bounds. Functions with a label parameter are bounds: they see the test labels by design."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipray.numerics.blocks import blocks
from clipray.numerics.contracts import State, Support


def single(logits_NMC: Tensor, backbone: int) -> Tensor:
    """Return log p of one backbone."""
    return torch.log_softmax(logits_NMC[:, backbone], dim=-1)


def accuracies(logits_NMC: Tensor, labels_N: Tensor) -> Tensor:
    """Compute a_m: each backbone's top-1 accuracy, accuracy_M in float64.

    >>> accuracies(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([0, 0]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    return (logits_NMC.argmax(-1) == labels_N[:, None]).double().mean(0)


def best(logits_NMC: Tensor, labels_N: Tensor) -> int:
    """Find the backbone with the highest accuracy; of equal ones, the one with the lower NLL of its own softmax.

    Without images it is the first.
    """
    qualities = [Quality(labels_N) for _ in range(logits_NMC.shape[1])]
    for m, own in enumerate(qualities):
        own.update(logits_NMC[:, m], slice(0, len(labels_N)))
    return first_best(qualities)


def _own(logits_NMC: Tensor, labels_N: Tensor) -> Tensor:
    """log p of the label, N×M."""
    log_p = torch.log_softmax(logits_NMC, dim=-1)
    return log_p.gather(2, labels_N[:, None, None].expand(-1, log_p.shape[1], 1))[..., 0]


class Quality:
    """What `best` compares of a backbone, collected from one block of images after another.

    Attributes:
        labels_N: of all images. right_N: bool, which the backbone has right. own_N: log p of the label.
    """

    def __init__(self, labels_N: Tensor) -> None:
        self.labels_N = labels_N
        self.right_N = labels_N.new_empty(len(labels_N), dtype=torch.bool)
        self.own_N = labels_N.new_empty(len(labels_N), dtype=torch.float64)

    def update(self, logits_BC: Tensor, rows: slice) -> None:
        """Add these images."""
        for block in blocks(logits_BC):
            part_BC = logits_BC[block]
            own = slice(rows.start + block.start, rows.start + block.stop)
            labels_B = self.labels_N[own].to(part_BC.device)
            self.right_N[own] = part_BC.argmax(1) == labels_B
            self.own_N[own] = _own(part_BC[:, None].double(), labels_B)[:, 0]

    def compute(self) -> tuple[float, float]:
        """Return accuracy and the mean log p of the label; (0, 0) without images."""
        if not len(self.labels_N):
            return 0.0, 0.0
        return float(self.right_N.double().mean()), float(self.own_N.mean())


def quality(logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Compute what `best` compares of a backbone whose logits are all there."""
    one = Quality(labels_N)
    one.update(logits_NC, slice(0, len(labels_N)))
    return one.compute()


def first_best(qualities: Sequence[Quality]) -> int:
    """Find the highest quality; of equal ones the first."""
    values = [one.compute() for one in qualities]
    return values.index(max(values))


def fit_best_single(supports: Sequence[Support], settings: Any) -> list[State]:
    """Find the best backbone on each support set; `tensors["backbone"]` holds its number."""
    chosen = [best(s.logits_KMC, s.labels_K) for s in supports]
    return [State(settings, {"backbone": torch.tensor(m)}, {"backbone": m}) for m in chosen]


def best_single(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Return log p of the backbone chosen on the support set."""
    return single(logits_NMC, int(state.tensors["backbone"]))


def best_single_on_test(logits_NMC: Tensor, labels_N: Tensor) -> tuple[int, Tensor]:
    """Compute a bound: the backbone that is best on the test labels, and its log_probs_NC."""
    backbone = best(logits_NMC, labels_N)
    return backbone, single(logits_NMC, backbone)


def oracle(logits_NMC: Tensor, labels_N: Tensor) -> Tensor:
    """Compute a bound: log_probs_NC of a chooser that knows the labels; its top-1 is right where any backbone is.

    Per image it takes the backbone that gives the label most probability, among the right ones where there are any.

    >>> z = torch.tensor([[[0.8, 0.2], [0.1, 0.9]], [[0.8, 0.2], [0.6, 0.4]]]).log()
    >>> oracle(z, torch.tensor([1, 1])).argmax(1)
    tensor([1, 0])
    """
    own_NM = torch.empty_like(logits_NMC[..., 0])
    for rows in blocks(logits_NMC):
        own_NM[rows] = _own(logits_NMC[rows], labels_N[rows])
    right_NM = logits_NMC.argmax(-1) == labels_N[:, None]
    hopeless_NM = ~right_NM & right_NM.any(1, keepdim=True)
    chosen_N = own_NM.masked_fill(hopeless_NM, -torch.inf).argmax(1)
    return torch.log_softmax(logits_NMC[torch.arange(len(chosen_N)), chosen_N], dim=-1)
