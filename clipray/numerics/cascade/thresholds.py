"""Who leaves a cascade when, and thresholds that keep a promise.

A cascade has S stages. Stage s fuses the backbones that have run so far, and an image leaves at the first stage whose
probability of its answer reaches that stage's threshold. Nobody is held back at the last stage, which is the full
fusion. All that is needed of a stage is its fused log-probabilities.

What is promised. Let an image be harmed when the full fusion has it right and the cascade has it wrong. The harm, the
share of images that are harmed, is never less than the drop in accuracy, for images that only the cascade has right
are not set against it. One threshold λ is taken for all stages, from a ladder that is fixed beforehand (`LADDER`). From
the strictest λ down, the hypothesis "the harm exceeds the target" is tested on the support images by the exact
binomial tail, which is the upper limit of Clopper and Pearson (1934), and the first λ that it cannot be rejected for
ends the walk. This is Learn then Test with fixed-sequence testing (Angelopoulos, Bates, Candès, Jordan and Lei 2021,
arXiv 2110.01052): the probability that any λ which was passed harms more than the target is at most 1 − confidence,
so that among them the cheapest may be taken.

What it rests on. New images must come from where the support images come from, and a stage's log-probabilities of a
support image must be such as a new image would get, which is why cross-fitted ones are asked for. The rule that is
tested is therefore that of the fusers fitted on parts of the support set; those fitted on all of it are as good or
better, but of them nothing is proved. Support sets hold equally many images of each class, so the promise is of
images in which classes are equally frequent.

A promise needs images: without a single harmed one among K, the harm is said to be below 1 − (1 − confidence)^(1/K).
Where K is too small, that nothing can be promised is the answer, and all thresholds are infinite: the full fusion.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from scipy.special import betaincinv  # scipy.stats takes 2 s of a core in every worker
from torch import Tensor

NEVER = math.inf  # a threshold that no probability reaches
# Odds of the answer from e^12 to e^-5, and nobody; from the strictest down. Fixed, for a ladder made of the support
# images' own confidences would be chosen with what it is then tested on.
LADDER = (NEVER, *(1 / (1 + math.exp(step / 4 - 12)) for step in range(69)), 0.0)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a cascade is asked for: one of the two, and how sure it must be.

    Attributes:
        max_accuracy_drop: of top-1 against the full fusion, a fraction; the cheapest cascade that keeps it.
        max_gflops: per image on average; the strictest cascade that keeps it.
        confidence: probability, over support sets, that the promise holds.
    """

    max_accuracy_drop: float | None = None
    max_gflops: float | None = None
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if (self.max_accuracy_drop is None) == (self.max_gflops is None):
            raise ValueError("give either max_accuracy_drop or max_gflops")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop < 1:
            raise ValueError("max_accuracy_drop must be a fraction from 0 to below 1")
        if self.max_gflops is not None and not self.max_gflops > 0:
            raise ValueError("max_gflops must be positive")
        if not 0 < self.confidence < 1:
            raise ValueError("confidence must lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Promise:
    """Thresholds, and what can be said of them.

    Attributes:
        thresholds: one for each stage but the last.
        kept: whether the target can be promised; if not, nobody leaves early (a target of accuracy) or everybody leaves
            at the first stage (a target of cost).
        why: what is promised, or why nothing is, in a sentence.
        bound: upper limit, at the confidence, of the harm or of the mean GFLOPs of these thresholds.
        harm: share of the support images that are harmed.
        drop: of accuracy against the full fusion on the support images; may be negative.
        gflops: mean per support image.
        images: of the support set.
    """

    thresholds: tuple[float, ...]
    kept: bool
    why: str
    bound: float
    harm: float
    drop: float
    gflops: float
    images: int


def confidence(log_probs_NC: Tensor) -> Tensor:
    """Return the probability of each image's answer, N, float64.

    >>> confidence(torch.tensor([[0.75, 0.25]]).log())
    tensor([0.7500], dtype=torch.float64)
    """
    return log_probs_NC.double().amax(1).exp()


def route(log_probs_NC: Tensor, threshold: float) -> Tensor:
    """Tell which images leave at a stage, bool N; with an infinite threshold none does.

    >>> route(torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), 0.7)
    tensor([ True, False])
    """
    return confidence(log_probs_NC) >= threshold


def stages(log_probs_SNC: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Find the stage at which each image leaves, int64 N.

    >>> early, full = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log(), torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
    >>> stages([early, full], [0.7])
    tensor([0, 1])
    """
    last = len(log_probs_SNC) - 1
    if len(thresholds) != last:
        raise ValueError(f"{last + 1} stages need {last} thresholds, not {len(thresholds)}")
    stage_N = torch.full((len(log_probs_SNC[0]),), last)
    for stage in reversed(range(last)):
        stage_N[route(log_probs_SNC[stage], thresholds[stage])] = stage
    return stage_N


def leave(log_probs_SNC: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """Take each image's log-probabilities N×C at the stage at which it leaves; the last one where it never does."""
    stage_N = stages(log_probs_SNC, thresholds)
    left_NC = log_probs_SNC[-1].clone()
    for stage, log_probs_NC in enumerate(log_probs_SNC[:-1]):
        left_NC[stage_N == stage] = log_probs_NC[stage_N == stage].to(left_NC)
    return left_NC


def upper_limit(events: int, images: int, confidence: float) -> float:
    """Compute the exact upper limit of a share (Clopper and Pearson 1934).

    >>> round(upper_limit(0, 100, 0.9), 4)      # 1 − 0.1^(1/100)
    0.0228
    """
    if events >= images:
        return 1.0
    return float(betaincinv(events + 1, images - events, confidence))


def images_needed(max_accuracy_drop: float, confidence: float) -> float:
    """Count the support images that a promise takes if none of them is harmed; infinite for a drop of 0.

    >>> images_needed(0.01, 0.9)
    230
    """
    if max_accuracy_drop == 0:
        return math.inf
    return math.ceil(math.log(1 - confidence) / math.log(1 - max_accuracy_drop))


def promise(
    log_probs_SKC: Sequence[Tensor], labels_K: Tensor, gflops_S: Sequence[float], target: Target
) -> Promise:
    """Find the thresholds that meet a target, by the support images alone; see the module's text for what holds.

    Args:
        log_probs_SKC: each stage's fused log-probabilities of the support images, which it has not seen.
        labels_K: their classes.
        gflops_S: cost of an image that leaves at each stage, rising.
        target: what is asked for.
    """
    said_SK = torch.stack([z.argmax(1) for z in log_probs_SKC])
    right_SK = said_SK == labels_K
    sure_SK = torch.stack([confidence(z) for z in log_probs_SKC])
    if target.max_gflops is not None:
        return _by_cost(right_SK, sure_SK, gflops_S, target)
    return _by_accuracy(right_SK, sure_SK, gflops_S, target)


def _by_accuracy(
    right_SK: Tensor, sure_SK: Tensor, gflops_S: Sequence[float], target: Target
) -> Promise:
    images = right_SK.shape[1]
    if len(gflops_S) == 1:
        found = _outcome(right_SK, sure_SK, gflops_S, NEVER)
        why = "there is one stage, which is the full fusion"
        return Promise((), True, why, 0.0, **found, images=images)
    passed = []
    for level in LADDER[1:]:
        found = _outcome(right_SK, sure_SK, gflops_S, level)
        harmed = round(found["harm"] * images)
        bound = upper_limit(harmed, images, target.confidence)
        if bound > target.max_accuracy_drop:
            break
        passed.append((found["gflops"], level, bound))
    if not passed:
        needed = images_needed(target.max_accuracy_drop, target.confidence)
        why = (
            f"a drop of at most {target.max_accuracy_drop:.2%} cannot be promised with {images} support images: "
            f"it takes {needed:.0f}, none of them harmed"
        )
        found = _outcome(right_SK, sure_SK, gflops_S, NEVER)
        return Promise(_all(NEVER, gflops_S), False, why, 0.0, **found, images=images)
    _, level, bound = min(passed, key=lambda one: (one[0], -one[1]))
    why = (
        f"with {target.confidence:.0%} confidence at most {target.max_accuracy_drop:.2%} of images are right in the "
        "full fusion and wrong in the cascade"
    )
    found = _outcome(right_SK, sure_SK, gflops_S, level)
    return Promise(_all(level, gflops_S), True, why, bound, **found, images=images)


def _by_cost(
    right_SK: Tensor, sure_SK: Tensor, gflops_S: Sequence[float], target: Target
) -> Promise:
    """Find the strictest rung below the budget, from the loosest up: each rung costs no less than the one before.

    The mean cost is that of the first stage, and what each further one adds times the share of images that reach it;
    each share has its own upper limit, so that all of them hold together at the confidence asked for (Bonferroni).
    """
    images, last = right_SK.shape[1], len(gflops_S) - 1
    each = 1 - (1 - target.confidence) / max(1, last)
    chosen, bound = None, float(gflops_S[0])
    for level in reversed(LADDER):
        stage_K = _stage(sure_SK, level)
        limit = float(gflops_S[0])
        for stage in range(1, last + 1):
            reached = int((stage_K >= stage).sum())
            share = upper_limit(reached, images, each) if level > 0 else 0.0
            limit += (gflops_S[stage] - gflops_S[stage - 1]) * share
        if min(limit, gflops_S[-1]) > target.max_gflops:
            break
        chosen, bound = level, min(limit, float(gflops_S[-1]))
    level = 0.0 if chosen is None else chosen
    found = _outcome(right_SK, sure_SK, gflops_S, level)
    kept = chosen is not None
    why = (
        f"with {target.confidence:.0%} confidence an image costs at most {target.max_gflops:g} GFLOPs on average"
        if kept
        else f"the first stage alone costs {gflops_S[0]:g} GFLOPs, more than {target.max_gflops:g}"
    )
    return Promise(_all(level, gflops_S), kept, why, bound, **found, images=images)


def _stage(sure_SK: Tensor, level: float) -> Tensor:
    """The stage at which each image leaves where all thresholds are `level`."""
    leaves_SK = sure_SK >= level
    leaves_SK[-1] = True
    return leaves_SK.int().argmax(0)


def _outcome(
    right_SK: Tensor, sure_SK: Tensor, gflops_S: Sequence[float], level: float
) -> dict[str, float]:
    stage_K = _stage(sure_SK, level)
    right_K = right_SK.gather(0, stage_K[None])[0]
    full_K = right_SK[-1]
    cost_K = torch.tensor(gflops_S, dtype=torch.float64)[stage_K]
    images = max(1, len(stage_K))
    return {
        "harm": float((full_K & ~right_K).sum() / images),
        "drop": float((full_K.double() - right_K.double()).sum() / images),
        "gflops": float(cost_K.sum() / images),
    }


def _all(level: float, gflops_S: Sequence[float]) -> tuple[float, ...]:
    return (level,) * (len(gflops_S) - 1)
