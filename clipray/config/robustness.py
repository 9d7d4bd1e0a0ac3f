"""What `jobs.robustness` takes: a campaign, and how its test images are perturbed."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from clipray.config import Campaign, Name


class Robustness(Campaign):
    """A campaign whose test images are perturbed too; a campaign's own config will do."""

    perturbations: Literal["all"] | tuple[str, ...] = "all"
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 3, 5), min_length=1)
    sample: int = Field(0, ge=0)  # test images of each dataset that are perturbed; 0: all
    # dataset → a folder of corrupted copies, <corruption>/<severity>/<class>/<image>, below data_root
    copies: dict[Name, str] = Field(default_factory=dict)

    @field_validator("severities")
    @classmethod
    def _in_order(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(severities)))
