"""What every fuser is fitted on, what fitting gives, and the pair of functions that makes a fuser."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Support:
    """The labelled images that a fuser may learn from: one (dataset, shots, seed).

    Attributes:
        logits_KMC: each backbone's logits, at the model's own scale.
        embeddings: M tensors K×D_m, as the models give them, not normalised.
        labels_K: int64 classes.
        seed: number of the support set; the only source of chance of a fit.
        borrowed: the logits are zero-shot ones in place of a head's that are unlike them (`heads.cross_fit.borrowed`).
        known: a few numbers that one fuser has computed of the set and others need too, such as temperatures, by what
            they are and how they were computed; the "axes" of its features while `guarded` fits its candidates. A set
            made of this one by `take` or `replace` begins without any.
    """

    logits_KMC: Tensor
    embeddings: tuple[Tensor, ...]
    labels_K: Tensor
    seed: int = 0
    borrowed: bool = False
    known: dict[Any, Any] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        images, backbones, classes = self.logits_KMC.shape
        if self.labels_K.shape != (images,):
            raise ValueError(
                f"{images} rows of logits, but labels of shape {tuple(self.labels_K.shape)}"
            )
        if self.embeddings and [len(e) for e in self.embeddings] != [images] * backbones:
            raise ValueError(f"embeddings must be {backbones} tensors of {images} rows")
        if images and not 0 <= int(self.labels_K.min()) <= int(self.labels_K.max()) < classes:
            raise ValueError(f"labels must lie in 0..{classes - 1}")

    def take(self, rows: Tensor) -> "Support":
        """Return the support set of these rows only (positions or a mask)."""
        parts = {"logits_KMC": self.logits_KMC[rows], "labels_K": self.labels_K[rows]}
        return dataclasses.replace(
            self, **parts, embeddings=tuple(e[rows] for e in self.embeddings)
        )


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a fuser that has no choice to make."""


@dataclasses.dataclass(frozen=True)
class State:
    """A fitted fuser: its settings, its tensors, and plain numbers worth reading."""

    settings: Any
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to(self, device: torch.device | str) -> "State":
        """Return the same on a device."""
        own = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return dataclasses.replace(self, tensors=own)


class Fuser(NamedTuple):
    """One way to fuse.

    Attributes:
        fit: (supports, settings) -> one `State` per support set. Sees nothing but the support sets. A label-free fuser
            ignores what is in them.
        apply: (state, logits_NMC, embeddings) -> log_probs_NC. Has no label parameter.
        settings: a frozen dataclass with every choice that changes a number, at its default.
        needs_labels: False for fusers that do not look at the support set (shots 0).
        without_labels: of one that needs labels: it can be fitted on an empty support set too, and is used at shots 0.
        needs_embeddings: whether `apply` reads the embeddings.
        transductive: whether an image's result depends on the other images of the same call.
        kind: what it is in a table of scores: "fuser"; "control", a few-shot classifier on all embeddings that fusers
            have to beat; or "reference", what they are compared with.
        path: of iterative fusers, (supports, settings of each, parts) -> what `fit` would give after each of that many
            equal parts of the training; the last is what `fit` gives.
        flops: (state, backbones, classes, embedding dimensions) -> floating-point operations per image that a fitted
            fuser adds to its backbones, see `fusers.flops`.
        about: what it does, one plain sentence for reports.
        adapt: (state, logits_NMC, embeddings) -> the state that unlabelled images have taught. Who they are, the
            settings' `unlabelled` says: the "batch" to be classified, those of the "train" split, or "none". `apply` of
            either state gives an image what no other image of the call changes.
        by_sums: of one that has `adapt`, the same for images that lie anywhere.
        weights: of fusers that weigh the backbones anew for each image, (state, logits_NMC, embeddings) -> weights_NM,
            which sum to 1.
    """

    fit: Callable[[Sequence[Support], Any], list[State]]
    apply: Callable[[State, Tensor, Sequence[Tensor]], Tensor]
    settings: Any = NoSettings()
    needs_labels: bool = True
    needs_embeddings: bool = False
    transductive: bool = False
    kind: str = "fuser"
    path: Callable[[Sequence[Support], Sequence[Any], int], Iterator[list[State]]] | None = None
    flops: Callable[[State, int, int, Sequence[int]], float] | None = None
    about: str = ""
    without_labels: bool = False
    adapt: Callable[[State, Tensor, Sequence[Tensor]], State] | None = None
    by_sums: "BySums | None" = None
    weights: Callable[[State, Tensor, Sequence[Tensor]], Tensor] | None = None


class BySums(NamedTuple):
    """How a fuser learns from unlabelled images of which it sees nothing but sums over blocks.

    Attributes:
        start: (state, logits_NMC, embeddings) -> log_probs_NC that it starts from.
        learn: (state, sums, classes) -> the state that they have taught; `sums` gives the sum over all images of what
            a function gives of a block of them, see `fusers.transductive`.
    """

    start: Callable[[State, Tensor, Sequence[Tensor]], Tensor]
    learn: Callable[[State, Any, int], State]


def fit_nothing(supports: Sequence[Support], settings: Any) -> list[State]:
    """Fit nothing, as label-free fusers do: return an empty state for each support set."""
    return [State(settings) for _ in supports]


def dump_settings(settings: Any) -> dict:
    """Turn settings into a JSON-able mapping, for fingerprints and records.

    >>> dump_settings(NoSettings())
    {}
    """
    return dataclasses.asdict(settings)


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Replace fields of a dataclass, inside nested settings too; JSON's lists are read as tuples.

    Raises:
        TypeError: no such setting. ValueError: the settings refuse such a value.
    """
    values = {}
    for key, value in changes.items():
        now = getattr(settings, key, None)
        nested = dataclasses.is_dataclass(now) and isinstance(value, Mapping)
        values[key] = (
            changed(now, value) if nested else tuple(value) if isinstance(value, list) else value
        )
    return dataclasses.replace(settings, **values)


def alike(supports: Sequence[Support]) -> list[list[int]]:
    """Group the positions of support sets that can be stacked: those of equal shapes (the seeds of one shot)."""
    groups: dict[tuple, list[int]] = {}
    for position, support in enumerate(supports):
        shape = (*support.logits_KMC.shape, *(tuple(e.shape) for e in support.embeddings))
        groups.setdefault(shape, []).append(position)
    return list(groups.values())


def distinct(supports: Sequence[Support]) -> tuple[list[Support], list[int]]:
    """Leave out support sets that are equal to an earlier one; return the others, and which of them each set is.

    >>> one = Support(torch.zeros(2, 1, 3), (torch.ones(2, 4),), torch.tensor([0, 1]))
    >>> distinct([one, dataclasses.replace(one, seed=1), one.take(torch.tensor([0, 1]))])[1]
    [0, 1, 0]
    """
    kept: list[Support] = []
    places: dict[bytes, int] = {}
    place_of = []
    for support in supports:
        seen = hashlib.blake2b(repr((support.seed, support.borrowed)).encode(), digest_size=16)
        for tensor in (support.labels_K, support.logits_KMC, *support.embeddings):
            seen.update(repr((tensor.shape, tensor.dtype)).encode())
            seen.update(tensor.contiguous().numpy(force=True).data)
        place = places.setdefault(seen.digest(), len(kept))
        if place == len(kept):
            kept.append(support)
        place_of.append(place)
    return kept, place_of


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Put tensors of one shape on top of each other; a single one, which may be large, is not copied.

    >>> stacked([torch.zeros(2)]).shape
    torch.Size([1, 2])
    """
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tuple(tensors))


def unit(embeddings_ND: Tensor) -> Tensor:
    """Scale rows to length 1, in float32 at least (a zero row stays zero).

    >>> unit(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    wide = embeddings_ND if embeddings_ND.dtype == torch.float64 else embeddings_ND.float()
    return torch.nn.functional.normalize(wide, dim=-1)


def nothing(logits_NMC: Tensor, embeddings: tuple[Tensor, ...]) -> Support:
    """Make an empty support set: what a label-free fuser is given to fit, on the CPU as all support sets."""
    none = tuple(e_ND[:0].cpu() for e_ND in embeddings)
    return Support(logits_NMC[:0].cpu(), none, torch.zeros(0, dtype=torch.int64))


class Shots(NamedTuple):
    """What a head may learn from.

    Attributes:
        embeddings_KD, labels_K: the support images.
        classifier_CD: the zero-shot class vectors.
        scale, bias: the model's own.
        seed: the only source of chance.
    """

    embeddings_KD: Tensor
    labels_K: Tensor
    classifier_CD: Tensor
    scale: float
    bias: float
    seed: int = 0

    def take(self, rows: Tensor) -> "Shots":
        """Return these rows only."""
        return self._replace(embeddings_KD=self.embeddings_KD[rows], labels_K=self.labels_K[rows])


class Head(NamedTuple):
    """A pair of functions, like a fuser, for a single backbone.

    Attributes:
        fit: (problems, settings) -> one `State` each.
        apply: (state, embeddings_ND, classifier_CD, scale, bias) -> logits_NC.
        keeps_text: its logits at one shot are the zero-shot ones and little more (a cache adds 1 at most per image).
    """

    fit: Callable[[Sequence[Shots], Any], list[State]]
    apply: Callable[[State, Tensor, Tensor, float, float], Tensor]
    settings: Any = NoSettings()
    needs_labels: bool = True
    keeps_text: bool = False
