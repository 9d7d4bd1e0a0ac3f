"""Fusers with the same rule for every image: averages, votes and the most confident, plain or calibrated."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clipray.numerics.blocks import by_block
from clipray.numerics.contracts import State, Support, alike, stacked
from clipray.numerics.solvers.newton import CHUNK, inverse_temperatures
from clipray.numerics.ties import level


@dataclasses.dataclass(frozen=True)
class Vote:
    """Each backbone votes for its `best` classes."""

    best: int = 1


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """How temperatures are fitted, see `calibration.inverse_temperatures`.

    Attributes:
        prior_count: weight of the prior T = 1, in images.
        low, high: bounds of 1/T.
    """

    prior_count: float = 1.0
    low: float = 1e-3
    high: float = 1e3


CALIBRATED = Calibrated()


def mean_logits(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Compute log softmax of the mean logits.

    >>> mean_logits(State(None), torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])).exp()
    tensor([[0.5000, 0.5000]])
    """
    return torch.log_softmax(logits_NMC.mean(1), dim=-1)


def log_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Multiply the experts: the mean of log p_m, normalised.

    Normalising each p_m first adds one number per image, so this equals `mean_logits` in exact arithmetic.
    """
    return torch.log_softmax(torch.log_softmax(logits_NMC, dim=-1).mean(1), dim=-1)


def prob_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Mix the experts: log of the mean of p_m.

    >>> prob_avg(State(None), torch.tensor([[[0.8, 0.2], [0.4, 0.6]]]).log()).exp()
    tensor([[0.6000, 0.4000]])
    """
    return (
        torch.log_softmax(logits_NMC, dim=-1).logsumexp(1)
        - torch.tensor(float(logits_NMC.shape[1])).log()
    )


def vote(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Let each backbone vote for its `settings.best` classes; mean log p decides ties.

    A backbone that ties classes for its last vote votes for all of them. To be a distribution that keeps this order,
    the winner (each of them where they tie in all) has one vote more and `log_avg`'s distribution spreads another one,
    so no class has probability 0.

    >>> z = torch.tensor([[[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.3, 0.7]]])
    >>> vote(State(Vote(1)), z).argmax().item()
    0
    """
    classes = logits_NMC.shape[-1]
    product_NC = level(log_avg(state, logits_NMC), logits_NMC)
    best_NMk = logits_NMC.topk(min(state.settings.best, classes), dim=-1).values
    votes_NC = (logits_NMC >= best_NMk[..., -1:]).to(logits_NMC).sum(1)
    tied_NC = votes_NC == votes_NC.amax(1, keepdim=True)
    rival_NC = product_NC.masked_fill(~tied_NC, -torch.inf)
    winner_NC = rival_NC == rival_NC.amax(1, keepdim=True)
    total_NC = votes_NC + product_NC.exp() + winner_NC
    return (total_NC / total_NC.sum(1, keepdim=True)).clamp_min(1e-30).log()


def conf(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Take, per image, the log p of the backbone with the highest max p.

    >>> conf(State(None), torch.tensor([[[0.8, 0.2], [0.1, 0.9]]]).log()).exp()
    tensor([[0.1000, 0.9000]])
    """
    log_p = torch.log_softmax(logits_NMC, dim=-1)
    best_NM1 = logits_NMC.argmax(-1, keepdim=True)
    odds_NMC = (logits_NMC - logits_NMC.gather(2, best_NM1)).double().exp()
    # max p = 1 / (1 + doubt); near 1 it rounds, and which backbone is surest would depend on the CPU
    doubt_NM = odds_NMC.scatter(2, best_NM1, 0.0).sum(-1)
    surest_N = doubt_NM.argmin(1)
    return log_p[torch.arange(len(log_p)), surest_N]


def conf_weighted(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Weigh p_m by the softmax over the M max-probabilities (zero-shot mode of arXiv 2311.17091).

    >>> p = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> conf_weighted(State(None), (p + 1e-12).log()).exp()   # weights softmax(1, 0.5) = 0.6225, 0.3775
    tensor([[0.8112, 0.1888]])
    """
    log_p = torch.log_softmax(logits_NMC, dim=-1)
    return (log_p + _by_confidence(log_p).log()[..., None]).logsumexp(1)


def weights_by_confidence(
    state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()
) -> Tensor:
    """Compute the weights N×M of `conf_weighted`: the softmax over the M max-probabilities.

    >>> weights_by_confidence(State(None), torch.tensor([[[9.0, -9.0], [0.0, 0.0]]]))
    tensor([[0.6225, 0.3775]])
    """
    return _by_confidence(torch.log_softmax(logits_NMC, dim=-1))


def _by_confidence(log_p_NMC: Tensor) -> Tensor:
    return torch.softmax(log_p_NMC.max(-1).values.exp(), dim=1)


def fit_calibrated(supports: Sequence[Support], settings: Calibrated) -> list[State]:
    """Fit a temperature per support set and backbone by NLL; `tensors["beta_M"]` holds 1/T in float64."""
    _know_temperatures(supports, settings)
    states = []
    for support in supports:
        beta_M = support.known["beta_M", settings]
        numbers = {"temperatures": (1 / beta_M).tolist()}
        states.append(State(settings, {"beta_M": beta_M.clone()}, numbers))
    return states


def _know_temperatures(supports: Sequence[Support], settings: Calibrated) -> None:
    """Let each support set know its backbones' 1/T; those of one shape are fitted in one tensor program."""
    key = ("beta_M", settings)
    new = [support for support in supports if key not in support.known]
    for group in alike(new):
        logits_SKMC = stacked([new[i].logits_KMC for i in group])
        labels_SK = torch.stack([new[i].labels_K for i in group])
        beta_SM = inverse_temperatures(
            logits_SKMC, labels_SK, settings.prior_count, settings.low, settings.high
        )
        for i, beta_M in zip(group, beta_SM, strict=True):
            new[i].known[key] = beta_M.clone()


def calibrate(state: State, logits_NMC: Tensor) -> Tensor:
    """Divide logits by their backbone's temperature."""
    return logits_NMC * state.tensors["beta_M"].to(logits_NMC)[:, None]


def fit_twice_calibrated(supports: Sequence[Support], settings: Calibrated) -> list[State]:
    """`fit_calibrated`, and `tensors["sure_1"]`: 1/T of the mean of the calibrated logits, in float64.

    Backbones that err apart leave a mean that is less sure than it should be.
    """
    states, key = fit_calibrated(supports, settings), ("sure_1", settings)
    new = [i for i, support in enumerate(supports) if key not in support.known]
    for group in alike([supports[i] for i in new]):
        images, _, classes = supports[new[group[0]]].logits_KMC.shape
        at_once = max(1, CHUNK // max(1, images * classes))
        for start in range(0, len(group), at_once):
            own = [new[position] for position in group[start : start + at_once]]
            means = [mean_calibrated(states[i], supports[i].logits_KMC)[:, None] for i in own]
            labels_SK = torch.stack([supports[i].labels_K for i in own])
            sure_S1 = inverse_temperatures(
                stacked(means), labels_SK, settings.prior_count, settings.low, settings.high
            )
            for i, sure_1 in zip(own, sure_S1, strict=True):
                supports[i].known[key] = sure_1.clone()
    for state, support in zip(states, supports, strict=True):
        state.tensors["sure_1"] = support.known[key].clone()
    return states


def mean_calibrated(state: State, logits_KMC: Tensor) -> Tensor:
    """Compute the mean K×C of calibrated logits in float64, block by block."""
    return by_block(lambda z_BMC, _: calibrate(state, z_BMC.double()).mean(1), logits_KMC)


def twice_calibrated(state: State, logits_NMC: Tensor) -> Tensor:
    """Compute the mean N×C of calibrated logits, itself calibrated."""
    return calibrate(state, logits_NMC).mean(1) * state.tensors["sure_1"].to(logits_NMC)


def c_log_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Apply `log_avg` to calibrated logits."""
    return log_avg(state, calibrate(state, logits_NMC))


def c_prob_avg(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Apply `prob_avg` to calibrated logits."""
    return prob_avg(state, calibrate(state, logits_NMC))


def c_conf(state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor] = ()) -> Tensor:
    """Apply `conf` to calibrated logits."""
    return conf(state, calibrate(state, logits_NMC))
