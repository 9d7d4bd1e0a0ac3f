"""Quality of fused probabilities: one number per image, or one number for all."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import blocks
from clipray.numerics.measures.intervals import Interval, normal_interval, share


class Answers(NamedTuple):
    """What measures of all images together look at: the probability of each first answer, and 1 where it is right."""

    confidence_N: Tensor
    right_N: Tensor


Said = Tensor | Answers  # log_probs_NC, or what was kept of them


def top(log_probs_NC: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """Score 1 where the label is among the k most probable classes, else 0; float64. Of equal classes the first wins.

    >>> top(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([1]), k=1)
    tensor([0.], dtype=torch.float64)
    """
    if k == 1:
        return (log_probs_NC.argmax(1) == labels_N).double()
    own_N1 = log_probs_NC.gather(1, labels_N[:, None])
    before_NC = torch.arange(log_probs_NC.shape[1]) < labels_N[:, None]
    better_NC = (log_probs_NC > own_N1) | ((log_probs_NC == own_N1) & before_NC)
    return (better_NC.sum(1) < k).double()  # `topk` takes any of equal ones


def nll(log_probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Compute −log p of the label, in nats.

    >>> nll(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0])).round(decimals=4)
    tensor([0.6931], dtype=torch.float64)
    """
    return -log_probs_NC.gather(1, labels_N[:, None])[:, 0].double()


def brier(log_probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Compute Σ_c (p_c − [c is the label])², from 0 to 2 (Brier 1950).

    >>> brier(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0])).round(decimals=4)
    tensor([0.5000], dtype=torch.float64)
    """
    p = log_probs_NC.double().exp()
    own_N = p.gather(1, labels_N[:, None])[:, 0]
    return p.square().sum(1) - 2 * own_N + 1


def balanced_accuracy(said: Said, labels_N: Tensor) -> Tensor:
    """Compute the mean, over the classes that occur, of the top-1 accuracy within the class.

    >>> p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> balanced_accuracy(p.log(), torch.tensor([0, 0, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    images_C = torch.bincount(labels_N)
    right_C = torch.bincount(labels_N, weights=answers(said, labels_N).right_N)
    return (right_C[images_C > 0] / images_C[images_C > 0]).mean()


def ece_width(said: Said, labels_N: Tensor, bins: int) -> Tensor:
    """Compute the calibration error over bins of equal width [i/bins, (i+1)/bins): Σ share · |accuracy − confidence|.

    >>> ece_width(torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.tensor([0, 1]), bins=10)  # (0.2 + 0.6) / 2
    tensor(0.4000, dtype=torch.float64)
    """
    confidence_N, right_N = answers(said, labels_N)
    bin_N = (confidence_N * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_N, right_N - confidence_N)
    return gap.abs().sum() / len(labels_N)


def ece_mass(said: Said, labels_N: Tensor, bins: int) -> Tensor:
    """Compute the calibration error over bins of equally many images (the first N mod bins hold one more).

    Images of equal confidence share their mean correctness, so the order of the rows does not matter.

    >>> ece_mass(torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.tensor([0, 1]), bins=1)    # |0.5 − 0.7|
    tensor(0.2000, dtype=torch.float64)
    """
    confidence_N, right_N = answers(said, labels_N)
    confidence_N, right_N = _sorted_with_ties_shared(confidence_N, right_N)
    parts = torch.tensor_split(right_N - confidence_N, bins)
    return torch.stack([part.sum().abs() for part in parts]).sum() / len(labels_N)


def aurc(said: Said, labels_N: Tensor) -> Tensor:
    """Compute the area under the risk-coverage curve: the mean over n of the error rate of the n most confident images.

    (Geifman & El-Yaniv 2017.) Where confidences are equal it is the expectation over their orders.

    >>> aurc(torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log(), torch.tensor([0, 1]))                # (0/1 + 1/2) / 2
    tensor(0.2500, dtype=torch.float64)
    """
    confidence_N, right_N = answers(said, labels_N)
    _, right_N = _sorted_with_ties_shared(confidence_N, right_N)
    wrong_N = 1 - right_N.flip(0)
    return (wrong_N.cumsum(0) / torch.arange(1, len(wrong_N) + 1)).mean()


def answers(said: Said, labels_N: Tensor) -> Answers:
    """Return what measures of all images together look at."""
    if isinstance(said, Answers):
        return said
    return Answers(said.max(1).values.double().exp(), top(said, labels_N, 1))


def _sorted_with_ties_shared(confidence_N: Tensor, right_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rising confidences, and correctness averaged over equal ones."""
    levels, place_N, count = torch.unique(
        confidence_N, sorted=True, return_inverse=True, return_counts=True
    )
    mean = torch.zeros_like(levels).index_add_(0, place_N, right_N) / count
    return levels.repeat_interleave(count), mean.repeat_interleave(count)


class Metric(NamedTuple):
    """One measure of quality.

    Attributes:
        function: (log_probs_NC, labels_N) -> a number for each image, or one number for all; the latter takes `Answers`
            in place of log_probs_NC too.
        about: what it is, one plain sentence for people.
        interval: of a number for each image, how their mean and its interval are computed; None for one number for all.
    """

    function: Callable[[Said, Tensor], Tensor]
    about: str
    interval: Callable[[Tensor], Interval] | None = None

    def __call__(self, said: Said, labels_N: Tensor) -> Tensor:
        """Compute the measure."""
        return self.function(said, labels_N)


METRICS: dict[str, Metric] = {
    "top1": Metric(partial(top, k=1), "Share of images whose first answer is right.", share),
    "top5": Metric(partial(top, k=5), "Share of images with the label among five answers.", share),
    "nll": Metric(nll, "Mean −log p of the label, in nats.", normal_interval),
    "brier": Metric(
        brier, "Mean squared distance of the probabilities to the label.", normal_interval
    ),
    "balanced_accuracy": Metric(balanced_accuracy, "Mean over classes of the top-1 accuracy."),
    "ece_width": Metric(
        partial(ece_width, bins=15), "Calibration error in 15 bins of equal width."
    ),
    "ece_mass": Metric(partial(ece_mass, bins=15), "Calibration error in 15 bins of equal mass."),
    "aurc": Metric(aurc, "Area under the curve of risk against coverage."),
}
PER_IMAGE = {name: metric for name, metric in METRICS.items() if metric.interval}


class Outcomes:
    """What every metric needs of a method, image by image: `update` with one block of images after another.

    Everything is allocated at once: small tensors that outlive large ones, made between them, would leave holes
    in memory that no large one fits in.

    Attributes:
        labels_N: of all images.
        values: by the name of each metric of `PER_IMAGE`, its number of every image.
        prediction_N, log_p_N: the first answers and their log-probabilities.
    """

    def __init__(self, labels_N: Tensor) -> None:
        images = len(labels_N)
        self.labels_N = labels_N
        self.values = {name: labels_N.new_empty(images, dtype=torch.float64) for name in PER_IMAGE}
        self.prediction_N = labels_N.new_empty(images)
        self.log_p_N: Tensor | None = None

    def update(self, log_probs_BC: Tensor, rows: slice) -> None:
        """Add what a method says of these images, on whatever device it does."""
        if self.log_p_N is None:
            self.log_p_N = self.labels_N.new_empty(len(self.labels_N), dtype=log_probs_BC.dtype)
        for block in blocks(log_probs_BC):
            part_BC = log_probs_BC[block]
            own = slice(rows.start + block.start, rows.start + block.stop)
            for name, metric in PER_IMAGE.items():
                self.values[name][own] = metric(part_BC, self.labels_N[own].to(part_BC.device))
            self.log_p_N[own], self.prediction_N[own] = part_BC.max(1)

    def compute(self) -> dict[str, tuple[float, ...]]:
        """Compute every metric: value, low, high; nothing but the value where it has no interval."""
        said = Answers(self.log_p_N.double().exp(), self.values["top1"])
        return {
            name: metric.interval(self.values[name])
            if metric.interval
            else (float(metric(said, self.labels_N)),)
            for name, metric in METRICS.items()
        }
