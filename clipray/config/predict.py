"""What `jobs.fit` and `jobs.predict` take: one fusion to make, and a model to apply."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from clipray import shots as numbers
from clipray.config import Compute, Fuser, Head, Name, Strict, Tracking
from clipray.fingerprint import How

Labels = Annotated[  # labelled images of each class: none, a number, or `all`
    int,
    BeforeValidator(numbers.read),
    Field(ge=0),
    PlainSerializer(numbers.named, return_type=int | str, when_used="json"),
]


class Cascade(Strict):
    """Backbones run in order of cost, and sure images leave, by thresholds from the support set alone."""

    max_accuracy_drop: float | None = Field(
        None, ge=0, lt=1
    )  # of top-1 against the full fusion, a fraction
    max_gflops: float | None = Field(None, gt=0)  # per image on average
    confidence: float = Field(0.9, gt=0, lt=1)  # that the promise holds, over support sets

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.max_accuracy_drop is None) == (self.max_gflops is None):
            raise ValueError("give either `max_accuracy_drop` or `max_gflops`")
        return self


class Fit(Strict):
    """What `jobs.fit` takes: a fusion of one's own, or a campaign to take the best one of."""

    name: Name = "fused"  # of the model in MLflow's registry; by default its file's
    workspace: Annotated[str, How("where artefacts lie")] = ""
    from_campaign: str = ""  # a campaign's YAML: its best method by held-out support score
    choose_by: Literal["nll", "top1"] = "nll"  # held out, on the support set alone
    data_root: Annotated[str, How("where files lie; what is in them counts")] = ""
    dataset: str = ""
    # in place of a dataset, where no label is used
    classnames: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {c}.",)
    backbones: tuple[str, ...] = ()
    # keep as many of them, those that fuse best on the support set; by default all
    which_backbones: int | None = Field(None, ge=1)
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    head: str | Head = "zero_shot"
    fuser: str | Fuser = ""  # by default `guarded` where there are labels, else `log_avg`
    # 0: no label at all. By default 16, or a campaign's most
    shots: Labels | None = None
    seed: int = Field(0, ge=0)  # number of the support set
    folds: int = Field(5, ge=2)
    cascade: Cascade | None = None  # by default every image sees every backbone
    max_pixels: int = Field(100_000_000, ge=1)
    limit: int = Field(0, ge=0)
    alias: Annotated[str, How("what a version is called in the registry")] = "champion"
    compute: Annotated[Compute, How("where and with how much of a machine")] = Compute()
    tracking: Annotated[Tracking, How("who is told of the numbers")] = Tracking()

    @field_validator("alias")
    @classmethod
    def _an_alias(cls, alias: str) -> str:
        taken = alias == "latest" or (alias[:1] == "v" and alias[1:].isdigit())
        if taken or not all(sign.isascii() and (sign.isalnum() or sign in "-_") for sign in alias):
            raise ValueError(
                "letters, digits, `-` and `_`; `latest` and v<number> are MLflow's own"
            )
        return alias

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        own = [key for key in ("classnames", "backbones", "fuser") if getattr(self, key)]
        if self.from_campaign:
            if own:
                raise ValueError(f"leave out `{own[0]}`: `from_campaign` says it")
            return self
        if not self.workspace:
            raise ValueError("`workspace` is missing: a folder or an s3:// URI")
        if not self.backbones:
            raise ValueError("`backbones` is missing: names or groups of configs/backbones.yaml")
        if bool(self.dataset) == bool(self.classnames):
            raise ValueError(
                "give exactly one of `dataset` and `classnames`, or `from_campaign: <a campaign's YAML>`"
            )
        if not all(name.strip() for name in self.classnames):
            raise ValueError("`classnames`: one is empty")
        if self.classnames and self.shots != 0:
            raise ValueError("class names alone have no labelled images: write `shots: 0`")
        return self

    @classmethod
    def name_of_file(cls, stem: str) -> str:
        """The name where a config gives none."""
        return stem


class Predict(Strict):
    """What `jobs.predict` takes."""

    name: Annotated[Name, How("a label of the result")] = "predictions"
    workspace: Annotated[str, Field(min_length=1), How("where artefacts lie")]
    # a fused model: its folder, `s3://…`, `models:/<name>@<alias>` (of `tracking.uri`, or this workspace's)
    model: str = Field(min_length=1)
    # a data set's name, YAML or folder; a folder of images; a text file of paths; a Parquet file or a folder of them
    images: str = Field(min_length=1)
    split: Literal["train", "test"] = "test"  # of a data set
    labels: Literal["auto", "ignore"] = "auto"
    # a fuser that the images to be labelled teach (`transductive`, `guarded`) learns from all of them first
    learn: bool = True
    data_root: Annotated[str, How("where files lie; what is in them counts")] = ""
    keep_embeddings: Annotated[bool, How("writes more, changes nothing")] = False
    limit: int = Field(0, ge=0)
    compute: Annotated[Compute, How("where and with how much of a machine")] = Compute()
    tracking: Annotated[Tracking, How("where models:/ is looked up")] = Tracking()

    @classmethod
    def name_of_file(cls, stem: str) -> str:
        """The name where a config gives none."""
        return stem
