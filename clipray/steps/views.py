"""One head at a time: its logits of support and test images, and every bound and fuser scored on them."""

from collections.abc import Iterator
from itertools import permutations
from typing import TYPE_CHECKING, Any

from clipray.steps.scoring import ON_TEST, RESAMPLES, Scores

if TYPE_CHECKING:
    from clipray.steps.evaluate import Split, Task


def score_head(
    scores: Scores, name: str, task: "Task", drawn: list, splits: dict[str, "Split"], weights: tuple
) -> None:
    """Fit a head and all fusers on every support set, and score them on the test images.

    A head without labels has one set of test logits; one with labels has its own for every support set, and fusers
    are then fitted on the logits that the head gives to support images it has not seen (cross-fitting), so that both
    live on the same labels.

    Args:
        name: the head. drawn: the support sets (`protocol.Draw`). weights: M class-vector tensors C×D_m.
    """
    from clipray.numerics.fewshot import FITTED_HEADS

    head, test = FITTED_HEADS[name], splits["test"]
    problems = [shots(draw, splits["train"], weights, task.scales) for draw in drawn]
    supports = [support(head, problem, task.folds) for problem in problems]
    fitted = fit(task, supports)
    if head.needs_labels:
        for draw, problem, states in zip(drawn, problems, fitted, strict=True):
            logits_NMC = logits(head, head.fit(problem, head.settings), test.embeddings, weights, task.scales)
            place = (name, draw.shots, draw.seed)
            score_bounds(scores, place, task.backbones, logits_NMC)
            score_fusers(scores, place, task, apply_label_free(task, logits_NMC, test.embeddings))
            score_fusers(scores, place, task, apply(task, states, logits_NMC, test.embeddings))
        return
    empty = [None] * len(weights)
    logits_NMC = logits(head, head.fit(empty, head.settings), test.embeddings, weights, task.scales)
    score_bounds(scores, (name, 0, 0), task.backbones, logits_NMC)
    score_fusers(scores, (name, 0, 0), task, apply_label_free(task, logits_NMC, test.embeddings))
    for draw, states in zip(drawn, fitted, strict=True):
        place = (name, draw.shots, draw.seed)
        score_fusers(scores, place, task, apply(task, states, logits_NMC, test.embeddings))


def shots(draw: Any, train: "Split", weights: tuple, scales: tuple) -> list:
    """What each backbone's head may learn from in one support set: M `fewshot.Shots`."""
    from clipray.numerics.fewshot import Shots

    return [
        Shots(embeddings_ND[draw.rows_K], train.labels_N[draw.rows_K], weights_CD, *scale, seed=draw.seed)
        for embeddings_ND, weights_CD, scale in zip(train.embeddings, weights, scales, strict=True)
    ]


def support(head: Any, problem: list, folds: int) -> Any:
    """What a fuser may learn from: the support images' embeddings, labels and cross-fitted logits."""
    import torch

    from clipray.numerics.fewshot import cross_fitted
    from clipray.numerics.support import Support

    logits_KMC = torch.stack([cross_fitted(head, one, head.settings, folds) for one in problem], dim=1)
    embeddings = tuple(one.embeddings_KD for one in problem)
    return Support(logits_KMC, embeddings, problem[0].labels_K, seed=problem[0].seed)


def logits(head: Any, states: list, embeddings: tuple, weights: tuple, scales: tuple) -> Any:
    """A fitted head's logits_NMC of some images."""
    import torch

    every = zip(states, embeddings, weights, scales, strict=True)
    return torch.stack([head.apply(state, e_ND, w_CD, *scale) for state, e_ND, w_CD, scale in every], dim=1)


def fit(task: "Task", supports: list) -> list[dict]:
    """For each support set, every label-needing fuser's state by its name."""
    from clipray.numerics.fusers import FUSERS, settings_of

    states = [{} for _ in supports]
    for entry in task.fusers if supports else ():
        fuser = FUSERS[entry.fuser]
        if fuser.needs_labels:
            for found, state in zip(states, fuser.fit(supports, settings_of(entry.fuser, entry.settings)), strict=True):
                found[entry.name] = state
    return states


def apply(task: "Task", states: dict, logits_NMC: Any, embeddings: tuple) -> Iterator[tuple[str, Any]]:
    """(name, log_probs_NC) of every fuser with a state."""
    from clipray.numerics.fusers import FUSERS

    for entry in task.fusers:
        if entry.name in states:
            yield entry.name, FUSERS[entry.fuser].apply(states[entry.name], logits_NMC, embeddings)


def apply_label_free(task: "Task", logits_NMC: Any, embeddings: tuple) -> Iterator[tuple[str, Any]]:
    """(name, log_probs_NC) of every fuser that needs no labels."""
    from clipray.numerics.fusers import FUSERS, settings_of

    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if not fuser.needs_labels:
            (state,) = fuser.fit([nothing(logits_NMC, embeddings)], settings_of(entry.fuser, entry.settings))
            yield entry.name, fuser.apply(state, logits_NMC, embeddings)


def nothing(logits_NMC: Any, embeddings: tuple) -> Any:
    """An empty support set: what a label-free fuser is given to fit."""
    import torch

    from clipray.numerics.support import Support

    return Support(logits_NMC[:0], tuple(e_ND[:0] for e_ND in embeddings), torch.zeros(0, dtype=torch.int64))


def score_fusers(scores: Scores, place: tuple, task: "Task", results: Iterator[tuple[str, Any]]) -> None:
    """Score what fusers give at (head, shots, seed)."""
    head, k, seed = place
    for name, log_probs_NC in results:
        scores.add(head, name, k, seed, log_probs_NC)


def score_bounds(scores: Scores, place: tuple, names: tuple[str, ...], logits_NMC: Any) -> None:
    """Single backbones, the best of them on test, the oracle, and how the backbones complement each other."""
    from clipray.numerics import complementarity, singles

    head, k, seed = place
    _, best = singles.best_single_on_test(logits_NMC, scores.labels_N)
    scores.add(head, ON_TEST, k, seed, best)
    scores.add(head, "oracle", k, seed, singles.oracle(logits_NMC, scores.labels_N))
    for m, name in enumerate(names):
        scores.add(head, f"single/{name}", k, seed, singles.single(logits_NMC, m))
    patterns = complementarity.patterns(logits_NMC.argmax(-1) == scores.labels_N[:, None])
    for method, metric, value, samples in complementary(patterns, names):
        scores.number((head, method, k, seed), metric, value, samples)


def complementary(patterns: Any, names: tuple[str, ...]) -> Iterator[tuple]:
    """(method, metric, value, bootstrap samples) of every measure of the set, the backbones and their pairs."""
    from clipray.numerics import complementarity as measures

    again = measures.resample(patterns, RESAMPLES, seed=0)
    resampled = measures.of_set(again)
    for metric, value in measures.of_set(patterns).items():
        yield "set", metric, value, resampled[metric]
    resampled = measures.by_backbone(again)
    for metric, value_M in measures.by_backbone(patterns).items():
        for m, name in enumerate(names):
            yield f"single/{name}", metric, value_M[m], resampled[metric][..., m]
    resampled = measures.pairs(again)
    for metric, value_MM in measures.pairs(patterns).items():
        for (i, one), (j, other) in permutations(enumerate(names), 2):
            yield f"pair/{one}/{other}", metric, value_MM[i, j], resampled[metric][..., i, j]
