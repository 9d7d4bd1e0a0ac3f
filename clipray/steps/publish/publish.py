"""Scores of all datasets → one table, the report, MLflow's runs and the job's result; nothing where nothing changed."""

from collections.abc import Callable

import pyarrow as pa

from clipray import schema, secrets
from clipray.artefacts import history
from clipray.artefacts.evaluations import SCORES
from clipray.config import Campaign
from clipray.fingerprint import fingerprint
from clipray.progress import working
from clipray.report import files
from clipray.steps import origins, tracked
from clipray.steps.publish import regressions
from clipray.steps.publish.standings import standings
from clipray.steps.todo import Plan
from clipray.store import Store, provenance

Show = Callable[[pa.Table, dict], None]  # of scores and headline


def publish(todo: Plan, places: dict[str, str], show: Show | None = None) -> dict:
    """Write scores, failures and report, record the runs, and return what the job prints as its last line.

    Args:
        places: each dataset's evaluation.
        show: tells a person of scores and headline, as soon as they are known: report and records take seconds more.

    Returns:
        the addresses (`scores`, `failures`, `standings`, `report`, `markdown`, `changes`, `outcomes`), `headline`,
        `compared` (with the last successful campaign of that name; None where there is none), `mlflow`
        (see `tracking.record`; with `error` where MLflow failed), and `changed`.
    """
    store, campaign = todo.store, todo.campaign
    folder = f"{files.FOLDER}/{campaign.name}"
    mark = fingerprint([places, todo.failures, settings(campaign), seen(todo)])
    before = store.read_json(f"{folder}/{files.MARK}") or {}
    if before.get("mark") == mark and tracked.kept(campaign):
        if show:
            show(store.read_table(f"{folder}/{SCORES}"), before["result"]["headline"])
        if not todo.failed and not campaign.regression.fail:
            history.accept_last(store, folder)
        mlflow = tracked.again(campaign)
        written = mlflow.pop("written")
        return _located(store, before["result"]) | {"mlflow": mlflow, "changed": written}
    scores = pa.concat_tables(store.read_table(f"{place}/{SCORES}") for place in places.values())
    numbers = headline(todo, scores)
    if show:
        show(scores, numbers)
    with working("writing the report and MLflow's records"):
        return _written(todo, places, mark, scores, numbers)


def _written(
    todo: Plan, places: dict[str, str], mark: str, scores: pa.Table, numbers: dict
) -> dict:
    """Write and record what is new; return as `publish` does."""
    store, campaign = todo.store, todo.campaign
    folder = f"{files.FOLDER}/{campaign.name}"
    failures = pa.Table.from_pylist(secrets.clean(todo.failures), schema=schema.FAILURES)
    stands = standings(scores)
    against, changes = regressions.since_last(store, folder, scores, places, campaign.regression)
    told = changed(campaign.name, against, changes)
    store.write_json(f"{folder}/{files.DETAILS}", looked_at(todo, places, numbers))
    made = files.write(store, campaign.name, scores, failures, about(todo) | told, stands)
    if told:
        store.write(f"{folder}/{files.CHANGES}", told["changes"]["text"].encode())
        made["changes"] = store.place(f"{folder}/{files.CHANGES}")
    result = {
        "name": campaign.name,
        **told,
        "files": {key: _below(store, place) for key, place in made.items()},
        "outcomes": places,
        "failed": todo.failed,
        "headline": numbers,
    }
    store.write_json(
        f"{folder}/{files.MARK}",
        {"mark": mark, "settings": fingerprint(settings(campaign)), "result": result},
    )
    commit = provenance()["commit"]
    worse = bool(told) and told["changes"]["counts"]["worse"] > 0
    good = not todo.failed and not (campaign.regression.fail and worse)
    history.write(store, folder, scores, places, good=good, commit=commit)
    mlflow = tracked.record(todo, scores, stands, made, result["headline"])
    if campaign.notify:
        regressions.notify(campaign.notify, _located(store, result))
    return _located(store, result) | {"mlflow": mlflow, "changed": True}


def looked_at(todo: Plan, places: dict[str, str], numbers: dict) -> list[dict]:
    """What the report says of single images, see `details`."""
    from clipray.steps.publish import details

    names = {dataset: list(prompts["classnames"]) for dataset, prompts in todo.prompts.items()}
    images = {
        dataset: work.index
        for (dataset, split), work in todo.works.items()
        if split == "test" and dataset not in todo.given
    }
    embeddings = {
        dataset.name: todo.works[dataset.name, "test"].addresses
        for dataset in todo.datasets
        if dataset.format != "logits" and (dataset.name, "test") in todo.works
    }
    found = details.of_campaign(todo.store, places, numbers, names, images, embeddings)
    return secrets.clean(found)


def settings(campaign: Campaign) -> dict:
    """Return the choices that a report shows: all but where it lies, who is told, and how it was computed."""
    how = {"compute", "tracking", "workspace", "regression", "notify"}
    return campaign.model_dump(mode="json", exclude=how)


def changed(
    name: str, against: history.Entry | None, changes: list[regressions.Change]
) -> dict[str, dict]:
    """Collect what the result and the report say of the last campaign; empty where there is none to compare with."""
    if against is None:
        return {}
    rows = [change._asdict() for change in changes if change.verdict in regressions.ARROWS]
    return {
        "changes": {
            "against": against.stamp,
            "commit": against.commit,
            "counts": regressions.counts(changes),
            "rows": rows[: regressions.SHOWN],
            "text": regressions.markdown(name, against, changes),
        }
    }


def _below(store: Store, place: str) -> str:
    return place.removeprefix(store.uri + "/")


def _located(store: Store, result: dict) -> dict:
    """Return the result with full addresses: a workspace may have moved since it was written."""
    addresses = {key: store.place(path) for key, path in result["files"].items()}
    outcomes = {name: store.place(path) for name, path in result["outcomes"].items()}
    return {
        "name": result["name"],
        "workspace": store.uri,
        **addresses,
        "compared": result.get("changes"),
        "outcomes": outcomes,
        "failed": result["failed"],
        "headline": result["headline"],
    }


def check_tracking(campaign: Campaign) -> None:
    """Check before work starts whether MLflow takes the runs, unless this very campaign is published already.

    Raises:
        ConfigError: MLflow cannot be reached or written; the message says what to do.
    """
    store = Store(campaign.workspace)
    before = store.read_json(f"{files.FOLDER}/{campaign.name}/{files.MARK}") or {}
    if before.get("settings") != fingerprint(settings(campaign)):
        tracked.check(campaign.name, campaign)


def about(todo: Plan) -> dict:
    """Collect settings and provenance, as the report shows them."""
    return {
        "campaign": secrets.clean(settings(todo.campaign)),
        "images": {
            f"{dataset}/{split}": len(work.index) for (dataset, split), work in todo.works.items()
        },
        "seen": seen(todo),
        "methods": origins.methods(todo.campaign),
        "made": origins.made(todo),
        **provenance(),
    }


def seen(todo: Plan) -> dict[str, list[str]]:
    """List, by dataset, the backbones whose pretraining data holds it, as their entries say (`seen:`)."""
    return {
        dataset.name: [spec.name for spec in todo.specs if dataset.name in spec.seen]
        for dataset in todo.datasets
    }


def headline(todo: Plan, scores: pa.Table) -> dict:
    """Compute the campaign's main numbers."""
    from clipray import report

    images = sum(len(work.index) for work in todo.works.values())
    failures = pa.Table.from_pylist(todo.failures, schema=schema.FAILURES)
    return report.headline(scores, failures, seen(todo)) | {"images": images}
