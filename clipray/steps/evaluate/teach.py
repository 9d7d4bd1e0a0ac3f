"""What `nlc_meta` has learned for each dataset: on the train splits of the campaign's other datasets, never its own."""

from dataclasses import replace
from typing import Any

from clipray.artefacts import lessons as artefact
from clipray.artefacts.evaluations import Task
from clipray.artefacts.lessons import FUSER
from clipray.config import Compute, Fuser
from clipray.progress import progress
from clipray.steps import cluster
from clipray.store import Store

LEAST = 3  # other datasets; with fewer, the gate stays untaught


def taught(
    store: Store, tasks: list[Task], compute: Compute, verbose: bool
) -> tuple[list[Task], dict[str, str]]:
    """Teach the tasks: put learned weights into the settings of every `nlc_meta` entry that has none of its own.

    Each dataset's episodes are computed once, and each dataset's weights from those of all others; both are artefacts,
    so nothing is done twice. A dataset that fails in it is left out, and the others learn without it.

    Returns:
        the tasks of the datasets that did not fail; by dataset, why the others did.
    """
    entries = {entry.name: entry for task in tasks for entry in task.fusers if is_untaught(entry)}
    failed: dict[str, str] = {}
    weights = {}
    for name, entry in entries.items():
        known = {
            task.dataset: task
            for task in tasks
            if "train" in task.embeddings and task.spaces and task.dataset not in failed
        }
        weights[name] = _weights(store, entry, known, compute, verbose, failed)
    left = [task for task in tasks if task.dataset not in failed]
    return [_with_weights(task, weights) for task in left], failed


def is_untaught(entry: Fuser) -> bool:
    """Tell whether an entry is to be taught on other datasets."""
    return entry.fuser == FUSER and "weights" not in entry.settings


def _with_weights(task: Task, weights: dict[str, dict[str, list]]) -> Task:
    def with_own(entry: Fuser) -> Fuser:
        own = weights.get(entry.name, {}).get(task.dataset)
        return (
            entry.model_copy(update={"settings": entry.settings | {"weights": own}})
            if own
            else entry
        )

    return replace(task, fusers=tuple(with_own(entry) for entry in task.fusers))


def _weights(
    store: Store,
    entry: Fuser,
    known: dict[str, Task],
    compute: Compute,
    verbose: bool,
    failed: dict[str, str],
) -> dict[str, list[float]]:
    """Learn, for each dataset, the weights from all others; add to `failed` the datasets where that is not possible."""
    told = {name: artefact.what(task, entry) for name, task in known.items()}
    sources = {name: artefact.address(store, name, one) for name, one in told.items()}
    lessons = _lessons(store, sources, entry)
    if any(store.manifest(place) is None for place, *_ in lessons.values()):
        from clipray.steps.evaluate import lessons as school

        cluster.connect(compute, verbose)
        names = [name for name in known if store.manifest(sources[name]) is None]
        parts = [(store, sources[name], known[name], told[name], entry) for name in names]
        failed |= _each(school.make_episodes, names, parts, "episodes of other datasets", compute)
        sources = {name: source for name, source in sources.items() if name not in failed}
        lessons = _lessons(store, sources, entry)
        names = [name for name in lessons if store.manifest(lessons[name][0]) is None]
        parts = [(store, *lessons[name], entry) for name in names]
        failed |= _each(school.learn, names, parts, "learning from them", compute)
    return {
        name: store.manifest(place)["weights"]
        for name, (place, *_) in lessons.items()
        if name not in failed
    }


def _lessons(
    store: Store, sources: dict[str, str], entry: Fuser
) -> dict[str, tuple[str, list[str], dict]]:
    """Find, for each dataset, the address of its weights, the episodes of the others, and the WHAT of the weights."""
    lessons = {}
    for name in sources:
        others = sorted(source for other, source in sources.items() if other != name)
        if len(others) >= LEAST:
            made_of = artefact.what_of_weights(others, entry)
            place = artefact.address_of_weights(store, name, made_of)
            lessons[name] = (place, others, made_of)
    return lessons


def _each(
    function: Any, names: list[str], items: list[tuple], words: str, compute: Compute
) -> dict[str, str]:
    """Run a task for each dataset; return, by dataset, why it failed."""
    failed = {}
    if items:
        with progress(words, len(items), "datasets") as advance:
            attempts = cluster.attempts(function, items, 1, 0, compute.max_retries)
            for position, _, error in attempts:
                if error is not None:
                    failed[names[position]] = cluster.reason(error)
                advance(1)
    return failed
