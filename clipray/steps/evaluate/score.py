"""One head at a time: its logits of support and test images, and every bound and fuser scored on them."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from clipray.artefacts import support_sets
from clipray.artefacts.evaluations import OUTCOMES, SCORES, Task
from clipray.config import Fuser, Head
from clipray.numerics.contracts import Head as FittedHead
from clipray.numerics.contracts import State, Support, nothing
from clipray.numerics.draws import Draw
from clipray.numerics.fusers import FUSERS, grouped, settings_of, singles
from clipray.numerics.fusers.alone import Alone, apply_alone, fit_alone
from clipray.numerics.fusers.unlabelled import Images, taught
from clipray.numerics.heads import HEADS, cross_fit, head_of
from clipray.numerics.heads.cross_fit import View
from clipray.numerics.measures import complementarity, cost
from clipray.steps import read
from clipray.steps.checks import REFERENCE, named_heads
from clipray.steps.evaluate import costs
from clipray.steps.evaluate import fitted as fitted_fusers
from clipray.steps.evaluate.parts import Part, whole
from clipray.steps.evaluate.rows import ALONE, ALONE_ON_TEST, ON_TEST, RESAMPLES, Place, Scores
from clipray.steps.evaluate.spaces import SPACES, score_spaces
from clipray.steps.evaluate.weights import score_weights, weights_of
from clipray.store import Store

States = dict[str, State]  # fitted fusers of one support set, by their entries' names


class Fused(NamedTuple):
    """What one fuser says of the test images."""

    entry: Fuser
    state: State
    log_probs_NC: Tensor


def evaluate(store: Store, task: Task, place: str, what: dict) -> None:
    """Score every head and fuser on one dataset, and write scores and outcomes.

    Args:
        place: the task's address. what: what the address is made of.
    """
    facts, tables = score_part(store, task, place, whole(task))
    for name, table in tables.items():
        store.write_table(f"{place}/{name}", table)
    store.finish(place, what, rows=len(tables[SCORES]), **facts)


def score_part(
    store: Store, task: Task, place: str, part: Part
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """Score some heads on support sets of some sizes; the facts of the support sets, and outcomes and scores by file.

    Of a part without shots 0, the bounds that its fusers are compared with are scored again and not kept.
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
        pool = views if asks_for_pool(task) else None
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
        by (shots, seed), every fitted fuser's state by its name.
    """
    heads = [head_of(entry.head, entry.settings_for(draw.shots, draw.seed)) for draw in drawn]
    parted = [
        cross_fit.parted(head, problem, task.folds, task.held_out)
        for head, problem in zip(heads, problems, strict=True)
    ]
    problems, supports = [one.problem for one in parted], [one.support for one in parted]
    costs.score_choices(scores, entry.name, test, drawn, supports)
    fitted = fit(task, drawn, supports)
    alone = fit_each_alone(task, drawn, supports) if task.alone else [{} for _ in drawn]
    learns = HEADS[entry.head].needs_labels
    if not learns:
        head = head_of(entry.head, entry.settings_for(0, 0))
        batch, more = _images(head, [None] * len(test), test, pool)
        if label_free:
            score_without_support(scores, (entry.name, 0, 0), task, test, batch, more, {})
        else:
            score_limits(scores, (entry.name, 0, 0), batch.logits_NMC)
    every = zip(drawn, heads, problems, fitted, alone, strict=True)
    for draw, head, problem, states, singly in every:
        where = (entry.name, draw.shots, draw.seed)
        if learns:
            batch, more = _images(head, problem, test, pool)
            score_without_support(scores, where, task, test, batch, more, states)
        score_fusers(scores, where, test, batch, apply(task, states, batch, more))
        score_alone(scores, where, task, test, singly, batch, more)
    return {(draw.shots, draw.seed): states for draw, states in zip(drawn, fitted, strict=True)}


def score_without_support(
    scores: Scores,
    where: tuple[str, int, int],
    task: Task,
    test: Sequence[View],
    batch: Images,
    pool: Images | None,
    fitted: States,
) -> None:
    """Score what needs a head's logits and no labels: single backbones, bounds and label-free fusers.

    Args:
        fitted: fusers that stand here with labels already.
    """
    score_bounds(scores, where, test, batch.logits_NMC)
    score_fusers(scores, where, test, batch, apply_label_free(task, batch, pool, fitted))


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
    """Return images as fusers see them under a fitted head."""
    return Images(
        cross_fit.logits(head, states, views), tuple(view.embeddings_ND for view in views)
    )


def fit(task: Task, drawn: Sequence[Draw], supports: Sequence[Support]) -> list[States]:
    """Fit every fuser that needs labels on each support set; return the states by the fuser's name."""
    states: list[States] = [{} for _ in supports]
    for entry in task.fusers:
        if not FUSERS[entry.fuser].needs_labels:
            continue
        changes = [entry.settings_for(draw.shots, draw.seed) for draw in drawn]
        fitted = grouped.fit_each(entry.fuser, supports, changes)
        for own, state in zip(states, fitted, strict=True):
            own[entry.name] = state
    return states


def fit_each_alone(
    task: Task, drawn: Sequence[Draw], supports: Sequence[Support]
) -> list[dict[str, Alone]]:
    """Fit every fuser that needs labels on each backbone alone, for each support set; return the fits by name."""
    found: list[dict[str, Alone]] = [{} for _ in supports]
    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if not fuser.needs_labels or fuser.kind == "reference":
            continue
        changes = [entry.settings_for(draw.shots, draw.seed) for draw in drawn]
        fitted = fit_alone(entry.fuser, supports, changes)
        for own, alone in zip(found, fitted, strict=True):
            own[entry.name] = alone
    return found


def score_alone(
    scores: Scores,
    where: tuple[str, int, int],
    task: Task,
    test: Sequence[View],
    alone: dict[str, Alone],
    batch: Images,
    pool: Images | None,
) -> None:
    """Score fusers on one backbone: the one chosen on the support set, and as a bound the best one on test."""
    head, shots, seed = where
    known = [view.cost for view in test]
    for entry in task.fusers:
        if entry.name not in alone:
            continue
        own = alone[entry.name]
        here = Place(head, f"{ALONE}/{entry.name}", shots, seed)
        highest, best_NC = (-1.0, 0.0), None
        for m, log_probs_NC in enumerate(apply_alone(entry.fuser, own, batch, pool)):
            if m == own.backbone:
                scores.add(here, "alone", log_probs_NC)
            quality = singles.quality(log_probs_NC, scores.labels_N)
            if best_NC is None or quality > highest:
                highest, best_NC = quality, log_probs_NC
        bound = Place(head, f"{ALONE_ON_TEST}/{entry.name}", shots, seed)
        scores.add(bound, "bound", best_NC)
        if any(known):
            dims = (test[own.backbone].classifier_CD.shape[1],)
            state, classes = own.states[own.backbone], best_NC.shape[1]
            added = FUSERS[entry.fuser].flops(state, 1, classes, dims) / 1e9
            scores.plain(here, "alone", cost.method_cost([own.backbone], known, added))


def apply(task: Task, states: States, batch: Images, pool: Images | None) -> Iterator[Fused]:
    """Apply every fuser with a state."""
    for entry in task.fusers:
        if entry.name in states:
            yield _apply(entry, states[entry.name], batch, pool)


def apply_label_free(
    task: Task, batch: Images, pool: Images | None, fitted: States
) -> Iterator[Fused]:
    """Apply every fuser that needs no labels, without those that have a state in `fitted`."""
    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if entry.name in fitted or (fuser.needs_labels and not fuser.without_labels):
            continue
        settings = settings_of(entry.fuser, entry.settings_for(0, 0))
        (state,) = fuser.fit([nothing(*batch)], settings)
        yield _apply(entry, state, batch, pool)


def _apply(entry: Fuser, state: State, batch: Images, pool: Images | None) -> Fused:
    """Let the unlabelled images that the settings name teach the state, then apply it to the batch."""
    state = taught(entry.fuser, state, batch, pool)
    return Fused(entry, state, FUSERS[entry.fuser].apply(state, *batch))


def score_fusers(
    scores: Scores,
    where: tuple[str, int, int],
    test: Sequence[View],
    batch: Images,
    results: Iterator[Fused],
) -> None:
    """Score what fusers give at (head, shots, seed), how they weigh the backbones, and what it costs."""
    head, shots, seed = where
    known = [view.cost for view in test]
    dims = tuple(view.classifier_CD.shape[1] for view in test)
    for entry, state, log_probs_NC in results:
        here = Place(head, entry.name, shots, seed)
        fuser = FUSERS[entry.fuser]
        kind = fuser.kind
        scores.add(here, kind, log_probs_NC)
        if kind != "reference":
            scores.compare(here, *references(entry, here))
        if (weights_NM := weights_of(fuser, state, batch)) is not None:
            score_weights(scores, here, [view.name for view in test], weights_NM, batch)
        if any(known):
            used = cost.backbones_used(state, len(test))
            added = fuser.flops(state, len(test), log_probs_NC.shape[1], dims) / 1e9
            scores.plain(here, kind, cost.method_cost(used, known, added))


def references(entry: Fuser, here: Place) -> tuple[str, str]:
    """Name what a fuser is compared with for its synergy: one backbone with the same labels, and its bound.

    A fuser without labels is a plain single backbone where there is one. With a head that has learned from labels, it
    is the one chosen with them. Without any label nobody can choose one.
    """
    if FUSERS[entry.fuser].needs_labels:
        return f"{ALONE}/{entry.name}", f"{ALONE_ON_TEST}/{entry.name}"
    return (REFERENCE, ON_TEST) if here.shots else ("", ON_TEST)


def score_limits(scores: Scores, where: tuple[str, int, int], logits_NMC: Tensor) -> None:
    """Score the best single backbone on test, and the oracle."""
    head, shots, seed = where
    _, best = singles.best_single_on_test(logits_NMC, scores.labels_N)
    scores.add(Place(head, ON_TEST, shots, seed), "bound", best)
    oracle = singles.oracle(logits_NMC, scores.labels_N)
    scores.add(Place(head, "oracle", shots, seed), "bound", oracle)


def score_bounds(
    scores: Scores, where: tuple[str, int, int], test: Sequence[View], logits_NMC: Tensor
) -> None:
    """Score the single backbones, the best of them on test, the oracle, and how the backbones complement each other."""
    score_limits(scores, where, logits_NMC)
    head, shots, seed = where
    known = [view.cost for view in test]
    names = tuple(view.name for view in test)
    for m, name in enumerate(names):
        here = Place(head, f"single/{name}", shots, seed)
        scores.add(here, "single", singles.single(logits_NMC, m))
        if any(known):
            scores.plain(here, "single", cost.method_cost([m], known, 0.0))
    right_NM = logits_NMC.argmax(-1) == scores.labels_N[:, None]
    for method, kind, metric, value, samples in complementary(
        complementarity.patterns(right_NM), names
    ):
        scores.number(Place(head, method, shots, seed), kind, metric, value, samples)
    costs.score_costs(scores, where, test, logits_NMC)


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
