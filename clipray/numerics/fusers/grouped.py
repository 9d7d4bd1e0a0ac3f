"""Fit one fuser on many support sets, each with settings of its own."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipray.numerics.contracts import State, Support
from clipray.numerics.fusers import FUSERS, settings_of


def fit_each(
    name: str, supports: Sequence[Support], changes: Sequence[Mapping[str, Any]]
) -> list[State]:
    """Fit a fuser on every support set; those with equal settings are fitted in one call.

    Args:
        name: the fuser's. changes: by support set, the settings that differ from the defaults.
    """
    groups: dict[str, list[int]] = {}
    for position, own in enumerate(changes):
        groups.setdefault(json.dumps(own, sort_keys=True), []).append(position)
    states: dict[int, State] = {}
    for group in groups.values():
        settings = settings_of(name, changes[group[0]])
        fitted = FUSERS[name].fit([supports[position] for position in group], settings)
        states.update(zip(group, fitted, strict=True))
    return [states[position] for position in range(len(supports))]
