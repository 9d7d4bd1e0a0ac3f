"""Scores of all datasets → one table, the report, MLflow's runs and the job's result; nothing where nothing changed."""

import pyarrow as pa
import yaml

from clipray import schema
from clipray.config import fingerprint
from clipray.report import files
from clipray.steps import evaluate
from clipray.steps.run import Plan
from clipray.steps.standings import standings
from clipray.store import provenance

MARK = "published.json"


def publish(todo: Plan, places: dict[str, str]) -> dict:
    """Write scores, failures and report, record the runs, and return what the job prints as its last line.

    Args:
        places: each dataset's evaluation.
    """
    store, campaign = todo.store, todo.campaign
    folder = f"{files.FOLDER}/{campaign.name}"
    settings = campaign.model_dump(mode="json", exclude={"compute"})
    mark = fingerprint([places, todo.failures, settings])
    before = store.read_json(f"{folder}/{MARK}") or {}
    if before.get("mark") == mark:
        return before["result"] | {"changed": False}
    scores = pa.concat_tables(
        store.read_table(f"{place}/{evaluate.SCORES}") for place in places.values()
    )
    failures = pa.Table.from_pylist(todo.failures, schema=schema.FAILURES)
    stands = standings(scores)
    made = files.write(store, campaign.name, scores, failures, about(todo), stands)
    result = {
        "name": campaign.name,
        "workspace": store.uri,
        **made,
        "outcomes": {name: store.place(p) for name, p in places.items()},
    }
    result |= {
        "mlflow": track(todo, places, scores, stands, made),
        "headline": headline(todo, scores),
    }
    store.write_json(f"{folder}/{MARK}", {"mark": mark, "result": result})
    return result | {"changed": True}


def about(todo: Plan) -> dict:
    """Settings and provenance, as the report shows them."""
    return {
        "campaign": todo.campaign.model_dump(mode="json"),
        "images": {
            f"{dataset}/{split}": len(work.index) for (dataset, split), work in todo.works.items()
        },
        **provenance(),
    }


def headline(todo: Plan, scores: pa.Table) -> dict:
    """The campaign's main numbers."""
    from clipray import report

    images = sum(len(work.index) for work in todo.works.values())
    return report.headline(scores) | {"images": images, "failed_images": len(todo.failures)}


def track(
    todo: Plan, places: dict[str, str], scores: pa.Table, stands: pa.Table, made: dict[str, str]
) -> dict:
    """Record the campaign's run, which sums up all datasets, and one run per dataset; where they are."""
    from clipray.tracking import Record, record

    campaign = todo.campaign
    artifacts = {
        "scores/scores.parquet": made["scores"],
        "scores/standings.parquet": made["standings"],
        "report/report.html": made["report"],
        "report/leaderboard.md": made["markdown"],
        "config.yaml": yaml.safe_dump(campaign.model_dump(mode="json"), sort_keys=False).encode(),
    }
    what = campaign.model_dump(mode="json", exclude={"compute", "tracking", "workspace", "name"})
    parent = Record(
        what,
        summary(scores, stands),
        artifacts=artifacts,
        tags={"clipray.provenance": provenance()},
    )
    children = {
        dataset.name: child(todo, dataset.name, places[dataset.name]) for dataset in todo.datasets
    }
    found = record(campaign.name, todo.store.uri, campaign.tracking, parent, children)
    return {key: value for key, value in found.items() if key != "written"}


def summary(scores: pa.Table, stands: pa.Table) -> list:
    """The metrics of all datasets together: means, gains, wins, ties, losses, ranks; shots are steps."""
    from clipray.report import leaderboard
    from clipray.tracking import Metric

    metrics = []
    for row in leaderboard(scores):
        metrics.append(Metric(f"mean_top1/{row.head}/{row.method}", row.top1, row.shots))
        for name, gain in (("gain_on_support", row.on_support), ("gain_on_test", row.on_test)):
            if gain:
                metrics.append(Metric(f"mean_{name}/{row.head}/{row.method}", gain.mean, row.shots))
        if row.on_support:
            for name in ("wins", "ties", "losses"):
                value = getattr(row.on_support, name)
                metrics.append(
                    Metric(f"{name}_on_support/{row.head}/{row.method}", value, row.shots)
                )
    for row in stands.to_pylist():
        place = f"{row['head']}/{row['method']}"
        metrics.append(Metric(f"mean_rank/{place}", row["mean_rank"], row["shots"]))
        if row["correlation"] is not None:
            metrics.append(
                Metric(
                    f"gain_complementarity_correlation/{place}", row["correlation"], row["shots"]
                )
            )
    return metrics


def child(todo: Plan, dataset: str, place: str):
    """What the run of one dataset holds: means over seeds as metrics, the whole as an artifact."""
    from clipray.tracking import Input, Metric, Record

    store = todo.store
    frame = store.read_table(f"{place}/{evaluate.SCORES}").to_pandas()
    keys = ["metric", "head", "method", "shots"]
    means = frame.groupby(keys)["value"].mean().reset_index()
    metrics = [
        Metric(f"{row.metric}/{row.head}/{row.method}", row.value, row.shots)
        for row in means.itertuples(index=False)
    ]
    names = todo.prompts[dataset]
    works = {split: work for (name, split), work in todo.works.items() if name == dataset}
    params = {
        "dataset": dataset,
        "classes": len(names["classnames"]),
        "templates": names["templates"],
    }
    params |= {f"{split}_images": len(work.index) for split, work in works.items()}
    uri = next(entry.uri or entry.format for entry in todo.datasets if entry.name == dataset)
    inputs = [
        Input(dataset, work.index.content, f"{uri}#{split}", split, {"images": len(work.index)})
        for split, work in works.items()
    ]
    return Record(
        params,
        metrics,
        inputs,
        {"scores/scores.parquet": store.place(f"{place}/{evaluate.SCORES}")},
    )
