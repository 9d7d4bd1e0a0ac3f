"""What a search chose: for each scope the configuration with the best score on the support sets that may guide it."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from clipray import schema
from clipray.config.search import Search as Wanted
from clipray.steps.tune.records import Cell, Records, score
from clipray.steps.tune.search import Search
from clipray.steps.tune.space import Configuration
from clipray.steps.tune.studies import Study, adaptive, scopes


def choices(search: Search) -> pa.Table:
    """A row per search and scope that has a complete configuration."""
    rows = []
    for wanted in search.config.searches:
        for scope, cells in scopes(search.config, search.cells).items():
            study = search.studies[wanted.name, scope if adaptive(search.config) else ()]
            rows += _choice(search, wanted, study, scope, cells)
    return pa.Table.from_pylist(rows, schema=schema.CHOICES)


def _choice(
    search: Search, wanted: Wanted, study: Study, scope: tuple, cells: list[Cell]
) -> Iterator[dict]:
    """The best of what is fitted to the end on all of a scope's support sets; of equals the first, so the defaults."""
    records, metric = search.records, search.config.metric
    scored = {
        asked.configuration: _ends(records, asked.configuration, cells) for asked in study.tried
    }
    scored = {one: rows for one, rows in scored.items() if rows}
    if not scored:
        return
    sign = 1 if metric == "nll" else -1
    best = min(scored, key=lambda one: sign * score(scored[one], metric))
    default = study.tried[0].configuration
    own = [cell for cell in search.cells if cell.dataset == scope[0] and cell not in cells]
    row = {"search": wanted.name, **dict(zip(("dataset", "shots", "seed"), scope, strict=True))}
    row |= {"settings": best.settings, "head_settings": best.head_settings}
    row |= {"configurations": len(scored), "support_sets": len(cells)}
    row["chosen_by"] = score(scored[best], metric)
    row["default_by"] = score(scored[default], metric) if default in scored else None
    for prefix, one in (("", best), ("default_", default)):
        rows = _ends(records, one, own) if own else None
        row |= {prefix + name: score(rows, name) if rows else None for name in ("nll", "top1")}
    yield row


def _ends(records: Records, one: Configuration, cells: list[Cell]) -> list[dict] | None:
    rows = [records.end(one, cell) for cell in cells]
    return rows if all(row is not None and row["error"] is None for row in rows) else None


def best_campaign(search: Search, table: pa.Table) -> dict:
    """The campaign that scores the chosen settings beside the defaults: what `jobs.run` takes."""
    config = search.config
    left_out = {"searches", "compute"} | (set(type(config).model_fields) - set(_campaign_fields()))
    whole = config.model_dump(mode="json", exclude=left_out, exclude_defaults=True) | {
        "name": f"{config.name}-best"
    }
    fusers, heads = [], []
    for wanted in config.searches:
        rows = [row for row in table.to_pylist() if row["search"] == wanted.name]
        start = {
            "name": f"{wanted.name}-defaults",
            "fuser": wanted.fuser,
            "settings": dict(wanted.settings),
        }
        fusers.append(start if wanted.settings else wanted.fuser)
        fusers.append(
            {
                "name": wanted.name,
                "fuser": wanted.fuser,
                **_method(rows, "settings", wanted.settings),
            }
        )
        heads.append(wanted.head)
        if wanted.head_space or wanted.head_settings:
            name = f"{wanted.name}-{wanted.head}"
            heads.append(
                {
                    "name": name,
                    "head": wanted.head,
                    **_method(rows, "head_settings", wanted.head_settings),
                }
            )
    unique = [one for i, one in enumerate(fusers) if one not in fusers[:i]]
    return whole | {
        "heads": [one for i, one in enumerate(heads) if one not in heads[:i]],
        "fusers": unique,
    }


def _campaign_fields() -> list[str]:
    from clipray.config import Campaign

    return list(Campaign.model_fields)


def _method(rows: list[dict], key: str, otherwise: Any) -> dict:
    """Settings for all datasets, and those for one or for one support set."""
    everywhere = next(
        (json.loads(row[key]) for row in rows if row["dataset"] is None), dict(otherwise)
    )
    chosen = [
        {name: row[name] for name in ("dataset", "shots", "seed") if row[name] is not None}
        | {"settings": json.loads(row[key])}
        for row in rows
        if row["dataset"] is not None
    ]
    return {"settings": everywhere} | ({"chosen": chosen} if chosen else {})


def importance(search: Search) -> dict[str, dict[str, float]]:
    """By search, each setting's share in what moves the score (fANOVA, Hutter et al. 2014, by Optuna).

    Over the configurations fitted to the end, of all support sets of a study; the mean over a search's studies.
    Settings under a condition are left out, as Optuna needs those that every configuration has.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for (name, _), study in search.studies.items():
        for setting, share in study.importance().items():
            found.setdefault(name, {}).setdefault(setting, []).append(share)
    return {name: {key: sum(v) / len(v) for key, v in one.items()} for name, one in found.items()}
