"""What a campaign consists of, and what of it is missing: the record that its steps hand on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clipray.artefacts import cards, classifiers
from clipray.artefacts.embeddings import Work
from clipray.artefacts.given import Given
from clipray.config import Backbone, Campaign, Dataset
from clipray.errors import ErrorBudget
from clipray.steps import failures
from clipray.steps.mappers import Mapper
from clipray.store import Store


class Looker(NamedTuple):
    """All that datasets are looked at with.

    Attributes:
        mapper: how sources are read.
        whole: whether whole train splits are looked at, and not only the support sets.
    """

    store: Store
    specs: Sequence[Backbone]
    campaign: Campaign
    mapper: Mapper
    whole: bool


@dataclass
class Plan:
    """What a campaign consists of, and what of it is missing."""

    campaign: Campaign
    store: Store
    specs: list[Backbone]
    datasets: list[Dataset]
    prompts: dict[str, dict]  # by dataset: class names and templates
    works: dict[tuple[str, str], Work]  # by (dataset, split)
    classifiers: dict[str, dict]  # by backbone with something missing: the datasets' prompts
    looker: Looker  # what the datasets were looked at with
    given: dict[str, Given] = field(default_factory=dict)  # by dataset of given vectors
    verbose: bool = False
    failures: list[dict] = field(default_factory=list)  # `failures.failure` rows
    remarks: list[str] = field(default_factory=list)  # on the data, for a person
    started: float = field(default_factory=time.time)  # in seconds since 1970
    spent: dict = field(default_factory=dict)  # what embedding took in this run, see `spent.Spent`

    @property
    def failed(self) -> list[dict]:
        """What failed as a whole and is left out: datasets, backbones, and backbones on one dataset."""
        return [row for row in self.failures if row["image_id"] is None]

    def usable(self, dataset: str) -> list[str]:
        """Return the backbones that a dataset is evaluated with; none where the dataset itself has failed."""
        own = self.given.get(dataset)
        # given vectors need no model to load, unless it is to make their class vectors
        places = (dataset,) if own else (None, dataset)
        here = [row for row in self.failed if row["dataset"] in places]
        if any(row["backbone"] is None for row in here):
            return []
        out = {row["backbone"] for row in here}
        names = own.facts if own else [spec.name for spec in self.specs]
        if own:
            lost = {row["backbone"] for row in self.failed if row["dataset"] in (None, dataset)}
            out |= {name for name, tower in own.towers.items() if tower.name in lost}
        return [name for name in names if name not in out]

    def models(self, dataset: str) -> list[Backbone]:
        """Return those of `usable` that embed images; none for a dataset of given vectors."""
        names = () if dataset in self.given else self.usable(dataset)
        return [spec for spec in self.specs if spec.name in names]

    def names(self, dataset: str) -> str:
        """Return the address of the index that says by which names train images are drawn; empty: by their ids."""
        work = self.works.get((dataset, "train"))
        return "" if work is None or dataset in self.given else work.index.address

    @property
    def loaded(self) -> dict[str, Backbone]:
        """The backbones that are loaded, by name: for images, or for class vectors of given image vectors."""
        towers = [tower for given in self.given.values() for tower in given.towers.values()]
        return {spec.name: spec for spec in [*towers, *self.specs]}

    @property
    def images(self) -> int:
        """Images in shards that lack an embedding."""
        return sum(work.images for work in self.works.values())

    @property
    def busy(self) -> list[str]:
        """Backbones with images to embed."""
        todo = {
            name for work in self.works.values() for names in work.todo.values() for name in names
        }
        return [spec.name for spec in self.specs if spec.name in todo]


def classifier_place(todo: Plan, spec: Backbone, dataset: str) -> str:
    """Return the address of a backbone's class vectors of a dataset."""
    prompts, precision = todo.prompts[dataset], todo.campaign.precision
    return classifiers.address(todo.store, spec, precision, dataset, prompts)


def known_cards(todo: Plan) -> dict[str, dict | None]:
    """Each backbone's card; None where it has none, because it does not load."""
    loaded = todo.loaded
    found = cards.read_many(todo.store, list(loaded.values()), todo.campaign.precision)
    return dict(zip(loaded, found, strict=True))


def require_all(todo: Plan) -> None:
    """Raise `ErrorBudget` where anything has failed as a whole, for a step that needs all datasets and backbones."""
    if todo.failed:
        raise ErrorBudget("; ".join(told(todo.failed)))


def told(failed: list[dict]) -> list[str]:
    """Write what failed as a whole, one sentence each; the same failure of several splits or datasets is told once."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in failed:
        split = f"/{row['split']}" if row["split"] else ""
        where = f"{row['dataset']}{split}" if row["dataset"] else "every dataset"
        places.setdefault((row["backbone"] or "", row["error"]), []).append(where)
    return [
        f"{backbone + ' on ' if backbone else ''}{', '.join(where)}: {error}"
        for (backbone, error), where in places.items()
    ]


def record(todo: Plan, step: str, failed: dict[str, str]) -> None:
    """Add datasets that failed, with the reasons, in the order of the campaign."""
    for dataset in todo.datasets:
        if dataset.name in failed:
            row = failures.failure(step, failed[dataset.name], dataset=dataset.name)
            todo.failures.append(row)
