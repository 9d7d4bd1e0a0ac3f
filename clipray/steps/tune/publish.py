"""What a search found → a campaign that scores it, tables, MLflow's runs and the job's result."""

from typing import Any

import yaml

from clipray import secrets
from clipray.config import fingerprint
from clipray.report import files
from clipray.steps.tune import space as spaces
from clipray.steps.tune.choose import best_campaign, choices, importance
from clipray.steps.tune.records import Cell, score
from clipray.steps.tune.search import Search
from clipray.steps.tune.space import Configuration
from clipray.store import provenance

MARK = "tuned.json"
SCORES = ("chosen_by", "default_by", "nll", "default_nll", "top1", "default_top1")


def describe(search: Search) -> list[str]:
    """The plan in lines: what is searched, on what, and how many fits that is."""
    config = search.config
    sets, parts = len({cell.dataset for cell in search.cells}), sum(search.fits.values())
    lines = [
        f"workspace {search.store.uri}",
        f"{len(search.cells)} support sets of {sets} datasets",
    ]
    for one in config.searches:
        own = [study for (name, _), study in search.studies.items() if name == one.name]
        asked = sum((study.samples + 1) * len(study.cells) for study in own)
        words = f"{len(own)} studies" if len(own) > 1 else "one study"
        lines.append(
            f"  {one.name}: {one.head} + {one.fuser}, {own[0].samples + 1} configurations, {words}, at most "
            f"{asked * parts // len(search.cells)} fits"
        )
    where = {
        "per_dataset": "inside each support set, by cross-validation",
        "leave_one_dataset_out": "for each dataset on the train splits of all others",
        "universal": "on the train splits of all datasets together",
    }[config.selection]
    lines.append(f"chosen by {config.metric} {where}; no test image is read")
    for one in search.skipped:
        place = ", ".join(f"{key} {value}" for key, value in one.items() if key != "reason")
        lines.append(f"  left out: {place}: {one['reason']}")
    return lines


def publish(search: Search) -> dict:
    """Write what was chosen and why, record the runs, and return what the job prints as its last line."""
    store, config = search.store, search.config
    folder = f"{files.FOLDER}/{config.name}"
    chosen = choices(search)
    fits = search.records.table(
        {asked.configuration.text for study in search.studies.values() for asked in study.tried},
        set(search.cells),
    )
    mark = fingerprint(
        [chosen.to_pylist(), fits["key"].to_pylist(), fits["progress"].to_pylist(), config]
    )
    counts = {
        "fits": search.counts.done,
        "known": search.counts.known,
        "failed": search.counts.failed,
    }
    before = store.read_json(f"{folder}/{MARK}") or {}
    if before.get("mark") == mark:
        return before["result"] | counts
    shares = importance(search)
    campaign = secrets.clean(best_campaign(search, chosen))
    header = f"# python -m jobs.run {store.place(f'{folder}/best.yaml')}\n# Settings chosen by the search {config.name}"
    text = (
        f"{header} ({config.selection}, by {config.metric}), beside the defaults.\n"
        + yaml.safe_dump(campaign, sort_keys=False, allow_unicode=True)
    )
    store.write(f"{folder}/best.yaml", text.encode())
    store.write_table(f"{folder}/choices.parquet", chosen)
    store.write_table(f"{folder}/fits.parquet", fits)
    store.write_json(f"{folder}/importance.json", shares)
    made = {
        "best": "best.yaml",
        "choices": "choices.parquet",
        "fits_table": "fits.parquet",
        "importance": "importance.json",
    }
    result = {"name": config.name, "workspace": store.uri}
    result |= {key: store.place(f"{folder}/{name}") for key, name in made.items()}
    result["chosen"] = [
        row for row in chosen.to_pylist() if row["dataset"] is None
    ] or chosen.to_pylist()
    result["headline"] = headline(search, chosen.to_pylist(), shares)
    result["mlflow"] = track(search, result, chosen.to_pylist(), shares)
    store.write_json(f"{folder}/{MARK}", {"mark": mark, "result": result})
    return result | counts


def headline(search: Search, rows: list[dict], shares: dict) -> dict:
    """The search's main numbers: what tuned settings gain over the defaults on images that did not choose them."""
    from clipray.report.gains import gain

    found, text = {}, []
    for one in search.config.searches:
        own = [row for row in rows if row["search"] == one.name and row["top1"] is not None]
        own = [row for row in own if row["default_top1"] is not None]
        if len(own) > 1:
            gains = {}
            for metric in ("top1", "nll"):
                gains[metric] = gain([row[metric] - row[f"default_{metric}"] for row in own])[:3]
            found[one.name] = {metric: list(interval) for metric, interval in gains.items()}
            top1, nll = gains["top1"], gains["nll"]
            text.append(
                f"{one.name}: chosen on the other datasets, {100 * top1[0]:+.2f} points top-1 "
                f"[{100 * top1[1]:+.2f}, {100 * top1[2]:+.2f}], {nll[0]:+.4f} nats [{nll[1]:+.4f}, {nll[2]:+.4f}] "
                f"against the defaults, over {len(own)} datasets"
            )
        if shares.get(one.name):
            most = sorted(shares[one.name].items(), key=lambda item: -item[1])[:4]
            text.append(
                f"{one.name}: what matters: "
                + ", ".join(f"{key} {100 * share:.0f} %" for key, share in most)
            )
    if search.counts.failed:
        kinds = sorted(search.counts.reasons.items(), key=lambda item: -item[1])[:3]
        text.append(
            f"{search.counts.failed} fits failed: "
            + "; ".join(f"{n} times {why}" for why, n in kinds)
        )
    if search.cut:
        text.append(f"ended early by its budget ({search.cut}); the same command with more goes on")
    return {"gains": found, "importance": shares, "text": text}


def track(search: Search, result: dict, rows: list[dict], shares: dict) -> dict:
    """One run for the search, one for each dataset, and on request one for each configuration."""
    from clipray.tracking import Metric, Record, record

    config = search.config
    names = {
        "best.yaml": "best",
        "tables/choices.parquet": "choices",
        "tables/fits.parquet": "fits_table",
    }
    artifacts = {name: result[key] for name, key in names.items()} | {
        "importance.json": result["importance"]
    }
    metrics = [
        Metric(f"importance/{name}/{key}", v)
        for name, one in shares.items()
        for key, v in one.items()
    ]
    for name, gains in result["headline"]["gains"].items():
        metrics += [Metric(f"gain_{metric}/{name}", values[0]) for metric, values in gains.items()]
    counts = search.counts
    metrics += [Metric(name, getattr(counts, name)) for name in ("failed", "seconds")]
    outside = {"tracking", "workspace", "name", "compute", "searches"}
    what = config.model_dump(mode="json", exclude=outside) | {
        f"search/{one.name}": one.model_dump(mode="json", exclude_defaults=True)
        for one in config.searches
    }
    parent = Record(what, metrics, artifacts=artifacts, tags={"clipray.provenance": provenance()})
    children = {
        name: _dataset(search, name, rows)
        for name in dict.fromkeys(cell.dataset for cell in search.cells)
    }
    if config.log_trials:
        children |= dict(_trials(search))
    found = record(f"tune/{config.name}", search.store.uri, config.tracking, parent, children)
    return {key: value for key, value in found.items() if key != "written"}


def _dataset(search: Search, dataset: str, rows: list[dict]) -> Any:
    """The settings chosen for a dataset, their scores, and the learning curves of these and of the defaults."""
    from clipray.tracking import Metric, Record

    params, metrics = {"dataset": dataset}, []
    wanted = {one.name: one for one in search.config.searches}
    for row in [row for row in rows if row["dataset"] == dataset] or [
        row for row in rows if row["dataset"] is None
    ]:
        place = "/".join(
            [row["search"], *(str(row[key]) for key in ("shots", "seed") if row[key] is not None)]
        )
        params |= {f"{key}/{place}": row[key] for key in ("settings", "head_settings")}
        metrics += [Metric(f"{key}/{place}", row[key]) for key in SCORES if row[key] is not None]
        one = wanted[row["search"]]
        chosen = Configuration(one.head, row["head_settings"], one.fuser, row["settings"])
        cells = [cell for cell in search.cells if cell.dataset == dataset]
        cells = [
            c for c in cells if row["shots"] in (None, c.shots) and row["seed"] in (None, c.seed)
        ]
        for label, configuration in (
            ("chosen", chosen),
            ("defaults", spaces.configuration(one, {})),
        ):
            metrics += _curve(search, configuration, cells, f"{place}/{label}")
    return Record(params, metrics)


def _curve(search: Search, one: Any, cells: list[Cell], label: str) -> list:
    """Mean scores after each part of the training, in per cent of it."""
    from clipray.tracking import Metric

    curves = [search.records.curve(one, cell) for cell in cells]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return [
        Metric(
            f"curve_{metric}/{label}",
            score([curve[step] for curve in curves], metric),
            round(100 * step),
        )
        for step in steps
        for metric in ("nll", "top1")
        if not any(curve[step]["error"] for curve in curves)
    ]


def _trials(search: Search) -> list[tuple[str, Any]]:
    from clipray.tracking import Metric, Record

    found = []
    for (name, _), study in search.studies.items():
        for number, asked in enumerate(study.tried):
            ends = [search.records.end(asked.configuration, cell) for cell in study.cells]
            if all(row is not None and row["error"] is None for row in ends):
                metrics = [Metric(metric, score(ends, metric)) for metric in ("nll", "top1")]
                found.append(
                    (
                        f"{name}-{study.key[:6]}-{number}",
                        Record({"search": name, **asked.chosen}, metrics),
                    )
                )
    return found
