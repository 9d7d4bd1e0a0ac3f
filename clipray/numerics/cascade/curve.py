"""Accuracy against cost: single backbones, subsets of them, cascades and the full fusion, with their Pareto front."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import Lazy, computed
from clipray.numerics.cascade import search, thresholds
from clipray.numerics.measures import intervals

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # thresholds of the cascades that are drawn
EVERY = (
    5  # up to this many backbones all subsets are drawn; beyond, those that no cheaper one beats
)
SAMPLE = 2048  # images on which the subsets of more backbones are compared


class Point(NamedTuple):
    """One way to use the backbones.

    Attributes:
        kind: "single", "subset", "full" or "cascade".
        members: numbers of the backbones; of a cascade in the order in which they run.
        threshold: of a cascade, the same for all stages; else nan.
        accuracy: top-1 with Wilson's interval over images.
        gflops: mean per image.
        on_front: whether nothing drawn is as cheap and more accurate, or as accurate and cheaper. It is known in
            hindsight, by the labels of these very images.
    """

    kind: str
    members: tuple[int, ...]
    threshold: float
    accuracy: intervals.Interval
    gflops: float
    on_front: bool = False


def curve(logits_NMC: Tensor | Lazy, labels_N: Tensor, gflops_M: Sequence[float]) -> list[Point]:
    """Return the points to draw, from the cheapest up; all are fused by `log_avg`, so labels only count answers.

    Their number stays small: M single backbones, the full fusion, the cheapest 2, 3, … backbones together, a cascade
    over all of them for each of `LEVELS`, and of the other subsets those on the front (all of them for few backbones).
    With more than `search.MOST` backbones no other subset is looked at.
    """
    backbones = len(gflops_M)
    order = search.by_cost(range(backbones), gflops_M)
    sets = [(m,) for m in range(backbones)]
    sets += [tuple(sorted(order[:size])) for size in range(2, backbones + 1)]
    sets += [members for members in _worth(logits_NMC, labels_N, gflops_M) if members not in sets]
    right_NV = search.right_of(logits_NMC, labels_N, sets)
    points = []
    for v, members in enumerate(sets):
        kind = "full" if len(members) == backbones else "subset"
        kind = "single" if len(members) == 1 else kind
        gflops = sum(gflops_M[m] for m in members)
        points.append(Point(kind, members, float("nan"), _accuracy(right_NV[:, v]), gflops))
    if backbones > 1:
        points += _cascades(logits_NMC, labels_N, order, gflops_M)
    return front(points)


def front(points: Sequence[Point]) -> list[Point]:
    """Sort the points from the cheapest up, and mark those on the Pareto front.

    >>> cheap = Point("single", (0,), 0.0, intervals.wilson(5, 10), 1.0)
    >>> dear = Point("single", (1,), 0.0, intervals.wilson(4, 10), 2.0)
    >>> [p.on_front for p in front([dear, cheap])]
    [True, False]
    """
    marked, best = [], -1.0
    for point in sorted(points, key=lambda p: (p.gflops, -p.accuracy.value)):
        better = point.accuracy.value > best
        best = max(best, point.accuracy.value)
        marked.append(point._replace(on_front=better))
    return marked


def stage_log_probs(logits_NMC: Tensor, order: Sequence[int]) -> list[Tensor]:
    """Fuse the first 1, 2, … backbones of an order by `log_avg`; S = M tensors N×C."""
    log_p_NMC = torch.log_softmax(logits_NMC, dim=-1)
    members = [sorted(order[: stage + 1]) for stage in range(len(order))]
    return [torch.log_softmax(log_p_NMC[:, some].mean(1), dim=-1) for some in members]


def _cascades(
    logits_NMC: Tensor | Lazy,
    labels_N: Tensor,
    order: tuple[int, ...],
    gflops_M: Sequence[float],
) -> list[Point]:
    spent_S = torch.tensor([gflops_M[m] for m in order], dtype=torch.float64).cumsum(0)
    right_NL = torch.zeros(len(labels_N), len(LEVELS), dtype=torch.bool)
    spent_NL = torch.zeros(len(labels_N), len(LEVELS), dtype=torch.float64)
    for rows, logits_BMC in computed(logits_NMC):
        stages = stage_log_probs(logits_BMC, order)
        for at, level in enumerate(LEVELS):
            levels = [level] * (len(stages) - 1)
            right_NL[rows, at] = thresholds.leave(stages, levels).argmax(1) == labels_N[rows]
            spent_NL[rows, at] = spent_S[thresholds.stages(stages, levels)]
    accuracies = [_accuracy(right_N) for right_N in right_NL.unbind(1)]
    return [
        Point("cascade", order, level, accuracy, float(gflops))
        for level, accuracy, gflops in zip(LEVELS, accuracies, spent_NL.mean(0), strict=True)
    ]


def _worth(logits_NMC: Tensor | Lazy, labels_N: Tensor, gflops_M: Sequence[float]) -> list[tuple]:
    """Choose the subsets that are worth a point."""
    if len(gflops_M) > search.MOST:
        return []
    every = search.subsets(len(gflops_M))
    if len(gflops_M) <= EVERY:
        return every
    # Images come in the order of their hashed ids, so the first of them are a random sample.
    right_NV = search.right_of(logits_NMC[:SAMPLE], labels_N[:SAMPLE], every)
    points = [
        Point("subset", members, 0.0, _accuracy(right_NV[:, v]), sum(gflops_M[m] for m in members))
        for v, members in enumerate(every)
    ]
    return [point.members for point in front(points) if point.on_front]


def _accuracy(right_N: Tensor) -> intervals.Interval:
    return intervals.wilson(float(right_N.sum()), len(right_N))
