"""Which splits of a campaign get the ids of their images, once these have been embedded."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipray.artefacts.embeddings import Work
from clipray.artefacts.index import Index
from clipray.errors import ConfigError
from clipray.progress import say
from clipray.steps import failures, identify
from clipray.steps.index.pool import settled
from clipray.steps.tally import Tally
from clipray.steps.todo import Plan
from clipray.store import Store

AT_ONCE = 16  # splits: most of it is waiting for storage
Place = tuple[str, str]  # dataset and split
Told = Mapping[Place, Mapping[str, Tally]]


def found(todo: Plan, told: Told) -> set[str]:
    """Give listed splits that some backbone has embedded their ids, and tell people what was found out of them.

    Args:
        told: by split and backbone, what this run's workers told of their shards; the errors of repeated images get
            their new ids.

    Returns:
        the datasets in whose pools some images turned out not to be drawn.
    """
    every = todo.works.items()
    places = [place for place, work in every if _is_ready(todo.store, work, told.get(place, {}))]
    pools = [place for place in places if todo.works[place].index.of]
    _identify(todo, told, [place for place in places if place not in pools])
    before = {name: todo.works[name, "train"].index.labels for name, _ in pools}
    # which of its images stand in the test split too is known by the ids of that one
    _identify(todo, told, [place for place in pools if not _tested(todo, place).listed])
    return {
        name for name, labels in before.items() if todo.works[name, "train"].index.labels != labels
    }


def _tested(todo: Plan, place: Place) -> Index:
    return todo.works[place[0], "test"].index


def _is_ready(store: Store, work: Work, told: Mapping[str, Tally]) -> bool:
    """Tell whether a split lacks ids, and some backbone has left the files of all of its shards.

    What was on its way when a run shared its cluster out anew is there, and nobody has told of it.
    """
    if not work.index.listed:
        return False
    for name, address in work.addresses.items():
        lacking = {shard for shard, wanted in work.todo.items() if name in wanted}
        lacking -= told.get(name, Tally()).shards
        if not lacking or lacking <= set(store.names(address)):
            return True
    return False


def _identify(todo: Plan, told: Told, places: list[Place]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        every = threads.map(lambda place: _identified(todo, place), places)
        for place, (index, errors, reason) in zip(places, every, strict=True):
            work = todo.works[place]
            if reason:
                todo.failures.append(failures.failure("read", reason, *place))
                continue
            for text in set(index.remarks) - set(work.index.remarks):
                say(f"warning: {index.dataset}: {text}")
            for name, tally in told.get(place, {}).items():
                tally.errors |= errors.get(work.addresses[name], {})
            todo.works[place] = replace(work, index=index)


def _identified(todo: Plan, place: Place) -> tuple[Index, identify.Errors, str]:
    """Return the index of a split with its ids, the errors of repeated images, and why it cannot be used, if so."""
    index, mapper = todo.works[place].index, todo.looker.mapper
    if not index.of:
        return *identify.embedded(todo.store, index, mapper), ""
    try:
        return *settled(todo.store, replace(index, apart=_tested(todo, place)), mapper), ""
    except ConfigError as error:  # none of its images can be read
        return index, {}, str(error)
