"""Multinomial logistic regression with an L2 penalty: many problems on the same features in one tensor program."""

import torch
from torch import Tensor


def rotate(x_SKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features in the axes of their own span: R = min(K, D) orthogonal columns instead of D.

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


def solve(
    x_SKR: Tensor,
    lengths_SR: Tensor,
    labels_SK: Tensor,
    weights_SKQ: Tensor,
    penalty_SRQC: Tensor,
    offset_SKC: Tensor | None,
    classes: int,
    tolerance: float = 1e-5,
    steps: int = 500,
) -> Tensor:
    """Minimise, for each of S feature matrices and each of Q variants of its problem,

        Σ_k weights_k · (−log softmax(offset_k + x_k V)[y_k])  +  ½ Σ penalty · V².

    Gradient steps scaled by Böhning's bound of the curvature (1992: never above ½ XᵀX + penalty, which is diagonal in
    `rotate`'s axes), with Nesterov's acceleration, restarted whenever it points uphill (O'Donoghue & Candès 2015).

    Args:
        x_SKR, lengths_SR: from `rotate`.
        labels_SK: int64 classes.
        weights_SKQ: weight of each image in each variant, between 0 and 1 (folds: 0 or 1).
        penalty_SRQC: any shape that broadcasts to S×R×Q×C; positive.
        offset_SKC: logits to start from, or None for zeros.
        classes: C.
        tolerance: largest scaled step at which a problem counts as solved.
        steps: cap on the steps.

    Returns:
        V_SRQC, in the dtype of `x_SKR`.
    """
    sets, images, rank = x_SKR.shape
    variants = weights_SKQ.shape[2]
    v = x_SKR.new_zeros(sets, rank, variants, classes)
    if not rank:
        return v
    y, old, momentum = v, v, torch.ones(sets, 1, variants, 1, dtype=v.dtype)
    curvature = (0.5 * lengths_SR[:, :, None, None] + penalty_SRQC).to(v)
    penalty = penalty_SRQC.to(v)
    target = torch.nn.functional.one_hot(labels_SK, classes)[:, :, None].to(v)
    weight = weights_SKQ[..., None].to(v)
    offset = None if offset_SKC is None else offset_SKC[:, :, None].to(v)
    done = torch.zeros(sets, 1, variants, 1, dtype=torch.bool)  # stays as it is, so company changes no result
    for _ in range(steps):
        z = (x_SKR @ y.flatten(2)).view(sets, images, variants, classes)
        p = torch.softmax(z if offset is None else z + offset, dim=3)
        error = ((p - target) * weight).flatten(2)
        gradient = (x_SKR.transpose(1, 2) @ error).view_as(v) + penalty * y
        step = gradient / curvature
        old, v = v, torch.where(done, v, y - step)
        uphill = (gradient * (v - old)).sum((1, 3), keepdim=True) > 0
        after = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        push = torch.where(uphill, 0.0, (momentum - 1) / after)
        momentum = torch.where(uphill, 1.0, after)
        y = v + push * (v - old)
        done |= step.abs().amax((1, 3), keepdim=True) < tolerance
        if done.all():
            break
    return v


def folds(labels_K: Tensor, most: int) -> Tensor:
    """A fold number per image, classes spread evenly: the image's place within its class modulo the number of folds.

    The number of folds is the largest class's size, at most `most`; with one image per class there is a single fold.

    >>> folds(torch.tensor([0, 0, 0, 1]), most=2)
    tensor([0, 1, 0, 1])
    """
    place, seen = [], {}
    for rank, label in enumerate(labels_K.tolist()):
        seen.setdefault(label, []).append(rank)
        place.append(len(seen[label]) - 1 + label)  # + label: classes of one image do not all share fold 0
    count = max(1, min(most, max((len(ranks) for ranks in seen.values()), default=1)))
    return torch.tensor(place, dtype=torch.int64) % count


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
) -> tuple[Tensor, Tensor]:
    """Weights under the penalty that has the least held-out NLL, chosen for each of the S problems.

    Args:
        x_SKD: features.
        folds_SK: fold numbers; where there is one fold only, the penalty is `fallback`.
        penalties_G: the penalties to choose from.
        shape_C: factor of the penalty for each class; None for ones.
        tolerance: of the final solve; from 1e-5 up it is made in float32, below in float64.

    Returns:
        W_SDC in float64 and the chosen penalty_S.
    """
    x_SKR, basis_SDR, lengths_SR = rotate(x_SKD)
    count, grid = int(folds_SK.max()) + 1 if folds_SK.numel() else 1, len(penalties_G)
    x, held = x_SKR.float(), torch.nn.functional.one_hot(folds_SK, count).float()  # S×K×F
    shape = torch.ones(classes) if shape_C is None else shape_C.float()
    if count > 1:
        weights_SKQ = (1 - held).repeat_interleave(grid, dim=2)  # variants: fold major, penalty minor
        penalty = penalties_G.float().repeat(count)[:, None] * shape
        v = solve(
            x, lengths_SR, labels_SK, weights_SKQ, penalty[None, None], offset_SKC, classes, 1e-3, 100
        )  # enough to rank
        z = (x @ v.flatten(2)).view(*x.shape[:2], count, grid, classes)
        z = z if offset_SKC is None else z + offset_SKC[:, :, None, None].to(z)
        own = labels_SK[:, :, None, None, None].expand(-1, -1, count, grid, 1)
        loss = -torch.log_softmax(z, dim=-1).gather(4, own)[..., 0]
        chosen_S = penalties_G[(loss * held[..., None]).sum((1, 2)).argmin(1)].double()
    else:
        chosen_S = torch.full((len(x),), fallback, dtype=torch.float64)
    penalty = chosen_S[:, None, None, None] * shape.double()
    ones = torch.ones(*labels_SK.shape, 1)
    final = x if tolerance >= 1e-5 else x_SKR
    v = solve(final, lengths_SR, labels_SK, ones, penalty, offset_SKC, classes, tolerance)[:, :, 0]
    return basis_SDR @ v.double(), chosen_S
