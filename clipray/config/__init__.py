"""Typed, frozen configs: WHAT is computed apart from HOW (fields marked `How`).

A config file is YAML that holds values only. Unknown or missing keys, wrong types and impossible values raise
`ConfigError` with the dotted path, before any work starts.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    field_validator,
    model_validator,
)

from clipray import shots as numbers
from clipray.config.load import (
    CONFIGS,
    apply_sets,
    check_settings,
    check_value,
    load,
    parse,
    read_yaml,
    unknown,
)
from clipray.config.names import Name
from clipray.fingerprint import How, fingerprint

__all__ = ["CONFIGS", "Name", "apply_sets", "check_settings", "check_value", "load", "parse"]
__all__ += ["fingerprint", "read_yaml", "unknown"]  # and all that is defined below


Shots = Annotated[  # labelled images of each class: a number, or `all`
    int,
    BeforeValidator(numbers.read),
    Field(ge=1),
    PlainSerializer(numbers.named, return_type=int | str, when_used="json"),
]


class Strict(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class GivenBackbone(Strict):
    """What a person has of one backbone on a data set: `<file>` or `<file>#<key or column>` each.

    `{split}` in a file's name stands for the split's name there, and `*` for parts in the order of their numbers.
    """

    images: str = ""  # image vectors, N×D
    classes: str = ""  # class vectors, C×D, in label order
    model: str = ""  # or the backbone whose text tower makes them from class names and `templates`
    logits: str = ""  # or, with `format: logits`, N×C
    labels: str = ""  # of these rows, to be checked against the set's
    ids: str = ""  # of these rows, by which they are brought into the set's order
    scale: float | None = Field(
        None, gt=0
    )  # of cosines; 100 is CLIP's own; default: that of `model`
    bias: float | None = None  # default: that of `model`, else 0


class HashSplit(Strict):
    """A split that the data do not have: images whose id hashes below a share are for test, the others for train."""

    test: float = Field(gt=0, lt=1)
    by: Literal["hash"] = "hash"
    seed: int = 0


class Dataset(Strict):
    """One labelled image set: what a file of `configs/datasets/` holds."""

    name: Name
    format: str
    uri: str = ""
    splits: dict[str, str] = {"train": "train", "test": "test"}
    classnames: tuple[str, ...] | str = "classnames.txt"
    templates: tuple[str, ...] | str = "zeroshot_classification_templates.txt"
    options: dict[str, Any] = {}
    # of `format: embeddings` and `format: logits`; see `GivenBackbone` for how files are named
    backbones: dict[Name, GivenBackbone] = {}
    labels: str = ""  # numbers of classes, or their names
    ids: str = ""  # one an image; by default its number
    split: HashSplit | None = None

    @property
    def given(self) -> bool:
        """Whether it is embeddings or logits that a person brings, and no images."""
        return self.format in ("embeddings", "logits")

    @model_validator(mode="after")
    def _given_or_not(self) -> Self:
        if not self.given:
            if self.backbones or self.labels or self.ids or self.split:
                raise ValueError(
                    "`backbones`, `labels`, `ids` and `split` are for `format: embeddings` and `format: logits`"
                )
            return self
        if not self.backbones or not self.labels:
            raise ValueError(f"`format: {self.format}` needs `labels` and `backbones`")
        for name, backbone in self.backbones.items():
            _check_given(name, backbone, self.format)
        return self

    @field_validator("splits", mode="before")
    @classmethod
    def _names_to_mapping(cls, splits: Any) -> Any:
        return {name: name for name in splits} if isinstance(splits, (list, tuple)) else splits

    @field_validator("splits")
    @classmethod
    def _known_splits(cls, splits: dict[str, str]) -> dict[str, str]:
        if "test" not in splits or set(splits) - {"train", "test"}:
            raise ValueError("splits are 'test' and, for few-shot methods, 'train'")
        return splits


def _check_given(name: str, backbone: GivenBackbone, layout: str) -> None:
    """`ValueError` unless a backbone has the files that the format needs, and no others."""
    if layout == "logits":
        if not backbone.logits or backbone.images or backbone.classes or backbone.model:
            raise ValueError(f"backbones.{name}: `format: logits` needs `logits`, and nothing else")
        if backbone.scale is not None or backbone.bias:  # a bias of 0 says nothing
            raise ValueError(
                f"backbones.{name}: leave out `scale` and `bias`, for logits are scaled already"
            )
        return
    if backbone.logits or not backbone.images or bool(backbone.classes) == bool(backbone.model):
        raise ValueError(
            f"backbones.{name}: `format: embeddings` needs `images`, and `classes` (a file of class vectors) or"
            " `model` (a backbone of the catalogue that makes them from the class names)"
        )
    if backbone.scale is None and not backbone.model:
        raise ValueError(
            f"backbones.{name}: say by what cosines are multiplied: `scale: 100` is CLIP's own"
        )


class Preprocessing(Strict):
    """How a backbone wants its images, in open_clip's words."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    fill_color: int = Field(0, ge=0, le=255)
    size: int | tuple[int, int] | None = None  # the model's own; another one is refused

    @field_validator("std")
    @classmethod
    def _above_zero(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if min(std) <= 0:
            raise ValueError("a standard deviation is above 0")
        return std


class Backbone(Strict):
    """One CLIP model: open_clip's name for it, where its weights are, and how it wants its images.

    `architecture` is a name of open_clip with `pretrained` (a tag of it) or `weights` (a file, or a URI), or it is
    `hf-hub:<org>/<name>` or `local-dir:<folder>`, which hold their weights.
    """

    name: Name
    architecture: str = Field(min_length=1)
    pretrained: str = ""
    weights: str = ""
    config: str = ""  # the model config of an architecture that open_clip does not know
    preprocess: Preprocessing | None = None  # of weights of one's own
    like: str = ""  # or: a tag whose preprocessing and activation they share, `<tag>` or `<architecture>/<tag>`
    # a commit, branch or tag of the hub; by default the newest
    revision: Annotated[str, How("where the content is found; the content counts")] = ""
    # names of datasets whose data stand in its pretraining data
    seen: Annotated[tuple[str, ...], How("told in reports; it changes no embedding")] = ()
    _origin: dict | None = PrivateAttr(None)  # what its files hold, once `pinned`

    @property
    def origin(self) -> dict | None:
        """What its files held when it was pinned; None where they are still to be looked at."""
        return self._origin

    def pinned(self, revision: str, origin: dict) -> Self:
        """The same entry, of one commit of the hub, whose files hold what they hold now."""
        entry = self.model_copy(update={"revision": revision})
        entry._origin = origin
        return entry

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        scheme, _, place = self.architecture.partition(":")
        if scheme in ("hf-hub", "local-dir"):
            if not place:
                raise ValueError(f"{scheme}: what? write hf-hub:<org>/<name> or local-dir:<folder>")
            if self.pretrained or self.weights or self.config:
                raise ValueError(
                    f"{scheme}: holds its weights and config; leave out `pretrained`, `weights`, `config`"
                )
        elif bool(self.pretrained) == bool(self.weights):
            raise ValueError(
                "give exactly one of `pretrained` (an open_clip tag) and `weights` (a path or s3:// URI), "
                "or an architecture hf-hub:<org>/<name> or local-dir:<folder>"
            )
        if self.revision and (self.weights or scheme == "local-dir"):
            raise ValueError("`revision` is for weights of the hub")
        self._check_preprocessing()
        return self

    def _check_preprocessing(self) -> None:
        if self.preprocess and self.like:
            raise ValueError("give one of `preprocess` and `like`")
        if self.pretrained and (self.preprocess or self.like):
            raise ValueError("leave out `preprocess` and `like`: the tag says it")
        if self.weights and not (self.config or self.preprocess or self.like):
            raise ValueError(
                "`weights` do not say how images are prepared: add `like: <open_clip tag>` (of the model that they "
                "were trained from), or `preprocess: {mean, std, interpolation, resize_mode}`"
            )


class Pool(Strict):
    """Size and resources of one backbone's actor pool."""

    size: int = Field(1, ge=1)
    max_size: int = Field(0, ge=0)  # actors at most, as the cluster grows; 0: always `size`
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int = Field(0, ge=0)  # of an actor on CPUs; 0: as many as its whole CPUs, one at least


class Compute(Strict):
    """HOW the work is done; never changes bytes beyond float tolerance, so it is in no fingerprint."""

    address: str = ""  # a Ray cluster to join; empty: the one this process is in, or a local one
    batch_size: int = Field(64, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False  # image towers by torch.compile: a minute at first, then faster on GPUs
    pools: dict[Name, Pool] = {}  # by backbone name; default: shared out by measured cost
    decode_cpus: float = Field(0.5, gt=0)
    decode_memory: int = Field(512 * 2**20, ge=1)  # bytes of a decoding task, beside its crops
    gpu_memory: int = Field(16 * 2**30, ge=1)  # bytes of each GPU: how many models may share one
    evaluate_gpus: float = Field(0, ge=0)  # part of a GPU for each evaluation, to apply fusers on
    max_retries: int = Field(2, ge=0)
    error_budget: float = Field(0.1, ge=0)  # < 1: a fraction of a split's images; else a count


class Tracking(Strict):
    """Where MLflow records go."""

    uri: str = ""  # default: an sqlite file in the workspace
    experiment: str = "clipray"
    enabled: bool = True


class Regression(Strict):
    """What counts as worse than the last successful campaign of the same name in the workspace."""

    fail: bool = False  # end with exit code 5 where something got worse
    tolerance: float = Field(
        0.01, ge=0
    )  # a smaller change never counts; beyond it, its interval decides
    metrics: tuple[
        Literal[
            "top1", "top5", "balanced_accuracy", "nll", "brier", "ece_width", "ece_mass", "aurc"
        ],
        ...,
    ] = ("top1",)
    methods: tuple[str, ...] = ()  # empty: all backbones, fusers, controls and references


class Chosen(Strict):
    """Settings that hold for one dataset, or for one support set of it."""

    dataset: Name
    shots: Shots | None = None
    seed: int | None = None
    settings: dict[str, Any]


class Method(Strict):
    """Settings of one's own, under a name of its own; on a dataset or support set that `chosen` names, others."""

    name: Name
    settings: dict[str, Any] = {}
    chosen: tuple[Chosen, ...] = ()

    def on(self, dataset: str) -> Self:
        """As it is on one dataset."""
        return self.model_copy(
            update={"chosen": tuple(one for one in self.chosen if one.dataset == dataset)}
        )

    def settings_for(self, shots: int, seed: int) -> dict[str, Any]:
        """The settings for a support set, of the dataset that this is `on`: the narrowest that were chosen for it."""
        fits = [
            one for one in self.chosen if one.shots in (None, shots) and one.seed in (None, seed)
        ]
        narrow = max(
            fits, key=lambda one: (one.shots is not None) + (one.seed is not None), default=self
        )
        return narrow.settings


class Fuser(Method):
    """A fuser with settings of one's own."""

    fuser: str


class Head(Method):
    """A head with settings of one's own."""

    head: str


# keys whose defaults change no number, or leave all as it is: the plan does not list them
NO_NUMBER = frozenset(
    (
        *("name", "data_root", "limit", "compute", "tracking", "save_fusers", "log_trials"),
        *("seconds", "core_seconds", "batch", "max_concurrent_trials", "trial_cpus", "retries"),
        *("error_budget", "alone", "held_out", "regression", "notify"),
    )
)


class Inputs(Strict):
    """What a campaign and a search have in common: images, backbones, and how many labels there are."""

    name: Annotated[Name, How("a label of reports and runs")] = "campaign"  # or its file's
    workspace: Annotated[str, Field(min_length=1), How("where artefacts lie")]
    data_root: Annotated[str, How("where files lie; what is in them counts")] = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    backbones: tuple[str, ...] = Field(min_length=1)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    # `all`: every labelled image, and the whole train split is embedded
    shots: tuple[Shots, ...] = (1, 4, 16)
    seeds: int = Field(5, ge=1)
    folds: int = Field(
        5, ge=2
    )  # at most, of cross-fitting where head and fuser live on the same labels
    max_pixels: int = Field(
        100_000_000, ge=1
    )  # larger images are refused, unread, as decompression bombs
    limit: int = Field(0, ge=0)  # images per split; 0: all
    compute: Annotated[Compute, How("where and with how much of a machine")] = Compute()
    tracking: Annotated[Tracking, How("who is told of the numbers")] = Tracking()

    @field_validator("shots")
    @classmethod
    def _different_shots(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({number for number in shots if shots.count(number) > 1})
        if twice:
            raise ValueError(
                f"{numbers.named(twice[0])} stands twice: each number of shots is drawn once"
            )
        return shots

    @classmethod
    def name_of_file(cls, stem: str) -> str:
        """The name where a config gives none: its file's, so that two configs of a workspace keep two reports."""
        return stem

    def defaults(self) -> dict[str, Any]:
        """The choices that change a number and that the config left at their defaults."""
        left = set(type(self).model_fields) - self.model_fields_set - NO_NUMBER
        whole = self.model_dump(mode="json")
        return {name: whole[name] for name in type(self).model_fields if name in left}


class Campaign(Inputs):
    """What `jobs.run` takes."""

    heads: tuple[str | Head, ...] = Field(("zero_shot",), min_length=1)
    fusers: tuple[str | Fuser, ...] = ("log_avg", "c_log_avg", "nlc", "guarded")
    save_fusers: bool = False  # keep every fitted fuser beside its scores
    regression: Annotated[Regression, How("looks at numbers that are made already")] = Regression()
    notify: Annotated[str, How("who is told")] = (
        ""  # a webhook that takes JSON: the summary of changes
    )
    alone: bool = True  # fit every fuser on each backbone alone, too: the reference of its synergy
    # part of each class's support images that fusers alone learn from, and heads from the rest; 0: all learn from all,
    # a fuser by what heads say of images that they have not seen (cross-fitting)
    held_out: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _enough_to_hold_out(self) -> Self:
        if self.held_out and self.shots and min(self.shots) < 2:
            raise ValueError(
                f"`held_out: {self.held_out:g}` needs 2 shots or more, one for heads and one for fusers"
            )
        return self
