"""One head at a time: its logits of support and test images, and every bound and fuser scored on them."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipray.artefacts import support_sets
from clipray.artefacts.evaluations import OUTCOMES, SCORES, Task
from clipray.config import Fuser, Head
from clipray.numerics.contracts import Head as FittedHead
from clipray.numerics.contracts import State, nothing
from clipray.numerics.draws import Draw
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.fusers.unlabelled import Images, taught
from clipray.numerics.heads import HEADS, cross_fit, head_of
from clipray.numerics.heads.cross_fit import View
from clipray.numerics.measures import complementarity, cost
from clipray.steps import read, spill
from clipray.steps.checks import REFERENCE, named_heads
from clipray.steps.evaluate import costs
from clipray.steps.evaluate import fitted as fitted_fusers
from clipray.steps.evaluate.fit import States, fit_on_all, fit_on_each
from clipray.steps.evaluate.parts import Part, large, whole
from clipray.steps.evaluate.rows import ALONE, ALONE_ON_TEST, ON_TEST, RESAMPLES, Place, Scores
from clipray.steps.evaluate.spaces import SPACES, score_spaces
from clipray.steps.evaluate.stream import Bounds, Fused, Ready, Singly, stream
from clipray.steps.evaluate.weights import Weights, score_weights
from clipray.store import Store


def evaluate(store: Store, task: Task, place: str, what: dict, device: str = "cpu") -> None:
    """Score every head and fuser on one dataset, and write scores and outcomes.

    Args:
        place: the task's address. what: what the address is made of. device: as in `score_part`.
    """
    facts, tables = score_part(store, task, place, whole(task), device)
    for name, table in tables.items():
        store.write_table(f"{place}/{name}", table)
    store.finish(place, what, rows=len(tables[SCORES]), **facts)


def score_part(
    store: Store, task: Task, place: str, part: Part, device: str = "cpu"
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """Score some heads on support sets of some sizes; the facts of the support sets, and outcomes and scores by file.

    Of a part without shots 0, the bounds that its fusers are compared with are scored again and not kept.

    Args:
        device: where heads and fusers are applied to test images; they are fitted on the CPU.
    """
    weights = read.read_classifiers(store, task)
    classes = len(weights[0])
    split = read.read_split(store, task.embeddings["test"], classes)
    test = read.views_of(task, weights, split)
    drawn, problems, facts, pool = [], [], {}, None
    if "train" in task.embeddings and task.shots:
        train = read.read_train(store, task, classes)
        sets = read.draw(store, task, train, classes, task.shots, task.seeds)
        drawn = [draw for draw in sets.draws if draw.shots in part.shots]
        facts = {"support_sets": sets.address} | support_sets.facts(sets.draws)
        views = read.views_of(task, weights, train)
        pool = [view.to(device) for view in views] if asks_for_pool(task) else None
        problems = [
            cross_fit.shots_of(views, train.labels_N, draw.rows_K, draw.seed) for draw in drawn
        ]
    facts = facts or support_sets.facts([])
    heads = named_heads(task.heads)
    label_free = 0 in part.shots
    scores = Scores(task.dataset, split.image_ids, split.labels_N, task.expected)
    if part.head in ("", heads[0].name):
        score_support(scores, drawn, task.seeds)
        if label_free and task.spaces:
            score_spaces(scores, test)
    test = [view.to(device) for view in test]
    for head in heads:
        if part.head in ("", head.name):
            fitted = score_head(scores, head, task, drawn, problems, test, pool, label_free)
            if task.save_fusers:
                save(store, place, task, head.name, fitted)
    return facts, {
        name: table if label_free else table.filter(pc.greater(table["shots"], 0))
        for name, table in ((OUTCOMES, scores.outcomes()), (SCORES, scores.scores()))
    }


def save(
    store: Store, place: str, task: Task, head: str, fitted: dict[tuple[int, int], States]
) -> None:
    """Write the fitted fusers of one head.

    Args:
        fitted: by (shots, seed), then by the fuser's name.
    """
    about = {
        "dataset": task.dataset,
        "head": head,
        "backbones": task.backbones,
        "classifiers": task.classifiers,
    }
    entries = {entry.name: entry for entry in task.fusers}
    for (shots, seed), states in fitted.items():
        for name, state in states.items():
            file = fitted_fusers.path(place, head, name, shots, seed)
            fitted_fusers.write(store, file, entries[name], state, **about, shots=shots, seed=seed)


def score_head(
    scores: Scores,
    entry: Head,
    task: Task,
    drawn: Sequence[Draw],
    problems: Sequence[list],
    test: Sequence[View],
    pool: Sequence[View] | None = None,
    label_free: bool = True,
) -> dict[tuple[int, int], States]:
    """Fit a head and all fusers on every support set, and score them on the test images.

    A head without labels has one set of test logits; one with labels has its own for every support set, and fusers
    are then fitted on the logits that the head gives to support images it has not seen (cross-fitting), so that both
    live on the same labels.

    Args:
        entry: the head, with its settings. drawn: the support sets.
        problems: by support set, what each backbone's head may learn from (`Shots`).
        pool: the train split's images, whose labels nobody looks at, where a fuser learns from them.
        label_free: whether what needs no labels is scored too, under a head that needs none.

    Returns:
        by (shots, seed), every fitted fuser's state by its name, where they are to be saved.
    """
    free = None
    if not HEADS[entry.head].needs_labels:
        head = head_of(entry.head, entry.settings_for(0, 0))
        free = batch, more = _images(head, [None] * len(test), test, pool)
        ready = [*ready_label_free(task, batch, more, {})] if label_free else []
        bounds = Bounds(len(test), scores.labels_N, every=label_free)
        score_images(scores, (entry.name, 0, 0), test, batch, bounds, ready, [])
    # All support sets are fitted together, where what they are fitted on is small.
    step = 1 if large(task, len(test[0].classifier_CD)) else max(1, len(drawn))
    kept: dict[tuple[int, int], States] = {}
    for at in range(0, len(drawn), step):
        some = drawn[at : at + step], problems[at : at + step]
        fitted = score_draws(scores, entry, task, *some, test, pool, free)
        if task.save_fusers:
            kept |= fitted
    return kept


def score_draws(
    scores: Scores,
    entry: Head,
    task: Task,
    drawn: Sequence[Draw],
    problems: Sequence[list],
    test: Sequence[View],
    pool: Sequence[View] | None,
    free: tuple[Images, Images | None] | None,
) -> dict[tuple[int, int], States]:
    """Do what `score_head` does on some support sets.

    Args:
        free: test images and pool as fusers see them under a head that needs no labels.
    """
    heads = [head_of(entry.head, entry.settings_for(draw.shots, draw.seed)) for draw in drawn]
    parted = [
        cross_fit.parted(head, problem, task.folds, task.held_out, spill.room)
        for head, problem in zip(heads, problems, strict=True)
    ]
    problems, supports = [one.problem for one in parted], [one.support for one in parted]
    costs.score_choices(scores, entry.name, test, drawn, supports)
    fitted = fit_on_all(task, drawn, supports)
    alone = fit_on_each(task, drawn, supports) if task.alone else [{} for _ in drawn]
    del parted, supports  # their logits may be the largest that there is
    every = zip(drawn, heads, problems, fitted, alone, strict=True)
    for draw, head, problem, states, singly in every:
        where = (entry.name, draw.shots, draw.seed)
        batch, more = free or _images(head, problem, test, pool)
        bounds, ready = None, []
        if free is None:
            bounds = Bounds(len(test), scores.labels_N)
            ready = [*ready_label_free(task, batch, more, states)]
        ready += ready_fitted(task, states, batch, more)
        each = [
            Singly(one, singly[one.name], batch, more, scores.labels_N)
            for one in task.fusers
            if one.name in singly
        ]
        score_images(scores, where, test, batch, bounds, ready, each)
    return {(draw.shots, draw.seed): states for draw, states in zip(drawn, fitted, strict=True)}


def score_images(
    scores: Scores,
    where: tuple[str, int, int],
    test: Sequence[View],
    batch: Images,
    bounds: Bounds | None,
    ready: Sequence[Ready],
    alone: Sequence[Singly],
) -> None:
    """Score bounds, fusers, and fusers on each backbone alone, at (head, shots, seed), in one pass over the images."""
    fused = [Fused(one, scores.labels_N) for one in ready]
    moving = [Weights(*one, scores.labels_N) for one in ready if FUSERS[one.entry.fuser].weights]
    stream(batch, [*([bounds] if bounds else []), *fused, *moving, *alone])
    if bounds:
        score_limits(scores, where, bounds)
    if bounds and bounds.every:
        score_bounds(scores, where, test, batch, bounds)
    for one in fused:
        score_fuser(scores, where, test, one)
    head, shots, seed = where
    for one in moving:
        here = Place(head, one.entry.name, shots, seed)
        score_weights(scores, here, [view.name for view in test], one)
    for one in alone:
        score_alone(scores, where, test, one)


def asks_for_pool(task: Task) -> bool:
    """Tell whether a fuser learns from unlabelled train images."""
    settings = (settings_of(one.fuser, one.settings_for(0, 0)) for one in task.fusers)
    return any(getattr(one, "unlabelled", "") == "train" for one in settings)


def _images(
    head: FittedHead, problem: list, test: Sequence[View], pool: Sequence[View] | None
) -> tuple[Images, Images | None]:
    """Fit a head on `problem`, and give the test images and the pool as fusers see them under it."""
    states = head.fit(problem, head.settings)
    return seen(head, states, test), None if pool is None else seen(head, states, pool)


def seen(head: FittedHead, states: Sequence[State], views: Sequence[View]) -> Images:
    """Return images as fusers see them under a fitted head, where they lie."""
    embeddings = tuple(view.embeddings_ND for view in views)
    states = [state.to(embeddings[0].device) for state in states]
    images = Images(cross_fit.lazy(head, states, views), embeddings)
    with images.here:
        return images._replace(logits_NMC=images.logits_NMC.at_hand())


def score_alone(
    scores: Scores, where: tuple[str, int, int], test: Sequence[View], alone: Singly
) -> None:
    """Score a fuser on one backbone: the one chosen on the support set, and as a bound the best one on test."""
    head, shots, seed = where
    known = [view.cost for view in test]
    entry, own = alone.entry, alone.own
    here = Place(head, f"{ALONE}/{entry.name}", shots, seed)
    scores.add_outcomes(here, "alone", alone.outcomes[own.backbone])
    bound = Place(head, f"{ALONE_ON_TEST}/{entry.name}", shots, seed)
    scores.add_outcomes(bound, "bound", alone.outcomes[alone.best()])
    if any(known):
        classes, dim = test[own.backbone].classifier_CD.shape
        state = own.states[own.backbone]
        added = FUSERS[entry.fuser].flops(state, 1, classes, (dim,)) / 1e9
        scores.plain(here, "alone", cost.method_cost([own.backbone], known, added))


def ready_fitted(task: Task, states: States, batch: Images, pool: Images | None) -> Iterator[Ready]:
    """Teach every fuser with a state what the unlabelled images say that its settings name."""
    for entry in task.fusers:
        if entry.name in states:
            yield Ready(entry, taught(entry.fuser, states[entry.name], batch, pool))


def ready_label_free(
    task: Task, batch: Images, pool: Images | None, fitted: States
) -> Iterator[Ready]:
    """Do so with every fuser that needs no labels, without those that have a state in `fitted`."""
    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if entry.name in fitted or (fuser.needs_labels and not fuser.without_labels):
            continue
        settings = settings_of(entry.fuser, entry.settings_for(0, 0))
        (state,) = fuser.fit([nothing(*batch)], settings)
        yield Ready(entry, taught(entry.fuser, state, batch, pool))


def score_fuser(
    scores: Scores, where: tuple[str, int, int], test: Sequence[View], fused: Fused
) -> None:
    """Score what a fuser gives at (head, shots, seed), and what it costs."""
    head, shots, seed = where
    known = [view.cost for view in test]
    dims = tuple(view.classifier_CD.shape[1] for view in test)
    entry, state = fused.entry, fused.state
    here = Place(head, entry.name, shots, seed)
    fuser = FUSERS[entry.fuser]
    scores.add_outcomes(here, fuser.kind, fused.outcomes)
    if fuser.kind != "reference":
        scores.compare(here, *references(entry, here))
    if any(known):
        used = cost.backbones_used(state, len(test))
        added = fuser.flops(state, len(test), len(test[0].classifier_CD), dims) / 1e9
        scores.plain(here, fuser.kind, cost.method_cost(used, known, added))


def references(entry: Fuser, here: Place) -> tuple[str, str]:
    """Name what a fuser is compared with for its synergy: one backbone with the same labels, and its bound.

    A fuser without labels is a plain single backbone where there is one. With a head that has learned from labels, it
    is the one chosen with them. Without any label nobody can choose one.
    """
    if FUSERS[entry.fuser].needs_labels:
        return f"{ALONE}/{entry.name}", f"{ALONE_ON_TEST}/{entry.name}"
    return (REFERENCE, ON_TEST) if here.shots else ("", ON_TEST)


def score_limits(scores: Scores, where: tuple[str, int, int], bounds: Bounds) -> None:
    """Score the best single backbone on test, and the oracle."""
    head, shots, seed = where
    scores.add_outcomes(Place(head, ON_TEST, shots, seed), "bound", bounds.best())
    scores.add_outcomes(Place(head, "oracle", shots, seed), "bound", bounds.oracle)


def score_bounds(
    scores: Scores,
    where: tuple[str, int, int],
    test: Sequence[View],
    batch: Images,
    bounds: Bounds,
) -> None:
    """Score the single backbones, how they complement each other, and what accuracy costs."""
    head, shots, seed = where
    known = [view.cost for view in test]
    names = tuple(view.name for view in test)
    for m, name in enumerate(names):
        here = Place(head, f"single/{name}", shots, seed)
        scores.add_outcomes(here, "single", bounds.singles[m])
        if any(known):
            scores.plain(here, "single", cost.method_cost([m], known, 0.0))
    for method, kind, metric, value, samples in complementary(
        complementarity.patterns(bounds.right()), names
    ):
        scores.number(Place(head, method, shots, seed), kind, metric, value, samples)
    costs.score_costs(scores, where, test, batch)


def complementary(patterns: Any, names: tuple[str, ...]) -> Iterator[tuple]:
    """Yield (method, kind, metric, value, bootstrap samples) of each measure of the set, of backbones and pairs."""
    again = complementarity.resample(patterns, RESAMPLES, seed=0)
    resampled = complementarity.of_set(again)
    for metric, value in complementarity.of_set(patterns).items():
        yield "set", "measure", metric, value, resampled[metric]
    resampled = complementarity.by_backbone(again)
    for metric, value_M in complementarity.by_backbone(patterns).items():
        for m, name in enumerate(names):
            yield f"single/{name}", "single", metric, value_M[m], resampled[metric][..., m]
    resampled = complementarity.pairs(again)
    for metric, value_MM in complementarity.pairs(patterns).items():
        for (i, one), (j, other) in permutations(enumerate(names), 2):
            pair, samples = f"pair/{one}/{other}", resampled[metric][..., i, j]
            yield pair, "measure", metric, value_MM[i, j], samples


def score_support(scores: Scores, drawn: Sequence[Draw], seeds: int) -> None:
    """Add, for each number of shots, the classes with fewer images, and the number of different support sets."""
    for k in sorted({draw.shots for draw in drawn}):
        own = [draw for draw in drawn if draw.shots == k]
        values = {"short_classes": len(own[0].short), "support_sets": len(own), "seeds": seeds}
        numbers = {key: float(value) for key, value in values.items()}
        scores.plain(Place(SPACES, "set", k, 0), "measure", numbers)
