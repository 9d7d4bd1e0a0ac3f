"""Multinomial logistic regression with an L2 penalty: many problems on the same features in one tensor program."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.solvers.softmax import log_softmax, softmax

_ROUGH = 1e-2  # the tolerance that is enough to rank penalties
_BLOCK = 2**24  # logits of all problems that are looked at together
_FEW = 32  # columns below which a product is faster with them as rows
_LARGE = 500_000  # features of the problems that are solved at once: more leave a core's cache

Axes = dict[float, tuple[Tensor, ...]]
"""What `rotate` gives of one problem, by the scale of its features; kept for other fits on the same features."""


def rotate(x_SKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate features to the axes of their own span: R = min(K, D) orthogonal columns instead of D.

    An L2 penalty does not see a rotation and leaves weights outside the span at 0, so nothing is lost.

    Returns:
        x_SKR, basis_SDR with x_SKR = x_SKD @ basis_SDR, and the columns' squared lengths_SR; in float64.
    """
    x = x_SKD.double()
    images, dim = x.shape[1:]
    if dim <= images:
        lengths, basis = torch.linalg.eigh(x.transpose(1, 2) @ x)
        return x @ basis, basis, lengths.clamp_min(0)
    lengths, left = torch.linalg.eigh(x @ x.transpose(1, 2))
    root = lengths.clamp_min(0).sqrt()
    tiny = root <= 1e-9 * root[:, -1:].clamp_min(1e-30)  # in ascending order
    basis = (x.transpose(1, 2) @ left) / root.masked_fill(tiny, torch.inf)[:, None]
    return left * root.masked_fill(tiny, 0.0)[:, None], basis, root.masked_fill(tiny, 0.0).square()


def _rotated(x_SKD: Tensor, kept: Sequence[Axes] | None, scale: float) -> tuple[Tensor, ...]:
    """`rotate`, where `kept` does not hold it of every problem already."""
    if kept is None:
        return rotate(x_SKD)
    if all(scale in own for own in kept):
        every = zip(*(own[scale] for own in kept), strict=True)
        return tuple(torch.stack(parts) for parts in every)
    rotated = rotate(x_SKD)
    for own, *parts in zip(kept, *rotated, strict=True):
        own[scale] = tuple(parts)
    return rotated


def solve(
    x_SKR: Tensor,
    lengths_SR: Tensor,
    labels_SK: Tensor,
    weights_SKQ: Tensor,
    penalty_SRQC: Tensor,
    offset_SKC: Tensor | None,
    classes: int,
    tolerance: float = 1e-4,
    steps: int = 500,
    start_SRQC: Tensor | None = None,
) -> Tensor:
    """Minimise, for each of S feature matrices and each of Q variants of its problem,

        Σ_k weights_k · (−log softmax(offset_k + x_k V)[y_k])  +  ½ Σ penalty · V².

    Nonlinear conjugate gradients (Polak & Ribière 1969, started anew where they would turn back), scaled by a diagonal
    curvature: in `rotate`'s axes XᵀX is diagonal, and the share of it that counts is the mean variance of a class's
    indicator at the start. The logits of a step are linear in its length, so the search along it costs no product
    with x, and an iteration costs two. Tried before: steps under Böhning's bound with Nesterov's acceleration, three
    to five times as many iterations for a tenth of the precision.

    Args:
        x_SKR, lengths_SR: from `rotate`.
        labels_SK: int64 classes.
        weights_SKQ: weight of each image in each variant, between 0 and 1 (folds: 0 or 1).
        penalty_SRQC: any shape that broadcasts to S×R×Q×C; positive.
        offset_SKC: logits to start from, or None for zeros.
        classes: C.
        tolerance: largest component of the scaled gradient at which a problem counts as solved; the logits are then off
            by some ten times as much.
        steps: cap on the steps.
        start_SRQC: where to start, or None for zeros.

    Returns:
        V_SRQC, in the dtype of `x_SKR`.
    """
    sets, images, rank = x_SKR.shape
    variants = weights_SKQ.shape[2]
    v = x_SKR.new_zeros(sets, rank, variants, classes) if start_SRQC is None else start_SRQC
    if not rank:
        return v
    penalty, weight = penalty_SRQC.to(v), weights_SKQ[..., None].to(v)
    own = labels_SK[:, :, None, None].expand(-1, -1, variants, 1)
    z = _times(x_SKR, v.flatten(2)).view(sets, images, variants, classes)
    z = z if offset_SKC is None else z + offset_SKC[:, :, None].to(v)
    p = softmax(z)
    spread = [_sum(weight[:, rows] * p[:, rows] * (1 - p[:, rows])) for rows in _blocks(z)]
    share = sum(spread[1:], spread[0]) / (_sum(weight) * max(1, classes - 1)).clamp_min(1e-9)
    curvature = share.clamp_min(0.1 / classes) * lengths_SR[:, :, None, None].to(v) + penalty

    less = -torch.ones_like(own, dtype=p.dtype)

    def slopes() -> tuple[Tensor, Tensor]:
        error = p.scatter_add(3, own, less).mul_(weight).flatten(2)
        gradient = _times(x_SKR.transpose(1, 2), error).view_as(v) + penalty * v
        return gradient, gradient / curvature

    gradient, scaled = slopes()
    along, done = -scaled, torch.zeros(sets, 1, variants, 1, dtype=torch.bool)
    slope = _sum(gradient * along)
    for _ in range(steps):
        done |= (
            scaled.abs().amax((1, 3), keepdim=True) < tolerance
        )  # stays as it is, so company changes no result
        if done.all():
            break
        d = _times(x_SKR, along.flatten(2)).view_as(z)
        slope = slope.masked_fill(done, 0.0)
        length, p = _search(z, d, p, weight, slope, _sum(penalty * along.square()))
        for rows in _blocks(z):
            z[:, rows] += length * d[:, rows]
        v, old, old_scaled = v + length * along, gradient, scaled
        gradient, scaled = slopes()
        kept = _sum(scaled * (gradient - old)) / _sum(old * old_scaled).clamp_min(1e-30)
        along = kept.clamp_min(0.0) * along - scaled
        slope = _sum(gradient * along)
        if not (slope < 0).all():
            along = torch.where(slope < 0, along, -scaled)
            slope = _sum(gradient * along)
    return v


def _times(a_SXY: Tensor, b_SYZ: Tensor) -> Tensor:
    """Multiply S pairs of matrices; libraries are up to three times as slow where the second has few columns."""
    if b_SYZ.shape[2] >= _FEW:
        return a_SXY @ b_SYZ
    return (b_SYZ.transpose(1, 2) @ a_SXY.transpose(1, 2)).transpose(1, 2).contiguous()


def _sum(x_SXQC: Tensor) -> Tensor:
    """One sum per problem, S×1×Q×1."""
    return x_SXQC.sum((1, 3), keepdim=True)


def _blocks(z_SKQC: Tensor) -> list[slice]:
    """Images of one block after another, of matrices that may be large."""
    images = z_SKQC.shape[1]
    step = max(1, _BLOCK // max(1, z_SKQC[:, :1].numel()))
    return [slice(at, min(at + step, images)) for at in range(0, max(1, images), step)]


def _pulled(p: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """E[d] and E[d²] of each image under p, S×K×Q×1."""
    parts = []
    for rows in _blocks(p):
        pd = p[:, rows] * d[:, rows]
        parts.append((pd.sum(3, keepdim=True), pd.mul_(d[:, rows]).sum(3, keepdim=True)))
    mean, square = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return mean, square


def _search(
    z: Tensor,
    d: Tensor,
    p: Tensor,
    weight: Tensor,
    slope: Tensor,
    square: Tensor,
    rounds: int = 8,
    share: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """How far to go along d, until the derivative is a `share` of `slope` at most, and softmax(z + length · d) there.

    Newton's method in one variable inside a bracket; convex, so the derivative only grows.

    Args:
        z, d, p: logits, their change, softmax(z), S×K×Q×C; p is written over. weight: of images, S×K×Q×1.
        slope, square: of the objective along d at length 0; second derivative of the penalty; S×1×Q×1.
    """
    low, high, length = (
        torch.zeros_like(slope),
        torch.full_like(slope, torch.inf),
        torch.zeros_like(slope),
    )
    mean, square_mean = _pulled(p, d)
    rest, first, found = slope - _sum(weight * mean), slope, slope >= 0
    for _ in range(rounds):
        if found.all():
            break
        second = _sum(weight * (square_mean - mean.square())) + square
        newton = length - first / second.clamp_min(1e-30)
        middle = torch.where(high.isinf(), 2 * length + 1, (low + high) / 2)
        length = torch.where(
            found, length, torch.where((newton > low) & (newton < high), newton, middle)
        )
        for rows in _blocks(z):
            p[:, rows] = softmax(z[:, rows] + length * d[:, rows])
        mean, square_mean = _pulled(p, d)
        first = _sum(weight * mean) + rest + length * square
        low, high = torch.where(first < 0, length, low), torch.where(first > 0, length, high)
        found |= first.abs() <= share * slope.abs()
    return length, p


def folds(labels_K: Tensor, most: int) -> Tensor:
    """Give each image a fold number, classes spread evenly: its place within its class modulo the number of folds.

    The number of folds is the largest class's size, at most `most`; with one image per class there is a single fold.

    >>> folds(torch.tensor([0, 0, 0, 1]), most=2)
    tensor([0, 1, 0, 1])
    """
    count_C = labels_K.bincount()
    order_K = labels_K.argsort(stable=True)
    first_C = count_C.cumsum(0) - count_C
    place_K = torch.empty_like(labels_K)
    place_K[order_K] = torch.arange(len(labels_K)) - first_C[labels_K[order_K]]
    most = max(1, min(most, int(count_C.max()) if len(labels_K) else 1))
    return (place_K + labels_K) % most  # + label: classes of one image do not all share fold 0


def fit_path(
    x_SKD: Tensor,
    labels_SK: Tensor,
    folds_SK: Tensor,
    penalties_G: Tensor,
    fallback: float,
    classes: int,
    offset_SKC: Tensor | None = None,
    shape_C: Tensor | None = None,
    tolerance: float = 1e-6,
    kept: Sequence[Axes] | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Fit weights under the penalty that has the least held-out NLL, chosen for each of the S problems.

    Args:
        x_SKD: features.
        folds_SK: fold numbers; where there is one fold only, the penalty is `fallback`.
        penalties_G: the penalties to choose from.
        shape_C: factor of the penalty for each class; None for ones.
        tolerance: of the final solve; from 1e-5 up it is made in float32, below in float64.
        kept: of each problem, the axes of its features where they are known, or where to keep them; by their `scale`.

    Returns:
        W_SDC in float64 and the chosen penalty_S.
    """
    if len(x_SKD) > 1 and x_SKD.numel() > _LARGE:
        some = max(1, _LARGE * len(x_SKD) // x_SKD.numel())
        parts = [whole.split(some) for whole in (x_SKD, labels_SK, folds_SK)]
        each = []
        for number, (x, y, f) in enumerate(zip(*parts, strict=True)):
            own = slice(number * some, (number + 1) * some)
            z = None if offset_SKC is None else offset_SKC[own]
            axes = None if kept is None else kept[own]
            more = penalties_G, fallback, classes, z, shape_C, tolerance, axes, scale
            each.append(fit_path(x, y, f, *more))
        w_SDC, penalty_S = (torch.cat(parts) for parts in zip(*each, strict=True))
        return w_SDC, penalty_S
    x_SKR, basis_SDR, lengths_SR = _rotated(x_SKD, kept, scale)
    count = int(folds_SK.max()) + 1 if folds_SK.numel() else 1
    x, held_SKF = x_SKR.float(), torch.nn.functional.one_hot(folds_SK, count).float()
    shape = torch.ones(classes) if shape_C is None else shape_C.float()
    chosen_S = torch.full((len(x),), fallback, dtype=torch.float64)
    if count > 1:
        loss_SG, v = x.new_empty(len(x), len(penalties_G)), None
        for g in penalties_G.argsort(
            descending=True
        ).tolist():  # each starts where the heavier one before it ended
            penalty = (penalties_G[g] * shape)[None, None, None]
            v = solve(
                x, lengths_SR, labels_SK, 1 - held_SKF, penalty, offset_SKC, classes, _ROUGH, 100, v
            )
            z = (x @ v.flatten(2)).view(*held_SKF.shape, classes)
            z = z if offset_SKC is None else z + offset_SKC[:, :, None].to(z)
            own = labels_SK[:, :, None, None].expand(-1, -1, count, 1)
            loss_SKF = -log_softmax(z).gather(3, own)[..., 0]
            loss_SG[:, g] = (loss_SKF * held_SKF).sum((1, 2))
        chosen_S = penalties_G[loss_SG.argmin(1)].double()
    penalty = chosen_S[:, None, None, None] * shape.double()
    ones = torch.ones(*labels_SK.shape, 1)
    final = x if tolerance >= 1e-5 else x_SKR
    v = solve(final, lengths_SR, labels_SK, ones, penalty, offset_SKC, classes, tolerance)[:, :, 0]
    return basis_SDR @ v.double(), chosen_S
