"""Typed, frozen configs: WHAT is computed apart from HOW, and the fingerprint of a WHAT.

A config file is YAML that holds values only. Unknown or missing keys, wrong types and impossible values raise
`ConfigError` with the dotted path, before any work starts.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from clipray.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Strict(BaseModel):
    """Frozen, and refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Dataset(Strict):
    """One labelled image set: what a file of `configs/datasets/` holds."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    format: str
    uri: str = ""
    splits: dict[str, str] = {"train": "train", "test": "test"}
    classnames: tuple[str, ...] | str = "classnames.txt"
    templates: tuple[str, ...] | str = "zeroshot_classification_templates.txt"
    options: dict[str, Any] = {}

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


class Backbone(Strict):
    """One CLIP model: an open_clip architecture with a pretrained tag, or with weights of one's own."""

    name: str
    architecture: str
    pretrained: str = ""
    weights: str = ""
    config: str = ""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.pretrained) == bool(self.weights):
            raise ValueError(
                "give exactly one of `pretrained` (an open_clip tag) and `weights` (a path or s3:// URI)"
            )
        return self


class Pool(Strict):
    """Size and resources of one backbone's actor pool."""

    size: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)


class Compute(Strict):
    """HOW the work is done; never changes bytes beyond float tolerance, so it is in no fingerprint."""

    address: str = ""  # a Ray cluster to join; empty: the one this process is in, or a local one
    batch_size: int = Field(64, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    pools: dict[str, Pool] = {}  # by backbone name; default: shared out by measured cost
    decode_cpus: float = Field(0.5, gt=0)
    decode_memory: int = Field(512 * 2**20, ge=1)  # bytes of heap that a decoding task may take
    max_retries: int = Field(2, ge=0)
    error_budget: float = Field(0.1, ge=0)  # < 1: a fraction of a split's images; else a count


class Tracking(Strict):
    """Where MLflow records go."""

    uri: str = ""  # default: an sqlite file in the workspace
    experiment: str = "clipray"
    enabled: bool = True


class Chosen(Strict):
    """Settings that hold for one dataset, or for one support set of it."""

    dataset: str
    shots: int | None = None
    seed: int | None = None
    settings: dict[str, Any]


class Method(Strict):
    """Settings of one's own, under a name of its own; on a dataset or support set that `chosen` names, others."""

    name: str
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


class Inputs(Strict):
    """What a campaign and a search have in common: images, backbones, and how many labels there are."""

    name: str = "campaign"
    workspace: str
    data_root: str = ""
    datasets: tuple[str, ...] = Field(min_length=1)
    backbones: tuple[str, ...] = Field(min_length=1)
    precision: Literal["fp32", "fp16", "bf16"]
    shots: tuple[int, ...] = ()
    seeds: int = Field(ge=1)
    folds: int = Field(
        5, ge=2
    )  # at most, of cross-fitting where head and fuser live on the same labels
    max_pixels: int = Field(
        100_000_000, ge=1
    )  # larger images are refused, unread, as decompression bombs
    limit: int = Field(0, ge=0)  # images per split; 0: all
    compute: Compute = Compute()
    tracking: Tracking = Tracking()


class Campaign(Inputs):
    """What `jobs.run` takes."""

    heads: tuple[str | Head, ...] = Field(min_length=1)
    fusers: tuple[str | Fuser, ...] = ()
    save_fusers: bool = False  # keep every fitted fuser beside its scores


class Pretrain(Strict):
    """What `jobs.pretrain` takes."""

    name: str
    workspace: str
    architecture: str  # an open_clip model config (JSON): absolute, or relative to configs/
    corpus: str  # Parquet files or a folder of them
    image: str = "image"  # column of encoded bytes, or of structs with a field `bytes`
    caption: str = "caption"
    data: str = ""  # what the corpus is and under what terms, for the model card
    output: str  # where the weights go: absolute, or relative to configs/
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)  # images a step, over all workers
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_steps: int = Field(ge=1)
    clip_norm: float = Field(1.0, gt=0)
    max_scale: float = Field(100.0, gt=1)
    precision: Literal["fp32", "bf16"]  # fp16 would want its loss scaled
    shift: int = Field(ge=0)  # augmentation: pixels moved at most
    jitter: float = Field(ge=0, lt=1)  # augmentation: contrast and brightness
    held_out: float = Field(0.02, gt=0, lt=1)  # fraction of the images, by hash
    seed: int = 0
    shuffle_buffer: int = Field(8192, ge=1)
    cache: bool = True  # decode once and keep the crops in the object store
    workers: int = Field(1, ge=1)
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    threads: int = Field(1, ge=1)
    max_failures: int = Field(3, ge=0)
    tracking: Tracking = Tracking()


Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file; `ConfigError` where it is missing or is not one."""
    try:
        value = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold `key: value` lines")
    return value


def apply_sets(values: dict, sets: list[str]) -> dict:
    """Values with each `a.b=c` of `--set` laid over them; c is read as YAML."""
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write it as key.subkey=value")
        *parents, leaf = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text}: {parent} holds a value, not keys")
        try:
            place[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text}: {value} is not YAML ({error.problem})") from error
    return values


def parse(model: type[Model], values: dict, origin: str) -> Model:
    """A checked `model`; `ConfigError` names each bad dotted path and the known keys."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{origin}:"]
        for problem in error.errors():
            path = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
            lines.append(f"  {path}: {problem['msg']}")
            if problem["type"] == "extra_forbidden":
                lines.append(
                    f"    known keys: {', '.join(_known_keys(model, problem['loc'][:-1]))}"
                )
        raise ConfigError("\n".join(lines)) from error


def load(model: type[Model], path: str | Path, sets: list[str] | None = None) -> Model:
    """Read, override and check a config file."""
    return parse(model, apply_sets(read_yaml(path), sets or []), str(path))


def check_value(kind: Any, value: Any, where: str) -> None:
    """`ConfigError` unless the value is of the type, by its annotation; a list may stand for a tuple."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {value!r}: {error.errors()[0]['msg']}") from error


def check_settings(settings: Any, changes: Mapping[str, Any], where: str) -> None:
    """`ConfigError` unless every change names a field of the dataclass and has its type; reaches into nested ones."""
    hints = get_type_hints(type(settings))
    for key, value in changes.items():
        if key not in hints:
            raise ConfigError(f"{where}: there is no {key!r}; known: {', '.join(hints)}")
        now = getattr(settings, key)
        if is_dataclass(now) and isinstance(value, Mapping):
            check_settings(now, value, f"{where}.{key}")
        else:
            check_value(hints[key], value, f"{where}.{key}")


def _known_keys(model: Any, path: tuple) -> list[str]:
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            model = field.annotation
    return list(getattr(model, "model_fields", {}))


def fingerprint(what: Any) -> str:
    """The address of a WHAT: 16 hex digits of the hash of its canonical JSON.

    Args:
        what: a config object or anything JSON can hold (configs inside are dumped whole, so no field is forgotten).

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """

    def plain(value: Any) -> Any:
        return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)

    text = json.dumps(what, sort_keys=True, default=plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
