"""Positive weights of experts that add up, for many problems at once."""

import torch
from torch import Tensor

from clipray.numerics.solvers.softmax import softmax


def positive_weights(
    logits_SKJC: Tensor, labels_SK: Tensor, prior_count: float, steps: int = 60
) -> Tensor:
    """Find w_SJ > 0 minimising Σ_k −log softmax(Σ_j w_j z_kj)[y_k] + prior_count · Σ_j (w_j − log w_j), for S problems.

    Convex; the prior's mode is 1 for every weight, which is also the answer without images. Damped Newton, whose steps
    are each problem's own.

    Returns:
        the weights, in float64.

    >>> positive_weights(torch.zeros(1, 0, 2, 3), torch.zeros(1, 0, dtype=torch.int64), 1.0)
    tensor([[1., 1.]], dtype=torch.float64)
    """
    z = logits_SKJC.double()
    own = labels_SK[:, :, None, None].expand(-1, -1, z.shape[2], 1)
    z = (z - z.gather(3, own)).transpose(2, 3).contiguous()  # S×K×C×J

    def value(w: Tensor) -> Tensor:
        fused_SKC = (z @ w[:, None, :, None])[..., 0]
        return fused_SKC.logsumexp(2).sum(1) + prior_count * (w - w.log()).sum(1)

    w = torch.ones(len(z), z.shape[3], dtype=torch.float64)
    done = torch.zeros(len(z), dtype=torch.bool)
    for _ in range(steps):
        first, second = _derivatives(w, z, prior_count)
        along = torch.linalg.solve(second, first)
        decrease = (first * along).sum(1)
        done |= decrease < 1e-12
        if done.all():
            break
        length = 0.99 / (along / w).amax(1).clamp_min(0.99)
        now = value(w)
        while True:
            new = w - length[:, None] * along
            far = value(new) > now - 1e-4 * length * decrease
            far &= (length > 1e-9) & ~done
            if not far.any():
                break
            length = torch.where(far, length / 2, length)
        w = torch.where(done[:, None], w, new)
    return w


def _derivatives(w_SJ: Tensor, z_SKCJ: Tensor, prior_count: float) -> tuple[Tensor, Tensor]:
    """The gradient S×J and the Hessian S×J×J."""
    p_SKC = softmax((z_SKCJ @ w_SJ[:, None, :, None])[..., 0])
    pulled_SKCJ = p_SKC[..., None] * z_SKCJ
    mean_SKJ = pulled_SKCJ.sum(2)
    first = mean_SKJ.sum(1) + prior_count * (1 - 1 / w_SJ)
    second = pulled_SKCJ.flatten(1, 2).transpose(1, 2) @ z_SKCJ.flatten(1, 2)
    second = second - mean_SKJ.transpose(1, 2) @ mean_SKJ
    return first, second + torch.diag_embed(prior_count / w_SJ.square())
