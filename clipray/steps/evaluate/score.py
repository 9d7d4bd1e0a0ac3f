"""One head at a time: its logits of support and test images, and every bound and fuser scored on them."""

import json
from collections.abc import Iterator
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

from clipray.steps.evaluate.rows import ON_TEST, RESAMPLES, Scores

SPACES = "embeddings"  # stands for a head in the rows of measures that need none
SAMPLE, NEIGHBOURS = 2048, 10

if TYPE_CHECKING:
    from clipray.config import Head
    from clipray.steps.evaluate.plan import Split, Task


def score_head(
    scores: Scores,
    entry: "Head",
    task: "Task",
    drawn: list,
    splits: dict[str, "Split"],
    weights: tuple,
) -> dict[tuple[int, int], dict]:
    """Fit a head and all fusers on every support set, and score them on the test images.

    A head without labels has one set of test logits; one with labels has its own for every support set, and fusers
    are then fitted on the logits that the head gives to support images it has not seen (cross-fitting), so that both
    live on the same labels.

    Args:
        entry: the head, with its settings. drawn: the support sets (`protocol.Draw`).
        weights: M class-vector tensors C×D_m.

    Returns:
        by (shots, seed), every fitted fuser's state by its name.
    """
    from clipray.numerics.heads import FITTED_HEADS, head_of

    name, test = entry.name, splits["test"]
    zero_shot = [head_of(entry.head, entry.settings_for(draw.shots, draw.seed)) for draw in drawn]
    problems = [shots(draw, splits["train"], weights, task.scales) for draw in drawn]
    supports = [
        support(head, problem, task.folds)
        for head, problem in zip(zero_shot, problems, strict=True)
    ]
    fitted = fit(task, drawn, supports)
    by_draw = {(draw.shots, draw.seed): states for draw, states in zip(drawn, fitted, strict=True)}
    if FITTED_HEADS[entry.head].needs_labels:
        for draw, head, problem, states in zip(drawn, zero_shot, problems, fitted, strict=True):
            logits_NMC = logits(
                head, head.fit(problem, head.settings), test.embeddings, weights, task.scales
            )
            place = (name, draw.shots, draw.seed)
            score_bounds(scores, place, task, logits_NMC)
            score_fusers(scores, place, task, apply_label_free(task, logits_NMC, test.embeddings))
            score_fusers(scores, place, task, apply(task, states, logits_NMC, test.embeddings))
        return by_draw
    head, empty = head_of(entry.head, entry.settings_for(0, 0)), [None] * len(weights)
    logits_NMC = logits(head, head.fit(empty, head.settings), test.embeddings, weights, task.scales)
    score_bounds(scores, (name, 0, 0), task, logits_NMC)
    score_fusers(scores, (name, 0, 0), task, apply_label_free(task, logits_NMC, test.embeddings))
    for draw, states in zip(drawn, fitted, strict=True):
        place = (name, draw.shots, draw.seed)
        score_fusers(scores, place, task, apply(task, states, logits_NMC, test.embeddings))
    return by_draw


def shots(draw: Any, train: "Split", weights: tuple, scales: tuple) -> list:
    """What each backbone's head may learn from in one support set: M `fewshot.Shots`."""
    from clipray.numerics.heads import Shots

    return [
        Shots(
            embeddings_ND[draw.rows_K],
            train.labels_N[draw.rows_K],
            weights_CD,
            *scale,
            seed=draw.seed,
        )
        for embeddings_ND, weights_CD, scale in zip(train.embeddings, weights, scales, strict=True)
    ]


def support(head: Any, problem: list, folds: int) -> Any:
    """What a fuser may learn from: the support images' embeddings, labels and cross-fitted logits."""
    import torch

    from clipray.numerics.contracts import Support
    from clipray.numerics.heads import borrowed, cross_fitted

    logits_KMC = torch.stack(
        [cross_fitted(head, one, head.settings, folds) for one in problem], dim=1
    )
    embeddings = tuple(one.embeddings_KD for one in problem)
    labels_K = problem[0].labels_K
    return Support(
        logits_KMC,
        embeddings,
        labels_K,
        seed=problem[0].seed,
        borrowed=borrowed(head, labels_K, folds),
    )


def logits(head: Any, states: list, embeddings: tuple, weights: tuple, scales: tuple) -> Any:
    """A fitted head's logits_NMC of some images."""
    import torch

    every = zip(states, embeddings, weights, scales, strict=True)
    return torch.stack(
        [head.apply(state, e_ND, w_CD, *scale) for state, e_ND, w_CD, scale in every], dim=1
    )


def fit(task: "Task", drawn: list, supports: list) -> list[dict]:
    """For each support set, every label-needing fuser's state by its name; equal settings are fitted at once."""
    from clipray.numerics.fusers import FUSERS, settings_of

    states = [{} for _ in supports]
    for entry in task.fusers:
        fuser, groups = FUSERS[entry.fuser], {}
        for i, draw in enumerate(drawn if fuser.needs_labels else ()):
            own = entry.settings_for(draw.shots, draw.seed)
            groups.setdefault(json.dumps(own, sort_keys=True), (own, []))[1].append(i)
        for own, group in groups.values():
            fitted = fuser.fit([supports[i] for i in group], settings_of(entry.fuser, own))
            for i, state in zip(group, fitted, strict=True):
                states[i][entry.name] = state
    return states


def apply(
    task: "Task", states: dict, logits_NMC: Any, embeddings: tuple
) -> Iterator[tuple[str, Any, Any]]:
    """(name, state, log_probs_NC) of every fuser with a state."""
    from clipray.numerics.fusers import FUSERS

    for entry in task.fusers:
        if entry.name in states:
            state = states[entry.name]
            yield entry.name, state, FUSERS[entry.fuser].apply(state, logits_NMC, embeddings)


def apply_label_free(
    task: "Task", logits_NMC: Any, embeddings: tuple
) -> Iterator[tuple[str, Any, Any]]:
    """(name, state, log_probs_NC) of every fuser that needs no labels."""
    from clipray.numerics.fusers import FUSERS, settings_of

    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if not fuser.needs_labels:
            (state,) = fuser.fit(
                [nothing(logits_NMC, embeddings)],
                settings_of(entry.fuser, entry.settings_for(0, 0)),
            )
            yield entry.name, state, fuser.apply(state, logits_NMC, embeddings)


def nothing(logits_NMC: Any, embeddings: tuple) -> Any:
    """An empty support set: what a label-free fuser is given to fit."""
    import torch

    from clipray.numerics.contracts import Support

    return Support(
        logits_NMC[:0], tuple(e_ND[:0] for e_ND in embeddings), torch.zeros(0, dtype=torch.int64)
    )


def score_fusers(
    scores: Scores, place: tuple, task: "Task", results: Iterator[tuple[str, Any, Any]]
) -> None:
    """Score what fusers give at (head, shots, seed), and what it costs."""
    from clipray.numerics.fusers import FUSERS
    from clipray.numerics.measures import cost

    head, k, seed = place
    kinds = {entry.name: FUSERS[entry.fuser].kind for entry in task.fusers}
    for name, state, log_probs_NC in results:
        here = (head, name, k, seed)
        scores.add(here, kinds[name], log_probs_NC)
        if task.costs:
            used = cost.backbones_used(state, len(task.backbones))
            added = cost.fuser_flops(state, len(task.backbones), log_probs_NC.shape[1]) / 1e9
            scores.plain(here, kinds[name], cost.method_cost(used, task.costs, added))


def score_bounds(scores: Scores, place: tuple, task: "Task", logits_NMC: Any) -> None:
    """Single backbones, the best of them on test, the oracle, and how the backbones complement each other."""
    from clipray.numerics.fusers import singles
    from clipray.numerics.measures import complementarity, cost

    (head, k, seed), names = place, task.backbones
    _, best = singles.best_single_on_test(logits_NMC, scores.labels_N)
    scores.add((head, ON_TEST, k, seed), "bound", best)
    oracle = singles.oracle(logits_NMC, scores.labels_N)
    scores.add((head, "oracle", k, seed), "bound", oracle)
    for m, name in enumerate(names):
        here = (head, f"single/{name}", k, seed)
        scores.add(here, "single", singles.single(logits_NMC, m))
        if task.costs:
            scores.plain(here, "single", cost.method_cost([m], task.costs, 0.0))
    patterns = complementarity.patterns(logits_NMC.argmax(-1) == scores.labels_N[:, None])
    for method, kind, metric, value, samples in complementary(patterns, names):
        scores.number((head, method, k, seed), kind, metric, value, samples)


def complementary(patterns: Any, names: tuple[str, ...]) -> Iterator[tuple]:
    """(method, kind, metric, value, bootstrap samples) of every measure of the set, the backbones and their pairs."""
    from clipray.numerics.measures import complementarity as measures

    again = measures.resample(patterns, RESAMPLES, seed=0)
    resampled = measures.of_set(again)
    for metric, value in measures.of_set(patterns).items():
        yield "set", "measure", metric, value, resampled[metric]
    resampled = measures.by_backbone(again)
    for metric, value_M in measures.by_backbone(patterns).items():
        for m, name in enumerate(names):
            yield f"single/{name}", "single", metric, value_M[m], resampled[metric][..., m]
    resampled = measures.pairs(again)
    for metric, value_MM in measures.pairs(patterns).items():
        for (i, one), (j, other) in permutations(enumerate(names), 2):
            pair, samples = f"pair/{one}/{other}", resampled[metric][..., i, j]
            yield pair, "measure", metric, value_MM[i, j], samples


def score_support(scores: Scores, drawn: list, seeds: int) -> None:
    """Of each number of shots: classes with fewer images, and how many support sets of those asked for differ."""
    for k in sorted({draw.shots for draw in drawn}):
        own = [draw for draw in drawn if draw.shots == k]
        values = {"short_classes": len(own[0].short), "support_sets": len(own), "seeds": seeds}
        numbers = {key: float(value) for key, value in values.items()}
        scores.plain((SPACES, "set", k, 0), "measure", numbers)


def score_spaces(scores: Scores, names: tuple[str, ...], embeddings: tuple, weights: tuple) -> None:
    """How alike the backbones' embedding spaces are, pair by pair: linear CKA and mutual k-NN overlap.

    On the first images by id, which is a hash, so they are a random sample: neighbours cost N². And of each backbone
    the share of class names that its text tower cannot tell from another one.
    """
    from clipray.numerics.heads import zero_shot
    from clipray.numerics.measures import similarity

    for name, weights_CD in zip(names, weights, strict=True):
        share = float(zero_shot.alike(weights_CD).float().mean())
        scores.plain((SPACES, f"single/{name}", 0, 0), "measure", {"alike_names": share})
    sample = [e_ND[:SAMPLE] for e_ND in embeddings]
    for (i, one), (j, other) in combinations(enumerate(names), 2):
        values = {"cka": similarity.cka(sample[i], sample[j])}
        if len(sample[i]) > NEIGHBOURS:
            values["mutual_knn"] = similarity.neighbour_overlap(sample[i], sample[j], NEIGHBOURS)
        for pair in (f"pair/{one}/{other}", f"pair/{other}/{one}"):
            scores.plain((SPACES, pair, 0, 0), "measure", values)
