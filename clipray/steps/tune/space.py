"""Search spaces: what a configuration is, and how one is drawn, listed and checked."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from clipray.config import check_settings, names, unknown
from clipray.config.search import Search, Span, Tune
from clipray.errors import ConfigError
from clipray.numerics import declared
from clipray.steps import checks

HEAD = "head."  # before the names of the head's settings, where both lie in one space


@dataclass(frozen=True)
class Configuration:
    """A method to fit: a head and a fuser, with the settings that differ from their defaults, as JSON, to be hashed."""

    head: str
    head_settings: str
    fuser: str
    settings: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Read the configuration from its `text`."""
        head, head_settings, fuser, settings = json.loads(text)
        return cls(head, _dump(head_settings), fuser, _dump(settings))

    @cached_property
    def text(self) -> str:
        """Write all of it as one line of JSON."""
        return _dump(
            [self.head, json.loads(self.head_settings), self.fuser, json.loads(self.settings)]
        )


def configuration(search: Search, chosen: Mapping[str, Any]) -> Configuration:
    """Make the search's method under some values of its space; without any, its defaults."""
    ours = {name: value for name, value in chosen.items() if not name.startswith(HEAD)}
    heads = {
        name.removeprefix(HEAD): value for name, value in chosen.items() if name.startswith(HEAD)
    }
    settings, of_head = (
        _merged(search.settings, _nested(ours)),
        _merged(search.head_settings, _nested(heads)),
    )
    return Configuration(search.head, _dump(of_head), search.fuser, _dump(settings))


def spans(search: Search) -> dict[str, Span]:
    """Join the spaces of the fuser and of the head."""
    of_head = {
        HEAD + name: span.model_copy(
            update={"when": {HEAD + key: values for key, values in span.when.items()}}
        )
        for name, span in search.head_space.items()
    }
    return {**search.space, **of_head}


def suggest(trial: Any, search: Search) -> dict[str, Any]:
    """Let an Optuna trial choose: values by name, of the settings whose conditions hold."""
    chosen: dict[str, Any] = {}
    for name, span in spans(search).items():
        if not _active(span, chosen):
            continue
        if span.choice is not None:
            by_text = {_scalar(value): value for value in span.choice}
            chosen[name] = by_text[trial.suggest_categorical(name, list(by_text))]
        elif span.int_:
            chosen[name] = trial.suggest_int(name, *span.int_)
        else:
            chosen[name] = trial.suggest_float(
                name, *(span.uniform or span.loguniform), log=span.uniform is None
            )
    return chosen


def params(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as Optuna holds them: what `suggest` leaves in a trial."""
    return {name: _scalar(value) for name, value in chosen.items()}


def grid(search: Search) -> list[dict[str, Any]]:
    """List every combination that the conditions allow."""
    return list(_grid(list(spans(search).items()), {}))


def _grid(left: list[tuple[str, Span]], chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not left:
        yield chosen
        return
    (name, span), *rest = left
    if not _active(span, chosen):
        yield from _grid(rest, chosen)
        return
    for value in span.choice or range(span.int_[0], span.int_[1] + 1):
        yield from _grid(rest, {**chosen, name: value})


def check(config: Tune) -> None:
    """Raise `ConfigError` for what cannot be searched: unknown methods, settings or conditions, wrong types."""
    heads, fusers = declared.heads(), declared.fusers()
    names.refuse_merged((search.name for search in config.searches), "searches")
    checks.places(config)
    for number, search in enumerate(config.searches):
        where = f"searches.{number}"
        if search.fuser not in fusers:
            raise ConfigError(f"{where}.fuser: {unknown(search.fuser, fusers)}")
        if search.head not in heads:
            raise ConfigError(f"{where}.head: {unknown(search.head, heads)}")
        checks.method_name(search.name, "search", f"{where}.name", fusers)
        if not search.space and not search.head_space:
            raise ConfigError(f"{where}: its space is empty")
        if config.scheduler != "none" and fusers[search.fuser].path is None:
            some = ", ".join(name for name, fuser in fusers.items() if fuser.path)
            raise ConfigError(f"{where}: {search.fuser} is not iterative, so nothing can stop it early: scheduler: none"
                              f" (iterative are {some})")  # fmt: skip
        for method, key, fixed, space in (
            (fusers[search.fuser], "", search.settings, search.space),
            (heads[search.head], "head_", search.head_settings, search.head_space),
        ):
            checks.settings(method, fixed, f"{where}.{key}settings")
            _check_space(method.settings, space, f"{where}.{key}space", config.sampler)


def _check_space(settings: Any, space: Mapping[str, Span], where: str, sampler: str) -> None:
    above: dict[str, Span] = {}
    for name, span in space.items():
        if sampler == "grid" and (span.uniform or span.loguniform):
            raise ConfigError(
                f"{where}.{name}: a grid needs values to list: give choice or int, or sampler: random"
            )
        for value in span.choice or span.int_ or span.uniform or span.loguniform:
            check_settings(settings, _nested({name: value}), where)
        for key, values in span.when.items():
            if key not in above:
                raise ConfigError(
                    f"{where}.{name}.when: {key!r} must stand above it in the same space"
                )
            if missing := [value for value in values if value not in (above[key].choice or values)]:
                raise ConfigError(
                    f"{where}.{name}.when.{key}: {missing[0]!r} is none of its choices"
                )
        above[name] = span


def _active(span: Span, chosen: Mapping[str, Any]) -> bool:
    return all(key in chosen and chosen[key] in values for key, values in span.when.items())


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted names into mappings in mappings."""
    whole: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        place = whole
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return whole


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(base[key], over[key])
        for key in base
        if isinstance(base.get(key), dict) and key in over
    }
    return {**base, **over, **both}


def _scalar(value: Any) -> Any:
    """Return a choice as Optuna can hold it: lists and mappings as their JSON."""
    return value if value is None or isinstance(value, str | int | float) else _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
