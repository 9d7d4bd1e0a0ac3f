"""Accuracy against cost, as rows of measures: subsets of the backbones and cascades, fused without labels.

They are no methods that compete for ranks, for which subsets are kept depends on the dataset where backbones are many.
A subset is `subset/<backbone>/<backbone>…`, a cascade `cascade/<threshold>/<backbone>/…` in the order in which it runs,
and `choice/<backbone>/…` the subset of its size that a support set, and no test label, would choose.
"""

from collections.abc import Sequence

from clipray.numerics.cascade import curve, search
from clipray.numerics.contracts import Support
from clipray.numerics.draws import Draw
from clipray.numerics.fusers.unlabelled import Images
from clipray.numerics.heads.cross_fit import View
from clipray.steps.evaluate.rows import Place, Scores


def score_costs(
    scores: Scores, where: tuple[str, int, int], test: Sequence[View], batch: Images
) -> None:
    """Add `top1` and `gflops` of subsets and cascades at (head, shots, seed); of one support set at each shots.

    Nothing is added where there is one backbone, or one whose cost is not known.
    """
    head, shots, seed = where
    gflops_M = [view.cost.get("gflops") for view in test]
    if seed or len(gflops_M) < 2 or None in gflops_M:
        return
    with batch.here:
        points = curve.curve(batch.logits_NMC, scores.labels_N.to(batch.device), gflops_M)
    for point in points:
        if point.kind != "single":
            here = Place(head, _name(point, [view.name for view in test]), shots, seed)
            scores.interval(here, "measure", "top1", point.accuracy)
            scores.plain(here, "measure", {"gflops": point.gflops})


def score_choices(
    scores: Scores,
    head: str,
    test: Sequence[View],
    drawn: Sequence[Draw],
    supports: Sequence[Support],
) -> None:
    """Answer "which backbones?" for each size, from the first support set of each number of shots.

    Added are `support_top1` of the fused subset and `support_oracle`, both with intervals over the support images;
    `best_in`, the share of resamples of these images that choose the same; and `gflops`.
    """
    gflops_M = [view.cost.get("gflops") for view in test]
    if not 2 <= len(gflops_M) <= search.MOST or None in gflops_M:
        return
    for draw, support in zip(drawn, supports, strict=True):
        for size in range(1, len(gflops_M) if draw.seed == 0 else 1):
            found = search.which_backbones(support.logits_KMC, support.labels_K, gflops_M, size)
            for choice in found[:1]:
                names = [test[m].name for m in choice.members]
                here = Place(head, "/".join(["choice", *names]), draw.shots, draw.seed)
                scores.interval(here, "measure", "support_top1", choice.accuracy)
                scores.interval(here, "measure", "support_oracle", choice.oracle)
                values = {"best_in": choice.best_in, "gflops": choice.gflops}
                scores.plain(here, "measure", values)


def _name(point: curve.Point, backbones: Sequence[str]) -> str:
    first = f"cascade/{point.threshold:g}" if point.kind == "cascade" else "subset"
    return "/".join([first, *(backbones[m] for m in point.members)])
