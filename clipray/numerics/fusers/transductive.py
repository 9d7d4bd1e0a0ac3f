"""`transductive`: unlabelled images teach a mixture of classes, started from what another fuser says of them.

One Gaussian per class over all backbones' embeddings, side by side, with a diagonal covariance that the classes share.
Its answers start at another fuser's log-probabilities q and stay tied to them:

    z_i = softmax(log q_i + trust · bounded(log π + log N(x_i; μ, σ²) / (s √D)))

(the family of TransCLIP, arXiv 2406.01837, and StatA, arXiv 2501.03729; several backbones, the weights and the rules
for safety are ours). Support images are z fixed to their label. What it learns is a state: `apply` gives any image
its z, and no image depends on another one of the call.

Each round is a sum over blocks of images (`block_statistics`) and a function of that sum (`parameters`), so that the
blocks may lie anywhere: `learn` asks for sums (`Sums`) and sees no image.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clipray.numerics.blocks import Lazy, narrow, spans
from clipray.numerics.contracts import BySums, Fuser, State, Support
from clipray.numerics.fusers.anchored import features
from clipray.numerics.fusers.present import Present, present
from clipray.numerics.solvers.softmax import log_softmax

_TINY = 1e-12
_ELEMENTS = 2**24  # of a matrix over a block's images and the classes: 64 MiB in float32


@dataclasses.dataclass(frozen=True)
class Transductive:
    """Settings of `transductive`.

    Attributes:
        start: name of the fuser whose log-probabilities are q.
        unlabelled: who teaches: the images to be classified, unlabelled images of the train split, or none.
        share_count: images of every class that the class weights π count beside those they see.
        pull: images of the batch's centre in each class mean, as a part of the mean size of a class.
        pull_few: what is added to `pull`, divided by the effective number of classes: where there are few, the
            differences within a class are taken for differences between classes.
        variance_count: images of the mean variance in that of each dimension.
        softness: s above.
        bound: the most, in nats, that the mixture may move a class's log-odds against q's first choice.
        doubtful, sure: how sure q must be for a trust of 0 and of 1, see `reliability`.
        lone, several: effective numbers of classes that q says are present: up to the first one only the class shares
            that q says teach, from the second one on only the mixture, between them a part of each, see `present`.
            With labels only the mixture does, for support images say what differences between classes are.
        support_weight: how many unlabelled images a support image counts for.
        rounds: at most. tolerance: relative change of the means that ends them.
        block: images at once.
    """

    start: str = "log_avg"
    unlabelled: Literal["batch", "train", "none"] = "batch"
    share_count: float = 1.0
    pull: float = 0.3
    pull_few: float = 0.5
    variance_count: float = 10.0
    softness: float = 2.0
    bound: float = 10.0
    doubtful: float = 0.5
    sure: float = 0.6
    lone: float = 1.25
    several: float = 1.75
    support_weight: float = 3.0
    rounds: int = 40
    tolerance: float = 1e-3
    block: int = 4096


class Block(NamedTuple):
    """Some unlabelled images: log q, logits of the head, M matrices B×D_m, and their features where they are kept."""

    start_BC: Tensor
    logits_BMC: Tensor | Lazy
    embeddings: Sequence[Tensor]
    x_BD: Tensor | None = None


Sums = Callable[[Callable[[Block], tuple[Tensor, ...]]], tuple[Tensor, ...]]
"""Gives the sum, over all unlabelled images wherever they lie, of what a function gives of a block of them."""


class Statistics(NamedTuple):
    """What the mixture needs to know of some images; those of two sets of images add up.

    Attributes:
        count_C: Σ z. sum_CD: Σ z x. square_D: Σ x².
    """

    count_C: Tensor
    sum_CD: Tensor
    square_D: Tensor


class Parameters(NamedTuple):
    """A mixture: class means, the inverse of s√D·σ², and the logs of the class weights."""

    means_CD: Tensor
    sharpness_D: Tensor
    log_share_C: Tensor


def added(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Add tuples of tensors up, in double precision, for there may be many.

    >>> added([(torch.tensor(1.0),), (torch.tensor(2.0),)])
    (tensor(3.),)
    """
    rest = iter(parts)
    total = like = next(rest)  # a single block, as of most datasets, is its own sum
    for part in rest:
        total = tuple(a.double() + b.double() for a, b in zip(total, part, strict=True))
    return tuple(t.to(own) for t, own in zip(total, like, strict=True))


def in_memory(
    start_NC: Tensor, logits_NMC: Tensor | Lazy, embeddings: Sequence[Tensor], block: int
) -> Sums:
    """Sums over images that are at hand, `block` at once, or fewer where there are many classes."""
    every = [*_rows(start_NC, block)]
    x_ND = features(embeddings) if len(every) == 1 else None  # once for all rounds

    def blocks() -> Iterator[Block]:
        for rows in every:
            logits_BMC = narrow(logits_NMC, rows)
            yield Block(start_NC[rows], logits_BMC, [e[rows] for e in embeddings], x_ND)

    return lambda of: added(of(each) for each in blocks())


def _rows(start_NC: Tensor, block: int) -> Iterator[slice]:
    """The rows of one block after another."""
    step = max(1, min(block, _ELEMENTS // max(1, start_NC.shape[1])))
    for at in range(0, len(start_NC), step):
        yield slice(at, min(at + step, len(start_NC)))


def _features(block: Block) -> Tensor:
    return features(block.embeddings) if block.x_BD is None else block.x_BD


def block_statistics(z_NC: Tensor, x_ND: Tensor) -> Statistics:
    """Compute the statistics of a block of images.

    >>> block_statistics(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[2.0], [4.0]])).sum_CD
    tensor([[4.],
            [2.]])
    """
    return Statistics(z_NC.sum(0), z_NC.T @ x_ND, x_ND.square().sum(0))


def parameters(seen: Statistics, support: Statistics | None, settings: Transductive) -> Parameters:
    """Compute the mixture of the sums over all unlabelled images and over the support set.

    Class weights are (n + a) / (N + a C) of the unlabelled images. A class mean is pulled to the centre, 0, by
    κ = (pull + pull_few / K) · Σn²/Σn images, with K = (Σn)² / Σn² the effective number of classes.
    """
    count_C, sum_CD, square_D = seen
    images = count_C.sum().clamp_min(_TINY)
    size = count_C.square().sum() / images
    pull = (settings.pull + settings.pull_few * size / images) * size
    labelled_C = count_C if support is None else count_C + support.count_C
    labelled_CD = sum_CD if support is None else sum_CD + support.sum_CD
    means_CD = labelled_CD / (labelled_C + pull).clamp_min(_TINY)[:, None]
    spread_D = square_D - 2 * (sum_CD * means_CD).sum(0)
    spread_D = spread_D + (count_C[:, None] * means_CD.square()).sum(0)
    spread_D = spread_D.clamp_min(0)
    prior = settings.variance_count * spread_D.mean() / images
    variance_D = ((spread_D + prior) / (images + settings.variance_count)).clamp_min(_TINY)
    share_C = (count_C + settings.share_count) / (images + settings.share_count * len(count_C))
    sharpness_D = 1 / (variance_D * settings.softness * len(variance_D) ** 0.5)
    return Parameters(means_CD, sharpness_D, share_C.log())


def answers(
    mixture: Parameters, start_NC: Tensor, x_ND: Tensor, trust: float, bound: float
) -> Tensor:
    """Compute log z: the start, moved by at most `trust` · `bound` in a class's log-odds against the start's choice."""
    scaled_CD = mixture.means_CD * mixture.sharpness_D
    length_C = (scaled_CD * mixture.means_CD).sum(1)
    says_NC = x_ND @ scaled_CD.T - length_C / 2 + mixture.log_share_C
    says_NC = says_NC - says_NC.gather(1, start_NC.argmax(1, keepdim=True))
    moved_NC = trust * bound * torch.tanh(says_NC / bound)
    return log_softmax(start_NC + moved_NC.to(start_NC))


class Look(NamedTuple):
    """What is to be known of unlabelled images before any round; those of two sets of images add up.

    Attributes:
        images: how many. sure: Σ of the start's first probability. agree: Σ of the share of pairs of backbones that
            agree. sum_D: Σ x. start_C: Σ q.
    """

    images: Tensor
    sure: Tensor
    agree: Tensor
    sum_D: Tensor
    start_C: Tensor


def look(block: Block) -> Look:
    """What is to be known of a block before any round."""
    images, backbones, classes = block.logits_BMC.shape
    sure_N = block.start_BC.amax(1).exp().double()
    agree = torch.tensor(float(images), dtype=torch.float64)
    if backbones > 1:
        first = [block.logits_BMC[span].argmax(2) for span in spans(block.logits_BMC)]
        first_NM = torch.cat(first)
        votes_NC = torch.zeros(images, classes, dtype=torch.int32)
        votes_NC.scatter_add_(1, first_NM, torch.ones_like(first_NM, dtype=torch.int32))
        agree = (votes_NC * (votes_NC - 1)).sum().double() / (backbones * (backbones - 1))
    count = torch.tensor(float(images), dtype=torch.float64)
    start_C = block.start_BC.exp().sum(0)
    return Look(count, sure_N.sum(), agree, _features(block).sum(0), start_C)


def reliability(seen: Look, classes: int) -> float:
    """How far a start may be trusted without labels, 1 for always right and 0 for a guess.

    The mean of its first choice's probability, or the share of images on which two backbones agree if that is lower;
    both as a part of the way from chance to 1. A start that is no better than a coin on its own word cannot tell
    which groups of images belong to which class, and the mixture would make its errors larger.

    >>> p = torch.tensor([[0.75, 0.25]])
    >>> reliability(look(Block(p.log(), p.log()[:, None], [torch.ones(1, 1)])), classes=2)
    0.5
    """
    if not float(seen.images) or classes < 2:
        return 0.0
    sure = min(float(seen.sure), float(seen.agree)) / float(seen.images)
    return (sure - 1 / classes) / (1 - 1 / classes)


def trust_in(reliable: float, settings: Transductive) -> float:
    """Compute how much the mixture counts, from 0 at `doubtful` to 1 at `sure`."""
    room = max(settings.sure - settings.doubtful, _TINY)
    return min(1.0, max(0.0, (reliable - settings.doubtful) / room))


def learn(
    sums: Sums,
    seen: Look,
    shown: Present | None,
    support: tuple[Tensor, Tensor] | None,
    trust: float,
    settings: Transductive,
) -> dict[str, Tensor]:
    """Fit the mixture to unlabelled images and, where there are some, to support images.

    Args:
        sums: over the unlabelled images. seen: their `look`. shown: their classes, where text alone says them.
        support: features K×D of support images and their labels.
        trust: see `trust_in`.

    Returns:
        a state's tensors: `centre_D`, `means_CD`, `sharpness_D`, `log_share_C`, `trust_1`.
    """
    centre_D = seen.sum_D / float(seen.images)
    known = None
    if support is not None and len(support[1]):
        one_hot_KC = torch.nn.functional.one_hot(support[1], len(seen.start_C)).to(centre_D)
        known = block_statistics(one_hot_KC * settings.support_weight, support[0] - centre_D)
    mixture = None
    for _ in range(settings.rounds):
        told = Statistics(*sums(partial(_told, mixture, centre_D, trust, settings.bound)))
        last, mixture = mixture, _with_shares(parameters(told, known, settings), shown, settings)
        if last is not None and _near(last.means_CD, mixture.means_CD, settings.tolerance):
            break
    return {
        "centre_D": centre_D,
        **mixture._asdict(),
        "trust_1": torch.tensor([trust], dtype=centre_D.dtype),
    }


def _with_shares(mixture: Parameters, shown: Present | None, settings: Transductive) -> Parameters:
    """A mixture as far as the start says that there are several classes, and the start's class shares as far as not."""
    if shown is None or shown.classes >= settings.several:
        return mixture
    part = max(0.0, (shown.classes - settings.lone) / (settings.several - settings.lone))
    log_share_C = part * mixture.log_share_C + (1 - part) * shown.log_share_C.to(mixture.means_CD)
    return Parameters(mixture.means_CD, part * mixture.sharpness_D, log_share_C)


def _told(
    mixture: Parameters | None, centre_D: Tensor, trust: float, bound: float, block: Block
) -> Statistics:
    """The E-step of a block: its statistics under the mixture of the last round, or under the start."""
    x_BD = _features(block) - centre_D
    log_z_BC = block.start_BC
    if mixture is not None:
        log_z_BC = answers(mixture, log_z_BC, x_BD, trust, bound)
    return block_statistics(log_z_BC.exp().to(x_BD), x_BD)


def _near(old: Tensor, new: Tensor, tolerance: float) -> bool:
    return bool((new - old).norm() <= tolerance * old.norm())


def say(
    tensors: Mapping[str, Tensor],
    start_NC: Tensor,
    embeddings: Sequence[Tensor],
    settings: Transductive,
) -> Tensor:
    """Compute log z of some images, by what `learn` gave; the start where it learned nothing."""
    if "means_CD" not in tensors or not float(tensors["trust_1"]):
        return start_NC
    mixture = Parameters(*(tensors[name] for name in Parameters._fields))
    trust = float(tensors["trust_1"])
    said_NC = torch.empty_like(start_NC)
    for rows in _rows(start_NC, settings.block):
        x_BD = features([e[rows] for e in embeddings]) - tensors["centre_D"]
        said_NC[rows] = answers(mixture, start_NC[rows], x_BD, trust, settings.bound)
    return said_NC


def fit(
    fusers: Mapping[str, Fuser], supports: Sequence[Support], settings: Transductive
) -> list[State]:
    """Fit the start, and keep the support images for `adapt`."""
    first = fusers[settings.start]
    states = []
    for support, own in zip(supports, first.fit(supports, first.settings), strict=True):
        tensors = {f"start/{name}": tensor for name, tensor in own.tensors.items()}
        if len(support.labels_K):
            tensors["support/x_KD"] = features(support.embeddings)
            tensors["support/labels_K"] = support.labels_K
        states.append(State(settings, tensors))
    return states


def adapt(fusers: Mapping[str, Fuser], state: State, sums: Sums, classes: int) -> State:
    """Learn from unlabelled images, as far as the start may be trusted; where it may not, only the start is left.

    What other images may have taught the state before is forgotten.
    """
    settings = state.settings
    kept = ("start/", "support/")
    own = {name: t for name, t in state.tensors.items() if name.startswith(kept)}
    seen = Look(*sums(look))
    reliable = reliability(seen, classes)
    trust = trust_in(reliable, settings)
    numbers = state.numbers | {"reliability": reliable, "trust": trust}
    if trust <= 0:
        return State(settings, own, numbers)
    support = None
    if "support/labels_K" in own:
        support = (own["support/x_KD"], own["support/labels_K"])
    shown = None if support else present(sums, seen.start_C)
    learned = learn(sums, seen, shown, support, trust, settings)
    (moved,) = sums(partial(_moved, learned, settings))
    numbers["moved"] = float(moved) / float(seen.images)
    return State(settings, own | learned, numbers)


def adapt_at_hand(
    by_sums: BySums, state: State, logits_NMC: Tensor | Lazy, embeddings: Sequence[Tensor]
) -> State:
    """Learn from unlabelled images that are in memory; from none at all nothing is learned."""
    if not len(logits_NMC):
        return state
    settings = getattr(state.settings, "mixture", state.settings)
    start_NC = by_sums.start(state, logits_NMC, embeddings)
    sums = in_memory(start_NC, logits_NMC, embeddings, settings.block)
    return by_sums.learn(state, sums, logits_NMC.shape[2])


def _moved(learned: Mapping[str, Tensor], settings: Transductive, block: Block) -> tuple[Tensor]:
    """How many images of a block get another label than the start gives."""
    said_BC = say(learned, block.start_BC, block.embeddings, settings)
    return ((said_BC.argmax(1) != block.start_BC.argmax(1)).double().sum(),)


def apply(
    fusers: Mapping[str, Fuser], state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> Tensor:
    """log z; of a state that was not adapted what the start says."""
    start_NC = start(fusers, state, logits_NMC, embeddings)
    return say(state.tensors, start_NC, embeddings, state.settings)


def start(
    fusers: Mapping[str, Fuser], state: State, logits_NMC: Tensor, embeddings: Sequence[Tensor]
) -> Tensor:
    """log q, which the mixture starts from."""
    fuser = fusers[state.settings.start]
    own = {
        name.removeprefix("start/"): tensor
        for name, tensor in state.tensors.items()
        if name.startswith("start/")
    }
    return fuser.apply(State(fuser.settings, own), logits_NMC, embeddings)
