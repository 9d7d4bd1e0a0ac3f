"""What a search chose: for each scope the configuration with the best score on the support sets that may guide it."""

import json
from collections.abc import Iterator

import pyarrow as pa

from clipray import schema
from clipray.config import Campaign
from clipray.config.search import Search as Wanted
from clipray.config.search import Tune
from clipray.steps.tune.records import Cell, score
from clipray.steps.tune.search import Search
from clipray.steps.tune.space import configuration
from clipray.steps.tune.studies import Study, adaptive, scopes

SCOPE = ("dataset", "shots", "seed")  # what a choice is for; None stands for all


def choices(search: Search) -> pa.Table:
    """Make a row for each search and scope that has a complete configuration."""
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
    tried = [asked.configuration for asked in study.tried]
    scored = {one: study.ends(one, cells) for one in tried}
    scored = {one: rows for one, rows in scored.items() if rows}
    if not scored:
        return
    sign = 1 if metric == "nll" else -1
    best = min(scored, key=lambda one: sign * score(scored[one], metric))
    default = configuration(wanted, {})
    own = [cell for cell in search.cells if cell.dataset == scope[0] and cell not in cells]
    row = {"search": wanted.name, **dict(zip(SCOPE, scope, strict=True))}
    row |= {"settings": best.settings, "head_settings": best.head_settings}
    row |= {"configurations": len(scored), "support_sets": len(cells)}
    row["chosen_by"] = score(scored[best], metric)
    row["default_by"] = score(scored[default], metric) if default in scored else None
    for prefix, one in (("", best), ("default_", default)):
        rows = records.ends(one, own) if own else None
        row |= {prefix + name: score(rows, name) if rows else None for name in ("nll", "top1")}
    yield row


def best_campaign(search: Search, table: pa.Table) -> dict:
    """Make the campaign that scores the chosen settings beside the defaults, which `jobs.run` takes."""
    config = search.config
    shared = set(Campaign.model_fields) & set(Tune.model_fields) - {"compute"}
    whole = config.model_dump(mode="json", include=shared, exclude_defaults=True)
    fusers, heads = [], []
    for wanted in config.searches:
        rows = [row for row in table.to_pylist() if row["search"] == wanted.name]
        start = {"name": f"{wanted.name}-defaults", "fuser": wanted.fuser}
        fixed = dict(wanted.settings)
        fusers.append(start | {"settings": fixed} if fixed else wanted.fuser)
        name = {"name": wanted.name, "fuser": wanted.fuser}
        fusers.append(name | _settings(rows, "settings", fixed))
        heads.append(wanted.head)
        if wanted.head_space or wanted.head_settings:
            name = {"name": f"{wanted.name}-{wanted.head}", "head": wanted.head}
            heads.append(name | _settings(rows, "head_settings", dict(wanted.head_settings)))
    methods = {"heads": _unique(heads), "fusers": _unique(fusers)}
    return whole | {"name": f"{config.name}-best"} | methods


def _unique(every: list) -> list:
    return [one for i, one in enumerate(every) if one not in every[:i]]


def _settings(rows: list[dict], key: str, otherwise: dict) -> dict:
    """Give settings for all datasets, and those for one or for one support set."""
    everywhere, chosen = otherwise, []
    for row in rows:
        settings = json.loads(row[key])
        if row["dataset"] is None:
            everywhere = settings
            continue
        place = {name: row[name] for name in SCOPE if row[name] is not None}
        chosen.append(place | {"settings": settings})
    return {"settings": everywhere} | ({"chosen": chosen} if chosen else {})


def importance(search: Search) -> dict[str, dict[str, float]]:
    """Compute by search each setting's share in what moves the score (fANOVA, Hutter et al. 2014, by Optuna).

    Over the configurations fitted to the end, of all support sets of a study; the mean over a search's studies.
    Settings under a condition are left out, as Optuna needs those that every configuration has.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for (name, _), study in search.studies.items():
        for setting, share in study.importance().items():
            found.setdefault(name, {}).setdefault(setting, []).append(share)
    return {name: {key: sum(v) / len(v) for key, v in one.items()} for name, one in found.items()}
