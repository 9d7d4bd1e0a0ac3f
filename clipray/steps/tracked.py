"""A campaign's results as MLflow's runs: the campaign, below it each dataset, and each method at each number of shots.

In MLflow's table one row is then one method, and its columns are `top1`, `nll`, … (means over datasets)
and `top1/<dataset>`; so methods are sorted, filtered, charted and compared by plain names. A dataset's
run has what belongs to no method: how its backbones complement each other, and its headline numbers.
What compares two backbones, and single seeds, are in the tables among the artifacts.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import yaml

from clipray import config, secrets, tracking
from clipray.config import Campaign, Tracking
from clipray.errors import ConfigError
from clipray.fingerprint import fingerprint, plain
from clipray.shots import named
from clipray.store import Store, provenance
from clipray.tracking import Input, Metric, Record

if TYPE_CHECKING:
    from clipray.report.summary import Row
    from clipray.steps.todo import Plan

HEADLINE = ("datasets", "backbones", "images", "failed_images", "gain", "wins", "compared")
HEADLINE += ("oracle_gain", "synergy", "synergy_low", "synergy_high", "gain_low", "gain_high")


def record(
    todo: "Plan", scores: pa.Table, standings: pa.Table, made: dict[str, str], headline: dict
) -> dict:
    """Record the campaign's runs; return where they are, or why they are not recorded.

    Args:
        scores, standings: of all datasets.
        made: the addresses of what `report.files.write` wrote, and of each dataset's scores.
        headline: the campaign's main numbers.
    """
    from clipray.report import leaderboard

    campaign = todo.campaign
    rows = leaderboard(scores)
    what = secrets.clean(plain(campaign))
    parent = _parent(todo, what, made, headline)
    what = {"campaign": campaign.name, "campaign_what": fingerprint(what)}
    scored = set(scores["dataset"].unique().to_pylist())
    children = {
        dataset.name: _dataset(todo, dataset.name, what, scores, rows, headline)
        for dataset in todo.datasets
        if dataset.name in scored
    }
    children |= {
        dataset.name: _failed(todo, dataset.name, what)
        for dataset in todo.datasets
        if dataset.name not in scored
    }
    children |= _methods(todo, what, scores, rows, standings)
    found = tracking.record(campaign.name, todo.store.uri, campaign.tracking, parent, children)
    return {key: value for key, value in found.items() if key != "written"}


def _parent(todo: "Plan", what: dict, made: dict[str, str], headline: dict) -> Record:
    """Make the campaign's record: its config, its main numbers, its tables, and the leaderboard as its description."""
    campaign = todo.campaign
    board = todo.store.read(made["markdown"].removeprefix(todo.store.uri + "/")).decode()
    artifacts = {
        "scores/scores.parquet": made["scores"],
        "scores/standings.parquet": made["standings"],
        "report/report.html": made["report"],
        "report/leaderboard.md": made["markdown"],
        "config.yaml": settings_file(campaign),
        **_files(todo.store, made),
    }
    metrics = [Metric(key, headline[key]) for key in HEADLINE if key in headline]
    note = "\n\n".join([*headline["text"], board])
    return Record(what, metrics, (), artifacts, *_about(todo, "campaign", note))


def _files(store: Store, made: dict[str, str]) -> dict[str, str]:
    """The report's tables and figures: artifact → address."""
    found = {}
    for kind in ("tables", "figures"):
        folder = made[kind].removeprefix(store.uri + "/")
        for name in sorted(store.names(folder)):
            found[f"report/{kind}/{name}"] = store.place(f"{folder}/{name}")
    return found


def settings_file(campaign: Campaign) -> bytes:
    """Write the config as YAML, without secrets and without its place: a moved workspace is the same campaign."""
    values = campaign.model_dump(mode="json", exclude={"tracking", "workspace"})
    head = "# Add `workspace:` to run it again.\n"
    return (head + yaml.safe_dump(secrets.clean(values), sort_keys=False)).encode()


def _about(todo: "Plan", kind: str, note: str = "") -> tuple:
    """Collect the tags, note, status and times that all runs of a campaign have in common."""
    tags = tracking.origin("jobs.run", provenance()) | {
        "clipray.kind": kind,
        "clipray.provenance": provenance(),
    }
    return tags, note, "FINISHED", todo.started


def _dataset(
    todo: "Plan", dataset: str, what: dict, scores: pa.Table, rows: list["Row"], headline: dict
) -> Record:
    """Make a dataset's record: how the backbones complement each other, and its headline numbers."""
    names = todo.prompts[dataset]
    works = {split: work for (name, split), work in todo.works.items() if name == dataset}
    params = what | {
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
    metrics = list(_set_metrics(dataset, scores, rows, headline))
    return Record(params, metrics, inputs, {}, *_about(todo, "dataset"))


def _failed(todo: "Plan", dataset: str, what: dict) -> Record:
    """Make the record of a dataset that has no score, with the reason."""
    tags, _, _, started = _about(todo, "dataset")
    reasons = [row["error"] for row in todo.failed if row["dataset"] in (None, dataset)]
    return Record(
        what | {"dataset": dataset},
        tags=tags,
        note="\n\n".join(reasons),
        status="FAILED",
        started=started,
    )


def _set_metrics(
    dataset: str, scores: pa.Table, rows: list["Row"], headline: dict
) -> Iterator[Metric]:
    """Name the measures: plain names for the headline's head (or the first head), `name/head` for the others."""
    from clipray.report import gains, summary

    frame = gains.clean(scores)
    frame = frame[frame["dataset"] == dataset]
    first = headline.get("head", rows[0].head if rows else "")
    whole = (frame["method"] == "set") & ~frame["metric"].isin(summary.SUPPORT)
    measures = frame[whole].groupby(["head", "metric"])["value"].mean()
    for (head, metric), value in measures.items():
        yield Metric(metric if head == first else f"{metric}/{head}", value)
    for name, column in (("scored", "n_scored"), ("expected", "n_expected")):
        yield Metric(name, float(frame[column].max()) if len(frame) else 0.0)
    top1 = frame[frame["metric"] == "top1"].groupby(["head", "method", "shots"])["value"].mean()
    best, shots = headline.get("method"), headline.get("shots", 0)
    chosen = {
        "oracle_top1": ("oracle", 0),
        "best_single_on_test_top1": ("best_single_on_test", 0),
        "best_single_on_support_top1": ("best_single_on_support", shots),
        "headline_method_top1": (best, shots),
    }
    for name, (method, at) in chosen.items():
        if (first, method, at) in top1.index:
            yield Metric(name, float(top1[first, method, at]))


def _methods(
    todo: "Plan", what: dict, scores: pa.Table, rows: list["Row"], standings: pa.Table
) -> dict[str, Record]:
    """Make a record per head, method and number of shots: every metric's mean over datasets, and each value."""
    from clipray.report import gains, summary

    frame = gains.clean(scores)
    keys = ["head", "method", "shots"]
    means = frame.groupby([*keys, "metric", "dataset"])["value"].mean().reset_index()
    parts = dict(iter(means.groupby(keys)))
    stands = {tuple(row[key] for key in keys): row for row in standings.to_pylist()}
    about = _about(todo, "method")
    found = {}
    for row in rows:
        if row.method.startswith(summary.ALONE_ON_TEST):
            continue  # a bound for every fuser, which its own record holds as `synergy_on_test`
        place = (row.head, row.method, row.shots)
        params = what | {
            "head": row.head,
            "method": row.method,
            "shots": named(row.shots),
            "kind": row.kind,
        }
        metrics = [*_scores(parts[place]), *_gains(row, stands.get(place, {}))]
        labels = f"@{named(row.shots)}" if row.shots else ""
        found[f"{row.head}:{row.method}{labels}"] = Record(params, metrics, (), {}, *about)
    return found


def _scores(part: pd.DataFrame) -> Iterator[Metric]:
    for metric, value in part.groupby("metric")["value"].mean().items():
        yield Metric(metric, value)
    for row in part.itertuples(index=False):
        yield Metric(f"{row.metric}/{row.dataset}", row.value)


def _gains(row: "Row", stand: dict) -> Iterator[Metric]:
    """Yield intervals, wins and ranks over datasets."""
    for name, gain in (("on_support", row.on_support), ("on_test", row.on_test)):
        if gain:
            yield Metric(f"gain_{name}_low", gain.low)
            yield Metric(f"gain_{name}_high", gain.high)
            for count in ("wins", "ties", "losses"):
                yield Metric(f"{count}_{name}", getattr(gain, count))
    if row.synergy:
        yield Metric("synergy_low", row.synergy.low)
        yield Metric("synergy_high", row.synergy.high)
    for key, name in (("mean_rank", "mean_rank"), ("correlation", "gain_complementarity_corr")):
        yield Metric(name, stand.get(key))


def check(name: str, wanted: Any) -> None:
    """Check before work starts whether MLflow takes the runs; see `tracking.check`.

    Args:
        name: of the record. wanted: a config with `workspace` and `tracking`.
    """
    tracking.check(name, wanted.workspace, wanted.tracking)


def kept(campaign: Campaign) -> bool:
    """Tell whether the workspace has a record of the campaign, sent or not."""
    return tracking.stated(campaign.name, campaign.workspace)


def again(campaign: Campaign) -> dict:
    """Send what could not be sent of a campaign that was published before; return where its runs are."""
    return tracking.send(campaign.name, campaign.workspace, campaign.tracking)


def send_recorded(workspace: str, name: str | None, sets: list[str]) -> Iterator[dict]:
    """Send the records of a workspace, or one of them, to where each was meant to go.

    Args:
        workspace: a local folder or a URI.
        name: one record; None: all.
        sets: `tracking.uri=…` and `tracking.experiment=…` that stand above what was meant; `tracking.uri=` is the
            workspace's own database.

    Yields:
        for each record its `name` and what `tracking.record` returns.

    Raises:
        ConfigError: there is no such record, or a secret of its address is missing.
    """
    store = Store(workspace)
    known = tracking.names(store)
    if not known or (name and name not in known):
        there = f"recorded there: {', '.join(known)}" if known else "nothing is recorded there"
        raise ConfigError(f"{store.uri} has no record{f' of {name}' if name else ''}; {there}")
    plans = []
    for one in [name] if name else known:
        values = config.apply_sets({"tracking": tracking.wanted(one, store.uri)}, sets)
        if unknown := set(values) - {"tracking"}:
            raise ConfigError(f"--set {unknown.pop()}: only tracking.uri and tracking.experiment")
        given = {key: value for key, value in values["tracking"].items() if value is not None}
        wanted = config.parse(Tracking, given, "tracking")
        tracking.check_experiment(wanted)
        plans.append((one, wanted))
    for one, wanted in plans:
        yield {"name": one, **tracking.send(one, store.uri, wanted, verify=True)}
