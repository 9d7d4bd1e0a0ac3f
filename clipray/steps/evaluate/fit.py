"""Fit the fusers of an evaluation on its support sets: on all backbones, and on each backbone alone."""

from collections.abc import Sequence

from clipray.artefacts.evaluations import Task
from clipray.numerics.contracts import State, Support
from clipray.numerics.draws import Draw
from clipray.numerics.fusers import FUSERS, grouped
from clipray.numerics.fusers.alone import Alone, fit_alone, singles_of

States = dict[str, State]  # fitted fusers of one support set, by their entries' names


def fit_on_all(task: Task, drawn: Sequence[Draw], supports: Sequence[Support]) -> list[States]:
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


def fit_on_each(
    task: Task, drawn: Sequence[Draw], supports: Sequence[Support]
) -> list[dict[str, Alone]]:
    """Fit every fuser that needs labels on each backbone alone, for each support set; return the fits by name."""
    found: list[dict[str, Alone]] = [{} for _ in supports]
    singles = [singles_of(support) for support in supports]
    for entry in task.fusers:
        fuser = FUSERS[entry.fuser]
        if not fuser.needs_labels or fuser.kind == "reference":
            continue
        changes = [entry.settings_for(draw.shots, draw.seed) for draw in drawn]
        fitted = fit_alone(entry.fuser, singles, changes)
        for own, alone in zip(found, fitted, strict=True):
            own[entry.name] = alone
    return found
