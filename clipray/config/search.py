"""What `jobs.tune` takes: which settings of which methods to choose, from what, and how."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from clipray.config import Inputs, Name, Strict
from clipray.config.names import check

DRAWN = 20  # configurations of a search where a config does not say


class Span(Strict):
    """The values of one setting: exactly one of `choice`, `uniform`, `loguniform`, `int` (bounds included)."""

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    loguniform: tuple[float, float] | None = None
    int_: tuple[int, int] | None = Field(None, alias="int")
    when: Mapping[
        str, tuple[Any, ...]
    ] = {}  # only where these settings, above it, have one of these values

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        bounds = [pair for pair in (self.uniform, self.loguniform, self.int_) if pair]
        if len(bounds) + (self.choice is not None) != 1:
            raise ValueError("give exactly one of choice, uniform, loguniform, int")
        if bounds and not bounds[0][0] < bounds[0][1]:
            raise ValueError("the first bound must be below the second")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError("bounds of loguniform must be positive")
        return self


class Search(Strict):
    """One method and the settings to choose for it."""

    name: Name
    fuser: str
    settings: Mapping[str, Any] = {}  # held fast
    space: Mapping[str, Span] = {}
    head: str = "zero_shot"
    head_settings: Mapping[str, Any] = {}
    head_space: Mapping[str, Span] = {}


class Tune(Inputs):
    """What `jobs.tune` takes."""

    searches: tuple[Search, ...] = Field(min_length=1)
    selection: Literal["per_dataset", "leave_one_dataset_out", "universal"] = (
        "leave_one_dataset_out"
    )
    metric: Literal["nll", "top1"] = "nll"
    sampler: Literal["grid", "random", "tpe"] = "random"
    # configurations of a search, beside its defaults; 0: all of a grid, which alone has an end
    samples: int = Field(default_factory=lambda data: _samples(data.get("sampler")), ge=0)
    scheduler: Literal["none", "asha", "median"] = "none"
    reports: int = Field(
        1, ge=1
    )  # how often an iterative method is looked at in training: curves, and where to stop
    queries: int = Field(
        512, ge=1
    )  # at most, images of the rest of a train split that a fit is scored on
    seed: int = 0  # of the sampler
    seconds: float = Field(0, ge=0)  # no new trial after them; 0: no limit
    core_seconds: float = Field(0, ge=0)  # of fitting, all that is recorded counted; 0: no limit
    batch: int = Field(
        4, ge=1
    )  # configurations that `tpe` draws before it is told of any, at least
    max_concurrent_trials: int = Field(0, ge=0)  # 0: what the cluster holds
    trial_cpus: float = Field(1.0, gt=0)
    retries: int = Field(2, ge=0)  # of a fit that raises, or whose worker dies
    error_budget: float = Field(
        0.1, ge=0
    )  # < 1: a fraction of the fits; else a count; the job fails above it
    log_trials: bool = False  # an MLflow run for each configuration too

    @classmethod
    def name_of_file(cls, stem: str) -> str:
        """The file's name, and that it is a search: a campaign of that name keeps its own report."""
        return stem if stem.endswith("tune") else f"{stem}-tune"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.shots:
            raise ValueError("shots: a search needs labelled images, so numbers from 1 up")
        check(f"{self.name}-best")  # the names of the campaign that scores what was chosen
        for search in self.searches:
            check(f"{search.name}-{search.head}")
            check(f"{search.name}-defaults")
        if self.sampler != "grid" and not self.samples:
            raise ValueError(
                "samples: say how many configurations to draw (only a grid has an end)"
            )
        if self.scheduler != "none" and self.reports < 2:
            raise ValueError(
                "reports: a scheduler needs several in a training, such as reports: 10"
            )
        return self


def _samples(sampler: str | None) -> int:
    return 0 if sampler == "grid" else DRAWN
