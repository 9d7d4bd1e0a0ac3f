"""What a campaign finds of its datasets, many of them at a time: prompts, indices, and what is not embedded yet."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from clipray import backbones, catalog, snapshot, sources
from clipray.artefacts import embeddings
from clipray.artefacts.embeddings import Work
from clipray.artefacts.given import Given
from clipray.artefacts.index import Index
from clipray.config import Campaign, Dataset
from clipray.progress import doing, progress
from clipray.shots import ALL
from clipray.steps.embed import given as brought
from clipray.steps.evaluate import teach as meta
from clipray.steps.index.drawable import drawable, few_images
from clipray.steps.index.pool import pool
from clipray.steps.indices import listed, source
from clipray.steps.todo import Looker

AT_ONCE = 16  # datasets that are looked at together: most of it is waiting for storage


class Found(NamedTuple):
    """What there is of a dataset.

    Attributes:
        prompts: its class names and templates.
        works: by split, what it lacks.
        remarks: for a person.
        given: what is told of vectors that come with the dataset; None where it has images.
    """

    prompts: dict[str, list[str]]
    works: dict[str, Work]
    remarks: list[str]
    given: Given | None = None


def train(looker: Looker, work: Work, prompts: dict[str, list[str]]) -> Work:
    """Look again at a train split, and return what it lacks now; what takes the place of others is read beforehand."""
    if work.index.of is None:
        return work
    return _pooled(looker, work.index.of, work.index.apart, len(prompts["classnames"]), read=True)


def look(looker: Looker, datasets: Sequence[Dataset]) -> Iterator[Found]:
    """Look at many datasets at a time, and yield what is found of each, in order.

    Raises:
        ConfigError: of the first dataset that cannot be used.
    """
    splits = sum(len(dataset.splits) for dataset in datasets)
    with progress("index", splits, "splits") as advance, ThreadPoolExecutor(AT_ONCE) as threads:
        named = {dataset.name: dataset for dataset in datasets}
        coming: dict[str, Future] = {}
        for group in snapshot.groups(named):
            seen = threads.submit(snapshot.take, looker.store, group)
            for name in group:
                coming[name] = threads.submit(_look_at, looker, seen, named[name])
        try:
            for dataset in datasets:
                with doing(f"looking at {dataset.name}"):
                    yield coming.pop(dataset.name).result()
                advance(len(dataset.splits))
        finally:
            for found in coming.values():
                found.cancel()


def needs_whole(campaign: Campaign) -> bool:
    """Tell whether a method looks at images of the train split outside the support sets."""
    from clipray.steps import checks

    entries = checks.entries(campaign)
    if not campaign.shots or ALL in campaign.shots or any(meta.is_untaught(one) for one in entries):
        return True
    return any(checks.unlabelled(one) == "train" for one in entries)


def _look_at(looker: Looker, seen: Future, dataset: Dataset) -> Found:
    """Look at a dataset by the snapshot of it, once that is taken."""
    store = seen.result()[dataset.name]
    found = _look(looker._replace(store=store), dataset)
    snapshot.remember(store)
    return found


def _look(looker: Looker, dataset: Dataset) -> Found:
    if dataset.given:
        return _look_given(looker, dataset)
    store, campaign, root = looker.store, looker.campaign, looker.campaign.data_root
    prompts = {
        "classnames": sources.classnames(dataset, root),
        "templates": sources.templates(dataset, root),
    }
    names = prompts["classnames"]
    remarks = list(sources.remarks(dataset, root))
    indices = {}
    for split in dataset.splits:
        drawn = split == "train" and not looker.whole
        files = source(store, dataset, split, root, names)
        indices[split] = listed(files, looker.mapper, campaign.limit, drawn)
        remarks += indices[split].remarks
    works = {split: _work(looker, split, indices, len(names)) for split in indices}
    if "train" in indices:
        remarks += [text for text in works["train"].index.remarks if text not in remarks]
    if "train" in indices and campaign.shots:
        labels = works["train"].index.labels
        if not any(index.listed or index.of for index in (*indices.values(), works["train"].index)):
            labels = drawable(store, indices["train"], indices["test"], looker.mapper)
        remarks += few_images(labels, len(names), campaign.shots)
    return Found(prompts, works, [f"{dataset.name}: {text}" for text in remarks])


def _work(looker: Looker, split: str, indices: dict[str, Index], classes: int) -> Work:
    """Find what a split lacks; of a train split of which only support sets are looked at, what these may hold.

    Where all of its images have been embedded already, that serves.
    """
    store, campaign, index = looker.store, looker.campaign, indices[split]
    if split == "test" or looker.whole:
        return embeddings.plan(store, looker.specs, campaign, index)
    if not index.listed and embeddings.is_embedded(store, looker.specs, campaign, index):
        return embeddings.plan(store, looker.specs, campaign, index)
    return _pooled(looker, index, indices["test"], classes)


def _look_given(looker: Looker, dataset: Dataset) -> Found:
    """Check the vectors that come with a dataset; the campaign writes them."""
    store, campaign = looker.store, looker.campaign
    names = sources.classnames(dataset, campaign.data_root)
    own = catalog.own_backbones(dataset, campaign.backbones)
    models = catalog.text_towers(dataset, own)
    templates = sources.templates(dataset, campaign.data_root) if models else []
    prompts = {"classnames": names, "templates": templates}
    towers = {name: backbones.pinned(models[name]) if name in models else None for name in own}
    given = brought.plan(store, dataset, towers, campaign, prompts)
    remarks = brought.remarks(given, campaign)
    if "train" in given.works and campaign.shots:
        indices = [given.works[split].index for split in ("train", "test")]
        labels = drawable(store, *indices, looker.mapper)
        remarks += few_images(labels, len(names), campaign.shots)
    return Found(prompts, given.works, [f"{dataset.name}: {text}" for text in remarks], given)


def _pooled(looker: Looker, train: Index, test: Index, classes: int, read: bool = False) -> Work:
    """Find what the images of a train split lack that support sets may hold.

    Images of the pool that have no embedding are drawn by no support set, so others take their place.

    Args:
        read: whether images are read before they join the pool.
    """
    store, campaign = looker.store, looker.campaign
    drawn = classes, campaign.shots, campaign.seeds, looker.mapper
    unusable: set[str] = set()
    while True:
        part = pool(store, train, test, *drawn, unusable, read or bool(unusable))
        work = embeddings.plan(store, looker.specs, campaign, part)
        failed = {image_id for done in work.done.values() for image_id in done["errors"]}
        if work.images or failed <= unusable:
            return work
        unusable |= failed
