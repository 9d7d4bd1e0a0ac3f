"""Embeddings of perturbed test images: what there is to make, and making it.

A part is (dataset, "test", perturbation, severity); its embeddings are an artefact like any other, with the
perturbation in its address, and are resumed shard by shard. One row of the Ray dataset is a bundle of shards with all
their variants, so that an image is read and decoded once for all of them.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clipray import fingerprint, perturbations
from clipray.artefacts import embeddings
from clipray.artefacts.bundles import MOST, bundles
from clipray.artefacts.embeddings import Work
from clipray.artefacts.index import Index, Place, Shard
from clipray.config import Backbone, Dataset, Pool, unknown
from clipray.config.robustness import Robustness
from clipray.errors import ConfigError
from clipray.perturbations import CLEAN, PERTURBATIONS
from clipray.progress import doing, progress
from clipray.sources.storage import entries, is_folder, join, resolve, shown
from clipray.steps import failures
from clipray.steps.embed import plan as embed
from clipray.steps.indices import index
from clipray.steps.mappers import in_threads, reader
from clipray.steps.tally import Tally
from clipray.steps.todo import Plan, known_cards
from clipray.steps.watch import shared_out

# copies that one worker makes of a bundle: to perturb takes far longer than to read a row group again, so others help
COPIES = 2**14
GIVEN = "given-"  # before the name of a corruption whose copies lie in a folder


@dataclass(frozen=True)
class Part:
    """The test images of a dataset under one perturbation at one severity, and what of their embeddings is missing."""

    dataset: str
    perturbation: str
    severity: int
    work: Work
    variant: tuple[str, int]  # what is done to the pixels: nothing where they are copies already

    @property
    def name(self) -> tuple[str, str, int]:
        """Which part it is."""
        return self.dataset, self.perturbation, self.severity


def check(campaign: Robustness) -> None:
    """Raise `ConfigError` for an unknown perturbation."""
    for number, name in enumerate(names(campaign)):
        if name not in PERTURBATIONS:
            raise ConfigError(f"perturbations.{number}: {unknown(name, PERTURBATIONS)}")


def names(campaign: Robustness) -> list[str]:
    """List the perturbations that a campaign asks for."""
    every = campaign.perturbations
    return list(PERTURBATIONS) if every == "all" else list(dict.fromkeys(every))


def plan(todo: Plan, campaign: Robustness) -> list[Part]:
    """List the parts of all datasets of a campaign that did not fail.

    Raises:
        ConfigError: copies that are not laid out as they should be.
    """
    known = [dataset.name for dataset in todo.datasets]
    for name in campaign.copies:
        if name not in known:
            raise ConfigError(f"copies: {unknown(name, known)}")
    found = []
    for dataset in todo.datasets:
        if not todo.models(dataset.name):
            continue
        with doing(f"looking at {dataset.name} and its perturbed copies"):
            rows = _index(todo, campaign, dataset)
            wanted = perturbations.variants(names(campaign), campaign.severities)
            found += [_part(todo, campaign, rows, name, severity) for name, severity in wanted]
            found += _copies(todo, campaign, dataset)
    return found


def _index(todo: Plan, campaign: Robustness, dataset: Dataset) -> Index:
    """Index the images to perturb: those that a `limit` of that number would take."""
    limits = [number for number in (campaign.sample, campaign.limit) if number]
    classes = todo.prompts[dataset.name]["classnames"]
    mapper = reader(campaign.compute)
    root = campaign.data_root
    return index(todo.store, dataset, "test", root, mapper, min(limits, default=0), classes)


def _copies(todo: Plan, campaign: Robustness, dataset: Dataset) -> Iterator[Part]:
    """Yield the parts of a folder <corruption>/<severity>/<class>/<image>, as ImageNet-C is laid out."""
    uri = campaign.copies.get(dataset.name)
    if uri is None:
        return
    classes = todo.prompts[dataset.name]["classnames"]
    for corruption, severity, folder in corrupted(resolve(uri, campaign.data_root)):
        copy = Dataset(
            name=dataset.name,
            format="folder",
            uri=folder,
            splits={"test": severity},
            classnames=tuple(classes),
        )
        _check_classes(dataset.name, join(folder, severity), len(classes))
        limits = [number for number in (campaign.sample, campaign.limit) if number]
        rows = index(todo.store, copy, "test", "", in_threads, min(limits, default=0), classes)
        yield _part(todo, campaign, rows, GIVEN + corruption, int(severity), given=True)


def corrupted(place: str) -> list[tuple[str, str, str]]:
    """List (corruption, severity, the corruption's folder) of a folder of corrupted copies.

    Raises:
        ConfigError: it is not laid out as <corruption>/<severity>/<class>/<image>.
    """
    found = []
    for corruption, info in sorted(entries(place).items()):
        folder = join(place, corruption)
        below = entries(folder) if is_folder(info) else {}
        levels = [name for name, each in below.items() if is_folder(each) and name.isdigit()]
        found += [(corruption, level, folder) for level in sorted(levels, key=int)]
    if not found:
        raise ConfigError(
            f"copies: {shown(place)} holds no folders <corruption>/<severity>/<class>/<image>, such as"
            " gaussian_noise/3/…; write the folder that the corruptions lie in"
        )
    return found


def _check_classes(dataset: str, place: str, classes: int) -> None:
    """Check that no class folder is missing: labels number them in order, so those behind it would shift."""
    there = [
        name
        for name, info in entries(place).items()
        if is_folder(info) and not name.startswith(".")
    ]
    if len(there) != classes:
        raise ConfigError(
            f"copies: {dataset} has {classes} classes, but {shown(place)} has {len(there)} class folders; make one"
            " for each class, empty or not, of the same names as those of the clean images"
        )


def _part(
    todo: Plan,
    campaign: Robustness,
    rows: Index,
    name: str,
    severity: int,
    given: bool = False,
) -> Part:
    variant = (CLEAN, 0) if given else (name, severity)
    whats = {spec.name: what(spec, campaign, rows, *variant) for spec in todo.models(rows.dataset)}
    place = ("embeddings", rows.dataset, "test", f"{name}-{severity}")
    addresses = {
        backbone: todo.store.address(*place, backbone, what=whats[backbone]) for backbone in whats
    }
    work = embeddings.lacking(todo.store, rows, addresses, whats)
    return Part(rows.dataset, name, severity, work, variant)


def what(
    spec: Backbone, campaign: Robustness, rows: Index, perturbation: str, severity: int
) -> dict:
    """Return the WHAT of a part's embeddings: that of clean ones, and the perturbation with its code and its level."""
    facts = embeddings.what(spec, campaign, rows)
    if perturbation == CLEAN:
        return facts
    entry = PERTURBATIONS[perturbation]
    return facts | {
        "perturbation": perturbation,
        "severity": severity,
        "level": entry.levels[severity - 1],
        "perturbing": fingerprint.code(entry.apply, perturbations.bounded, perturbations.disturbed),
    }


def items(parts: list[Part]) -> Iterator[dict]:
    """Yield the rows of the Ray dataset: each is a bundle of shards that lack something, for each variant of them."""
    together: dict[Place, list[Part]] = {}
    for part in parts:
        if any(part.work.todo.values()):
            together.setdefault(part.work.index.place, []).append(part)
    for own in together.values():
        work = own[0].work
        lacking = (
            shard for shard in work.shards() if any(part.work.todo[shard.name] for part in own)
        )
        for shards in bundles(work.index, lacking, min(MOST, COPIES // len(own))):
            yield {"task": pickle.dumps([_variant(part, shards) for part in own])}


def _variant(part: Part, shards: Sequence[Shard]) -> dict:
    return embed.bundle(part.work, shards) | {"variant": part.variant, "part": part.name}


def embed_parts(todo: Plan, campaign: Robustness, parts: list[Part]) -> int:
    """Embed what is missing, declare complete what is so, and record failures; return the number of copies embedded."""
    broken: dict[tuple, dict[str, str]] = {}
    told: dict[tuple, dict[str, Tally]] = {}
    done = 0
    total = sum(part.work.images for part in parts)
    with progress("perturbed images", total, "images") as advance:
        for task in _embedded(todo, campaign, parts):
            broken.setdefault(task["part"], {}).update(task["broken"])
            for backbone, errors in task["errors"].items():
                tally = told.setdefault(task["part"], {}).setdefault(backbone, Tally())
                tally.add(task["shard"], task["content"], errors)
            done += len(task["rows"])
            advance(len(task["rows"]))
    for part in parts:
        _settle(todo, campaign, part, broken.get(part.name, {}), told.get(part.name, {}))
    return done


def _embedded(todo: Plan, campaign: Robustness, parts: list[Part]) -> Iterator[dict]:
    """Yield the tasks of all shards of all parts that lack something, as they are done."""
    from clipray.steps.embed.variants import decode_variants

    busy = {name for part in parts for left in part.work.todo.values() for name in left}
    if not busy:
        return
    compute, known = campaign.compute, known_cards(todo)
    names = [spec.name for spec in todo.specs if spec.name in busy]
    own = {name: known[name] for name in names}

    def work(pools: dict[str, Pool], device: str, again: bool) -> Iterator[dict]:
        left = parts
        if again:
            lacking = [embeddings.still_lacking(todo.store, part.work) for part in parts]
            left = [replace(part, work=one) for part, one in zip(parts, lacking, strict=True)]
        return embed.passed(
            todo.store,
            list(items(left)),
            decode_variants,
            todo.specs,
            campaign,
            known,
            pools,
            device,
        )

    shards = sum(part.work.lacking for part in parts)
    yield from shared_out(own, compute, todo.verbose, shards, work)


def _settle(
    todo: Plan,
    campaign: Robustness,
    part: Part,
    broken: dict[str, str],
    told: dict[str, Tally],
) -> None:
    """Finish a part and record what failed as a whole; failed images are recorded among the clean ones already."""
    if len(part.work.done) == len(part.work.addresses):
        return
    budget = campaign.compute.error_budget
    for row in failures.finish(todo.store, part.work, budget, broken, told):
        if row["image_id"] is None:
            name = f"{part.perturbation} {part.severity}"
            todo.failures.append(row | {"split": f"test, {name}"})
