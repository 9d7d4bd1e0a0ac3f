"""How backbones complement each other, all from one mergeable histogram.

R ∈ {0,1}^{N×M} says which backbone is right on which image. How often each of the 2^M row patterns occurs is all that
any measure here needs: one pass, memory that does not grow with N, shards merge by addition. Every measure takes
`Patterns` whose counts may have leading axes (bootstrap resamples), and gives those axes back. Undefined quotients are
nan.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipray.numerics.measures.intervals import resampled_counts

_DENSE = 20  # up to this many backbones patterns are numbered; beyond, packed bits are sorted


class Patterns(NamedTuple):
    """The patterns that occur and how often.

    Attributes:
        rights_UM: bool, one distinct row of R each, in a fixed order.
        counts_U: int64, images that show it; counts_BU for B resamples.
    """

    rights_UM: Tensor
    counts_U: Tensor


def patterns(right_NM: Tensor) -> Patterns:
    """Make the histogram of the rows of R (bool or 0/1).

    >>> patterns(torch.tensor([[1, 0], [1, 1], [1, 0]]))
    Patterns(rights_UM=tensor([[ True, False],
            [ True,  True]]), counts_U=tensor([2, 1]))
    """
    return _tally(right_NM.bool(), None)


def merge(parts: Sequence[Patterns]) -> Patterns:
    """Merge the histograms of parts: exactly what one pass over all images gives."""
    return _tally(torch.cat([p.rights_UM for p in parts]), torch.cat([p.counts_U for p in parts]))


def resample(p: Patterns, resamples: int, seed: int) -> Patterns:
    """Draw B bootstrap resamples of the images at once: counts_BU."""
    return Patterns(p.rights_UM, resampled_counts(p.counts_U, resamples, seed))


def _tally(rights_XM: Tensor, counts_X: Tensor | None) -> Patterns:
    rows, backbones = rights_XM.shape
    if backbones <= _DENSE:
        bits = torch.arange(backbones)
        code_X = (rights_XM.to(torch.int32) << bits.to(torch.int32)).sum(1)
        if counts_X is None:
            table = torch.bincount(code_X, minlength=2**backbones)
        else:
            table = torch.zeros(2**backbones, dtype=torch.int64).index_add_(0, code_X, counts_X)
        codes = table.nonzero()[:, 0]
        return Patterns((codes[:, None] >> bits & 1).bool(), table[codes])
    packed = np.packbits(rights_XM.numpy(), axis=1, bitorder="little")
    keys, place = np.unique(
        packed.view(np.dtype((np.void, packed.shape[1])))[:, 0], return_inverse=True
    )
    counts_X = torch.ones(rows, dtype=torch.int64) if counts_X is None else counts_X
    counts = torch.zeros(len(keys), dtype=torch.int64).index_add_(
        0, torch.from_numpy(place), counts_X
    )
    bytes_U = keys.view(np.uint8).reshape(len(keys), -1)
    rights = np.unpackbits(bytes_U, axis=1, count=backbones, bitorder="little").astype(bool)
    seen = counts > 0
    return Patterns(torch.from_numpy(rights)[seen], counts[seen])


def shares(p: Patterns) -> Tensor:
    """Turn counts into shares of the images, float64."""
    counts = p.counts_U.double()
    return counts / counts.sum(-1, keepdim=True)


def by_backbone(p: Patterns) -> dict[str, Tensor]:
    """Compute the measures of each backbone among the others, …×M each.

    `accuracy`; `exclusive`: share of images that it alone has right; `shapley`: its Shapley value in oracle coverage
    (an image that r backbones have right pays 1/r to each of them, which is exact for a coverage game; the values sum
    to the oracle).

    >>> by_backbone(patterns(torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]])))["shapley"]
    tensor([0.3750, 0.1250], dtype=torch.float64)
    """
    rights, share = p.rights_UM.double(), shares(p)
    right_U = rights.sum(1)
    return {
        "accuracy": share @ rights,
        "exclusive": share @ (rights * (right_U == 1)[:, None]),
        "shapley": share @ (rights / right_U.clamp_min(1)[:, None]),
    }


def of_set(p: Patterns) -> dict[str, Tensor]:
    """Compute the measures of the whole set of backbones.

    `oracle`: share of images that any backbone has right; `best`: max a_m; `mean`: mean a_m; `oracle_gain` = oracle −
    best; `complementarity` = oracle_gain / (1 − best), the share of the best backbone's errors that another gets right;
    `all_wrong`, `all_right`. From Kuncheva & Whitaker (2003), with l of L backbones right: `entropy`, `kohavi_wolpert`,
    `fleiss_kappa` (their interrater agreement κ is the same number), `generalised_diversity`,
    `coincident_failure_diversity`; and the means over pairs of `pairs`' disagreement, double fault, Q, φ and κ.

    >>> round(of_set(patterns(torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])))["complementarity"].item(), 3)
    0.5
    """
    rights, share = p.rights_UM.double(), shares(p)
    size = rights.shape[1]
    right_U = rights.sum(1)
    wrong_U = size - right_U
    best, mean = (share @ rights).amax(-1), (share @ rights).mean(-1)
    oracle = share @ (right_U > 0).double()
    all_right = share @ (wrong_U == 0).double()
    split = share @ (right_U * wrong_U)
    fail_one, fail_two = (
        share @ wrong_U / size,
        share @ (wrong_U * (wrong_U - 1)) / (size * (size - 1) or 1),
    )
    failing = share @ (wrong_U > 0).double()
    coincident = share @ (torch.where(wrong_U > 0, right_U, 0.0) / max(size - 1, 1)) / failing
    nan = torch.full_like(mean, torch.nan)
    several = size > 1
    measures = {
        "oracle": oracle,
        "best": best,
        "mean": mean,
        "oracle_gain": oracle - best,
        "complementarity": (oracle - best) / (1 - best),
        "all_wrong": 1 - oracle,
        "all_right": all_right,
        "entropy": share @ torch.minimum(right_U, wrong_U) / (size - (size + 1) // 2)
        if several
        else nan,
        "kohavi_wolpert": split / size**2,
        "fleiss_kappa": 1 - split / (size * (size - 1) * mean * (1 - mean)) if several else nan,
        "generalised_diversity": 1 - fail_two / fail_one if several else nan,
        "coincident_failure_diversity": torch.where(failing > 0, coincident, 0.0)
        if several
        else nan,
    }
    if several:
        i, j = torch.triu_indices(size, size, 1)
        measures |= {
            f"mean_{name}": v[..., i, j].mean(-1)
            for name, v in pairs(p).items()
            if name != "rescue"
        }
    return measures


def pairs(p: Patterns) -> dict[str, Tensor]:
    """Compute the measures of each pair of backbones, …×M×M each.

    `disagreement` (right by exactly one), `double_fault` (both wrong), `yule_q`, `phi` (correlation of correctness),
    `kappa` (Cohen's κ of correctness: error consistency, Geirhos et al. 2020), and the directed `rescue`[i, j] =
    P(i right | j wrong).

    >>> round(pairs(patterns(torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])))["rescue"][0, 1].item(), 4)   # 2 of 3
    0.6667
    """
    rights, share = p.rights_UM.double(), shares(p)
    size = rights.shape[1]
    both = (share @ (rights[:, :, None] * rights[:, None, :]).flatten(1)).unflatten(
        -1, (size, size)
    )
    a = (share @ rights)[..., :, None]
    b = a.transpose(-1, -2)
    only_a, only_b = a - both, b - both
    neither = (1 - a - b + both).clamp_min(0)
    only_a, only_b = only_a.clamp_min(0), only_b.clamp_min(0)
    product, cross = both * neither, only_a * only_b
    expected = a * b + (1 - a) * (1 - b)
    return {
        "disagreement": only_a + only_b,
        "double_fault": neither,
        "yule_q": (product - cross) / (product + cross),
        "phi": (product - cross) / (a * (1 - a) * b * (1 - b)).sqrt(),
        "kappa": (both + neither - expected) / (1 - expected),
        "rescue": only_a / (1 - b),
    }


def headroom_captured(fused: float, best: float, oracle: float) -> float:
    """Compute (fused − best) / (oracle − best): the share of the oracle's gain that is reached; nan without headroom.

    >>> headroom_captured(0.625, 0.5, 1.0)
    0.25
    """
    return (fused - best) / (oracle - best) if oracle > best else float("nan")


def oracle_of_subsets(p: Patterns) -> Tensor:
    """Compute the oracle's accuracy for every subset of the backbones, …×2^M; bit m of the place says whether m is in.

    1 − P(every backbone of the subset is wrong), the latter by a sum over subsets in M·2^M steps. M ≤ 20.

    >>> oracle_of_subsets(patterns(torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0]])))
    tensor([0.0000, 0.5000, 0.2500, 0.7500], dtype=torch.float64)
    """
    size = p.rights_UM.shape[1]
    if size > _DENSE:
        raise ValueError(f"{size} backbones have too many subsets; choose at most {_DENSE}")
    codes = (p.rights_UM.long() << torch.arange(size)).sum(1)
    counts = p.counts_U.double()
    table = torch.zeros(*counts.shape[:-1], 2**size, dtype=torch.float64)
    table[..., codes] = counts
    for m in range(
        size
    ):  # afterwards table[S] counts the images whose right backbones all lie in S
        view = table.unflatten(-1, (2 ** (size - 1 - m), 2, 2**m))
        view[..., 1, :] += view[..., 0, :]
    return 1 - table.flip(-1) / counts.sum(
        -1, keepdim=True
    )  # the complement of S is the place counted from the end


def coverage_order(p: Patterns) -> list[tuple[int, float]]:
    """Order backbones greedily by the images they add, with the oracle's accuracy so far; the lower number wins ties.

    >>> coverage_order(patterns(torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])))
    [(0, 0.5), (1, 0.75), (2, 0.75)]
    """
    share, left = shares(p), list(range(p.rights_UM.shape[1]))
    covered_U = torch.zeros(len(p.rights_UM), dtype=torch.bool)
    order = []
    while left:
        gains = [float(share[p.rights_UM[:, m] & ~covered_U].sum()) for m in left]
        m = left.pop(int(np.argmax(gains)))
        covered_U = covered_U | p.rights_UM[:, m]
        order.append((m, float(share[covered_U].sum())))
    return order
