"""What `nlc_meta` has learned for each dataset: on the train splits of the campaign's other datasets, never its own."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clipray.config import Compute, Fuser
from clipray.progress import progress
from clipray.steps import cluster
from clipray.steps.embed import texts as classifiers
from clipray.steps.evaluate import plan as evaluate
from clipray.steps.evaluate import score as views
from clipray.steps.evaluate.plan import Task
from clipray.store import Store

if TYPE_CHECKING:
    from clipray.numerics.fusers.nlc_meta import Episode, MetaGate

FUSER, HEAD = (
    "nlc_meta",
    "zero_shot",
)  # whatever the head it is applied to: its features hold for any logits
EPISODES = "episodes.safetensors"
LEAST = 3  # other datasets; with fewer, the gate stays untaught
SHOTS, SEEDS, QUERIES, FEWEST = (1, 2, 4, 8, 16), 2, 128, 16


def taught(
    store: Store, tasks: list[Task], compute: Compute, verbose: bool
) -> tuple[list[Task], dict[str, str]]:
    """The tasks, with learned weights in the settings of every `nlc_meta` entry that has none of its own.

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
            if "train" in task.embeddings and task.dataset not in failed
        }
        weights[name] = _weights(store, entry, known, compute, verbose, failed)
    left = [task for task in tasks if task.dataset not in failed]
    return [_with_weights(task, weights) for task in left], failed


def is_untaught(entry: Fuser) -> bool:
    """Whether an entry is to be taught on other datasets."""
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
    """By dataset, the weights learned on all others; `failed` gets the datasets that cannot be learned on or for."""
    from clipray.numerics.fusers import settings_of

    settings = settings_of(FUSER, entry.settings)
    told = {name: what(task, settings) for name, task in known.items()}
    sources = {
        name: store.address("meta", name, "episodes", what=one) for name, one in told.items()
    }
    lessons = _lessons(store, sources, settings)
    if any(store.manifest(place) is None for place, *_ in lessons.values()):
        cluster.connect(compute, verbose)
        names = [name for name in known if store.manifest(sources[name]) is None]
        parts = [(store, sources[name], known[name], told[name], settings) for name in names]
        failed |= _each(make_episodes, names, parts, "episodes of other datasets", compute)
        sources = {name: source for name, source in sources.items() if name not in failed}
        lessons = _lessons(store, sources, settings)
        names = [name for name in lessons if store.manifest(lessons[name][0]) is None]
        parts = [(store, *lessons[name], settings) for name in names]
        failed |= _each(learn, names, parts, "learning from them", compute)
    return {
        name: store.manifest(place)["weights"]
        for name, (place, *_) in lessons.items()
        if name not in failed
    }


def _lessons(
    store: Store, sources: dict[str, str], settings: "MetaGate"
) -> dict[str, tuple[str, list[str], dict]]:
    """By dataset: where its weights lie, the episodes of the others, and the WHAT of the weights."""
    lessons = {}
    for name in sources:
        others = sorted(source for other, source in sources.items() if other != name)
        if len(others) >= LEAST:
            lesson = {"episodes": others, "settings": settings, "code": evaluate.code(learn)}
            lessons[name] = (store.address("meta", name, "weights", what=lesson), others, lesson)
    return lessons


def _each(
    function: Any, names: list[str], items: list[tuple], words: str, compute: Compute
) -> dict[str, str]:
    """Run a task for each dataset; why it failed, by the names of those where it did."""
    failed = {}
    if items:
        with progress(words, len(items), "datasets") as advance:
            attempts = cluster.attempts(function, items, 1, 0, compute.max_retries)
            for position, _, error in attempts:
                if error is not None:
                    failed[names[position]] = cluster.reason(error)
                advance(1)
    return failed


def what(task: Task, settings: "MetaGate") -> dict:
    """The WHAT of a dataset's episodes."""
    data = {
        "embeddings": task.embeddings,  # of the test split the ids, which are never drawn
        "classifiers": task.classifiers,
        "scales": task.scales,
    }
    draws = {"shots": SHOTS, "seeds": SEEDS, "queries": QUERIES, "fewest": FEWEST}
    return {
        "dataset": task.dataset,
        **data,
        **draws,
        "experts": settings.experts,
        "code": evaluate.code(make_episodes),
    }


def make_episodes(store: Store, place: str, task: Task, told: dict, settings: "MetaGate") -> None:
    """Write the episodes of one dataset; reads its train split only."""
    from safetensors.torch import save

    tensors = {}
    for number, one in enumerate(episodes(store, task, settings)):
        named = {
            "features_QEF": one.features_QEF,
            "logits_QEC": one.logits_QEC,
            "base_E": one.base_E,
        }
        tensors |= {f"{number}/{key}": value.contiguous() for key, value in named.items()}
        tensors[f"{number}/labels_Q"] = one.labels_Q.contiguous()
    store.write(f"{place}/{EPISODES}", save(tensors))
    store.finish(place, told)


def episodes(store: Store, task: Task, settings: "MetaGate") -> list["Episode"]:
    """Support sets drawn from the train split, each with up to QUERIES of the other images there."""
    import numpy as np
    import torch

    from clipray.numerics.contracts import Support
    from clipray.numerics.fusers import nlc_meta
    from clipray.numerics.heads import FITTED_HEADS

    weights = tuple(torch.from_numpy(classifiers.read(store, place)) for place in task.classifiers)
    train, head = (
        evaluate.read_train(store, task, len(weights[0])),
        FITTED_HEADS[HEAD],
    )
    states = head.fit([None] * len(weights), head.settings)
    logits_NMC = views.logits(head, states, train.embeddings, weights, task.scales)
    whole = Support(logits_NMC, train.embeddings, train.labels_N)
    found = []
    for draw in evaluate.draw(store, task, train, len(weights[0]), SHOTS, SEEDS).draws:
        rest = np.setdiff1d(np.arange(len(train.image_ids)), draw.rows_K)
        rest = np.random.default_rng(draw.seed).permutation(rest)[:QUERIES]
        if len(rest) >= FEWEST:
            support, query = (whole.take(torch.from_numpy(rows)) for rows in (draw.rows_K, rest))
            found.append(nlc_meta.episode(support, query, settings, task.dataset))
    return found


def learn(store: Store, place: str, others: list[str], lesson: dict, settings: "MetaGate") -> None:
    """Learn a gate's weights from other datasets' episodes; they are kept in the artefact's manifest."""
    from safetensors.torch import load

    from clipray.numerics.fusers import nlc_meta

    found = []
    for source in others:
        tensors = load(store.read(f"{source}/{EPISODES}"))
        for number in sorted({name.partition("/")[0] for name in tensors}, key=int):
            fields = [field for field in nlc_meta.Episode._fields if field != "group"]
            found.append(
                nlc_meta.Episode(*(tensors[f"{number}/{field}"] for field in fields), group=source)
            )
    store.finish(place, lesson, weights=list(nlc_meta.learn(found, settings, nlc_meta.Learning())))
