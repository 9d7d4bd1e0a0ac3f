"""What a search found → a campaign that scores it, tables, MLflow's runs and the job's result."""

from collections.abc import Iterator

import yaml

from clipray import secrets
from clipray.config import fingerprint
from clipray.report import files
from clipray.report.gains import gain
from clipray.steps.tune import space as spaces
from clipray.steps.tune.choose import best_campaign, choices, importance
from clipray.steps.tune.records import Cell, score
from clipray.steps.tune.search import Search
from clipray.steps.tune.space import Configuration
from clipray.store import provenance
from clipray.tracking import Metric, Record, record

MARK = "tuned.json"
SCORES = ("chosen_by", "default_by", "nll", "default_nll", "top1", "default_top1")


def describe(search: Search) -> list[str]:
    """Describe the plan in lines: what is searched, on what, and how many fits that is."""
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
    """Compute what tuned settings gain over the defaults on images that did not choose them."""
    gains, text = {}, []
    for one in search.config.searches:
        own = [row for row in rows if row["search"] == one.name]
        own = [row for row in own if None not in (row["top1"], row["default_top1"])]
        if len(own) > 1:
            gains[one.name] = {metric: _gain(own, metric) for metric in ("top1", "nll")}
            text.append(_gained(one.name, len(own), **gains[one.name]))
        most = sorted(shares.get(one.name, {}).items(), key=lambda item: -item[1])[:4]
        if most:
            words = ", ".join(f"{key} {100 * share:.0f} %" for key, share in most)
            text.append(f"{one.name}: what matters: {words}")
    counts = search.counts
    if counts.failed:
        reasons = "; ".join(f"{n} times {why}" for why, n in counts.reasons.most_common(3))
        text.append(f"{counts.failed} fits failed: {reasons}")
    if search.cut:
        text.append(f"ended early by its budget ({search.cut}); the same command with more goes on")
    return {"gains": gains, "importance": shares, "text": text}


def _gain(rows: list[dict], metric: str) -> list[float]:
    """Compute mean and interval over datasets."""
    return list(gain([row[metric] - row[f"default_{metric}"] for row in rows])[:3])


def _gained(name: str, datasets: int, top1: list[float], nll: list[float]) -> str:
    points, low, high = (100 * value for value in top1)
    return (
        f"{name}: chosen on the other datasets, {points:+.2f} points top-1 [{low:+.2f}, {high:+.2f}], "
        f"{nll[0]:+.4f} nats [{nll[1]:+.4f}, {nll[2]:+.4f}] against the defaults, over {datasets} datasets"
    )


def track(search: Search, result: dict, rows: list[dict], shares: dict) -> dict:
    """Record one run for the search, one for each dataset, and on request one for each configuration."""
    config = search.config
    artifacts = {
        "best.yaml": result["best"],
        "tables/choices.parquet": result["choices"],
        "tables/fits.parquet": result["fits_table"],
        "importance.json": result["importance"],
    }
    metrics = [Metric(name, getattr(search.counts, name)) for name in ("failed", "seconds")]
    for name, own in shares.items():
        metrics += [Metric(f"importance/{name}/{key}", share) for key, share in own.items()]
    for name, gains in result["headline"]["gains"].items():
        metrics += [Metric(f"gain_{metric}/{name}", values[0]) for metric, values in gains.items()]
    outside = {"tracking", "workspace", "name", "compute", "searches"}
    what = config.model_dump(mode="json", exclude=outside)
    for one in config.searches:
        what[f"search/{one.name}"] = one.model_dump(mode="json", exclude_defaults=True)
    parent = Record(what, metrics, artifacts=artifacts, tags={"clipray.provenance": provenance()})
    datasets = dict.fromkeys(cell.dataset for cell in search.cells)
    children = {name: _dataset(search, name, rows) for name in datasets}
    if config.log_trials:
        children |= dict(_trials(search))
    found = record(f"tune/{config.name}", search.store.uri, config.tracking, parent, children)
    return {key: value for key, value in found.items() if key != "written"}


def _dataset(search: Search, dataset: str, rows: list[dict]) -> Record:
    """Record the settings chosen for a dataset, their scores, and the learning curves of these and of the defaults."""
    params, metrics = {"dataset": dataset}, []
    wanted = {one.name: one for one in search.config.searches}
    cells = [cell for cell in search.cells if cell.dataset == dataset]
    everywhere = [row for row in rows if row["dataset"] is None]
    for row in [row for row in rows if row["dataset"] == dataset] or everywhere:
        words = [str(row[key]) for key in ("shots", "seed") if row[key] is not None]
        place = "/".join([row["search"], *words])
        params |= {f"{key}/{place}": row[key] for key in ("settings", "head_settings")}
        metrics += [Metric(f"{key}/{place}", row[key]) for key in SCORES if row[key] is not None]
        one = wanted[row["search"]]
        chosen = Configuration(one.head, row["head_settings"], one.fuser, row["settings"])
        own = [cell for cell in cells if row["shots"] in (None, cell.shots)]
        own = [cell for cell in own if row["seed"] in (None, cell.seed)]
        metrics += _curve(search, chosen, own, f"{place}/chosen")
        metrics += _curve(search, spaces.configuration(one, {}), own, f"{place}/defaults")
    return Record(params, metrics)


def _curve(search: Search, one: Configuration, cells: list[Cell], label: str) -> list[Metric]:
    """Compute the mean scores after each part of the training, in per cent of it."""
    curves = [search.records.curve(one, cell) for cell in cells]
    found = []
    for step in sorted(set.intersection(*(set(curve) for curve in curves))):
        rows = [curve[step] for curve in curves]
        if any(row["error"] for row in rows):
            continue
        for metric in ("nll", "top1"):
            name = f"curve_{metric}/{label}"
            found.append(Metric(name, score(rows, metric), round(100 * step)))
    return found


def _trials(search: Search) -> Iterator[tuple[str, Record]]:
    for (name, _), study in search.studies.items():
        for number, asked in enumerate(study.tried):
            ends = study.ends(asked.configuration, study.cells)
            if ends:
                metrics = [Metric(metric, score(ends, metric)) for metric in ("nll", "top1")]
                params = {"search": name, **asked.chosen}
                yield f"{name}-{study.key[:6]}-{number}", Record(params, metrics)
