"""Which backbones to keep, where a config can afford only some: those that fuse best on the support set."""

from dataclasses import replace
from typing import Any

from clipray.errors import ConfigError
from clipray.steps.predict.lesson import Lesson

EACH = ("backbones", "origins", "classifiers", "scales", "train", "specs", "cards")  # of a lesson


def chosen(told: Lesson, support: Any) -> dict[str, Any]:
    """Choose the backbones of a lesson that asks for fewer than it has.

    `log_avg` stands in for the fuser, as in `numerics.cascade.search`.

    Args:
        support: the support set under the first method's head (`numerics.contracts.Support`).

    Returns:
        `backbones` (their names), `support_top1` and `support_oracle` with their intervals over the support images,
        `best_in`, the share of resamples of these images that choose the same, and `gflops` an image.

    Raises:
        ConfigError: fewer are there, too many to compare all subsets, or the cost of one is not known.
    """
    from clipray.numerics.cascade.search import MOST, which_backbones

    gflops_M, size = [card.get("image_gflops") for card in told.cards], told.which_backbones
    if size > len(gflops_M):
        raise ConfigError(f"which_backbones: {size} are asked for, and there are {len(gflops_M)}")
    if len(gflops_M) > MOST:
        raise ConfigError(
            f"which_backbones: {len(gflops_M)} backbones have too many subsets; name at most {MOST}"
        )
    if None in gflops_M:
        raise ConfigError("which_backbones: the cost of a backbone is not known")
    best, *_ = which_backbones(support.logits_KMC, support.labels_K, gflops_M, size)
    return {
        "backbones": [told.backbones[m] for m in best.members],
        "support_top1": list(best.accuracy),
        "support_oracle": list(best.oracle),
        "best_in": best.best_in,
        "gflops": best.gflops,
    }


def keeping(told: Lesson, names: list[str]) -> Lesson:
    """Return the lesson with some of its backbones; a campaign's figures are of all, so they are left out."""
    rows = [told.backbones.index(name) for name in names]
    own = {
        key: tuple(getattr(told, key)[row] for row in rows) for key in EACH if getattr(told, key)
    }
    return replace(told, **own, which_backbones=0, evaluation="")
