"""Scores, failures and settings → what the page shows: numbers, words, charts, and in which sections."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import yaml

from clipray.report import details, drawn, gains, methods, summary, tables, weights
from clipray.report.canvas import Chart
from clipray.report.drawn import most_shots, series, top
from clipray.report.summary import ON_SUPPORT, ORACLE, Row
from clipray.report.words import headline

SHOWN_FAILURES, SHOWN_REASONS = 200, 50


class Section(NamedTuple):
    """A part of the page: its anchor, its title in the contents, its template."""

    id: str
    title: str
    template: str


class Tile(NamedTuple):
    """One of the few numbers on top, its interval, and what it is."""

    number: str
    interval: str
    words: str
    first: bool = False


def contents(
    scores: pa.Table,
    failures: pa.Table,
    about: dict,
    standings: pa.Table | None = None,
    robustness: dict | None = None,
    looked_at: Sequence[dict] = (),
) -> dict[str, Any]:
    """What the page shows: numbers, words and charts.

    Args:
        scores: `schema.SCORES`.
        failures: `schema.FAILURES`.
        about: `campaign` (the config as a mapping, its `name` in it), `methods` (method → one sentence), `changes`
            (since the last campaign, see `steps.publish`), and what else a reader may ask for (versions, commit,
            counts); all optional, shown as it is.
        standings: `schema.STANDINGS`; ranks and correlations are shown where it has them.
        robustness: see `robustness.section`.
        looked_at: by dataset, what single images say, see `steps.publish.details`.
    """
    rows = summary.leaderboard(scores)
    seen = about.get("seen", {})
    found = headline(scores, failures, seen)
    campaign = about.get("campaign", {})
    head = found.get("head") or (rows[0].head if rows else "")
    stands = (
        {(s["head"], s["method"], s["shots"]): s for s in standings.to_pylist()}
        if standings
        else {}
    )
    described = methods.descriptions(rows, about.get("methods", {}))
    groups, means = methods.board(rows), methods.means(scores)
    context = {
        "name": campaign.get("name", "campaign"),
        "made": about.get("made", {}).get("date", ""),
        "headline": found,
        "tiles": list(_tiles(scores, found)),
        "shots": tables.columns(rows),
        "board": groups,
        "kinds": {group.kind: group.title.partition(":")[0] for group in groups},
        "heads": sorted({row.head for row in rows}),
        "rows": rows,
        "ids": methods.ids(rows),
        "means": means,
        "quality": _had(methods.QUALITY, means),
        "spent": methods.SPENT,
        "has_costs": any("gflops" in own for own in means.values()),
        "live": methods.live(scores, rows),
        "descriptions": described.values(),
        "describe": described.get,
        "names": list(summary.counts(scores).index),
        "datasets": _datasets(scores, rows, head, seen),
        "stands": stands,
        "charts": drawn.of_scores(scores, rows, head, stands),
        "costs": drawn.of_costs(scores, rows, head),
        "pairs": drawn.of_pairs(scores, head),
        "backbones": _backbones(scores, head),
        "weights": weights.section(scores, rows, head),
        "failures": _failures(failures),
        "robustness": robustness,
        "images": details.section(looked_at),
        "changes": about.get("changes"),
        "settings": yaml.safe_dump(campaign, sort_keys=False) if campaign else "",
        "provenance": _provenance(about),
    }
    return context | {"sections": list(_sections(context))}


def _had(metrics: Mapping[str, str], means: Mapping) -> dict[str, str]:
    """Those of the metrics that any method has."""
    return {
        key: title for key, title in metrics.items() if any(key in own for own in means.values())
    }


def _provenance(about: dict) -> dict[str, Any]:
    """What is said of where the numbers come from: first when and with what, then versions and counts."""
    apart = ("campaign", "methods", "changes", "seen", "made")
    return about.get("made", {}) | {key: value for key, value in about.items() if key not in apart}


def _sections(context: dict[str, Any]) -> Iterator[Section]:
    """The sections that have something to show, in the order of the page."""
    charted = context["charts"]
    every = {
        "leaderboard": ("Leaderboard", True),
        "gains": ("Where fusing helps", "gains" in charted),
        "complementarity": (
            "How the backbones complement each other",
            "headroom" in charted or context["pairs"] or context["backbones"],
        ),
        "overlap": ("Which are right together", context["images"]),
        "weights": ("How fusers weigh the backbones", context["weights"]),
        "costs": ("What it costs", context["costs"]),
        "methods": ("All methods, all metrics", context["rows"]),
        "datasets": ("Dataset by dataset", True),
        "images": ("Images, classes, confidence", context["images"]),
        "changes": ("Since the last campaign", context["changes"]),
        "robustness": ("Robustness", context["robustness"]),
        "failures": ("What could not be used", True),
        "settings": ("Settings and provenance", context["settings"] or context["provenance"]),
    }
    for name, (title, shown) in every.items():
        if shown:
            yield Section(name, title, f"{name}.html.j2")


def figures(context: dict[str, Any]) -> Iterator[Chart]:
    """Every chart of the page."""
    yield from context["charts"].values()
    yield from (pair["chart"] for pair in context["pairs"])
    if context["images"]:
        yield context["images"]["upset"]
        yield from (panel["chart"] for panel in context["images"]["panels"])
    if context["weights"]:
        yield context["weights"]["chart"]
    if context["costs"]:
        yield context["costs"]["chart"]
        if "spent" in context["costs"]:
            yield context["costs"]["spent"]
    if context["robustness"] and context["robustness"].get("chart"):
        yield context["robustness"]["chart"]


def _tiles(scores: pa.Table, found: dict) -> Iterator[Tile]:
    """The few numbers on top; the synergy first, and wins of the same comparison."""
    counts = summary.counts(scores)
    of = " of the same comparison"
    if "synergy" in found:
        words = f"points of synergy: {found['method']} over itself on one backbone, same labels"
        yield Tile(gains.points(found["synergy"]), _interval(found, "synergy"), words, first=True)
        yield Tile(
            f"{found['wins']} of {found['compared']}", "", "datasets on which there is synergy"
        )
        of = ""
    if "gain" in found:
        words = f"points: {found['method']} over the best single backbone"
        if "synergy" in found:
            words += ", which labels teach too"
        yield Tile(gains.points(found["gain"]), _interval(found, "gain"), words, first=bool(of))
        if of:
            yield Tile(
                f"{found['wins']} of {found['compared']}", "", "datasets on which it is better"
            )
    if "oracle_gain" in found:
        words = (
            "points: the oracle over the best single backbone of each test set, a bound on choosing"
        )
        yield Tile(gains.points(found["oracle_gain"]), "", words)
    yield Tile(f"{found['backbones']}", "", "backbones")
    images = f"{int(counts['n_scored'].sum()):,}".replace(",", " ")
    missing = int((counts["n_expected"] - counts["n_scored"]).sum())
    told = f", {missing} could not be" if missing else ", all there were"
    yield Tile(images, "", "test images scored" + told)


def _interval(found: dict, key: str) -> str:
    """`95 %: +0.3 to +2.1` of a headline number; nothing where it has no interval."""
    ends = [found.get(f"{key}_{end}") for end in ("low", "high")]
    if None in ends:
        return ""
    return f"95 %: {gains.points(ends[0])} to {gains.points(ends[1])}"


def _backbones(scores: pa.Table, head: str) -> list[dict]:
    """Each backbone's accuracy, and what it alone and its fair share bring to the oracle, where these are stored."""
    frame = gains.clean(scores)
    frame = frame[(frame["head"] == head) & (frame["kind"] == "single")]
    frame = frame[frame["metric"].isin(["top1", "exclusive", "shapley"])]
    means = frame.pivot_table(index="method", columns="metric", values="value")
    return [
        {"name": name, **{m: float(v) for m, v in means.loc[f"single/{name}"].items()}}
        for name in summary.backbones(scores)
        if f"single/{name}" in means.index
    ]


def _datasets(scores: pa.Table, rows: list[Row], head: str, seen: dict) -> dict:
    """The table per dataset: methods across."""
    shots = most_shots(rows, head)
    table = summary.per_dataset(scores)
    table = table[table["head"] == head]
    across = [ON_SUPPORT] * bool(shots) + [row.method for row in top(rows, head, shots)] + [ORACLE]
    values = {method: series(table, method, shots).to_dict() for method in dict.fromkeys(across)}
    singles = table[(table["kind"] == "single") & (table["shots"] == table["shots"].min())]
    share, unclear = (
        summary.measures_of_set(scores, "complementarity", head),
        summary.alike_names(scores),
    )
    short = summary.short_classes(scores)
    few = short[short["shots"] == shots].set_index("dataset")["value"].to_dict()
    lines = []
    for dataset, count in summary.counts(scores).iterrows():
        own = singles[singles["dataset"] == dataset].sort_values("top1")
        lines.append(
            {
                "dataset": dataset,
                "scored": int(count["n_scored"]),
                "expected": int(count["n_expected"]),
                "best": "" if own.empty else own.iloc[-1]["method"].removeprefix("single/"),
                "best_top1": None if own.empty else float(own.iloc[-1]["top1"]),
                "values": {method: found.get(dataset) for method, found in values.items()},
                "complementarity": share.get(dataset),
                "alike": unclear.get(dataset, (0.0, ""))[0],
                "short": int(few.get(dataset, 0)),
                "seen": seen.get(dataset, []),
            }
        )
    return {
        "shots": shots,
        "methods": list(values),
        "lines": lines,
        "alike": bool(unclear),
        "short": bool(few),
        "seen": any(seen.values()),
        "backbones": len(summary.backbones(scores)),
        "bounds": {row.method for row in rows if row.kind == "bound"},
    }


def _failures(failures: pa.Table) -> dict[str, Any]:
    """What failed: `wholes` (datasets and backbones, one line a reason), and images with `reasons` and their number."""
    frame = failures.to_pandas().fillna({"dataset": "every dataset", "split": "", "backbone": ""})
    images, wholes = frame[frame["image_id"].notna()], frame[frame["image_id"].isna()]
    keys = ["dataset", "split", "backbone", "error"]
    numbers = images.groupby(keys).size().sort_values(ascending=False, kind="stable")
    return {
        "wholes": wholes.to_dict("records"),
        "images": images.head(SHOWN_FAILURES).to_dict("records"),
        "reasons": [(*key, int(number)) for key, number in numbers.items()][:SHOWN_REASONS],
        "number": len(images.drop_duplicates(["dataset", "split", "image_id"])),
        "rows": len(images),
    }
