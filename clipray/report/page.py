"""Scores, failures and settings → one self-contained HTML page."""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from clipray.report import charts, costs, gains, summary, tables
from clipray.report.summary import ON_SUPPORT, ON_TEST, ORACLE, Row
from clipray.report.words import headline

SHOWN_FAILURES, SHOWN_REASONS = 200, 50
SHOWN_METHODS = 4  # in charts and in the table per dataset
PAIRS = (  # metric, title, signed, what row and column mean
    ("disagreement", "Disagreement, %", False, "Images that exactly one of the two has right."),
    (
        "double_fault",
        "Double fault, %",
        False,
        "Images that both have wrong: what no choice between them can mend.",
    ),
    ("rescue", "Rescue, %", False, "Of the images the column has wrong, those the row has right."),
    (
        "yule_q",
        "Yule's Q",
        True,
        "1: right and wrong together; 0: independent; below 0: they complete each other.",
    ),
)
ALIASES = {"rescue": ("rescue", "rescue_rate"), "yule_q": ("yule_q", "q_statistic")}
IN_WORDS = {
    ORACLE: "right if any backbone is right: a bound on choosing one backbone per image, not on fusing",
    ON_TEST: "the backbone that turns out best on the test set: known only in hindsight",
    ON_SUPPORT: "the backbone that is best on the labelled support images",
}


def render(
    scores: pa.Table,
    failures: pa.Table,
    about: dict,
    standings: pa.Table | None = None,
    robustness: dict | None = None,
) -> str:
    """The report as HTML that needs nothing from elsewhere.

    Args:
        scores: `schema.SCORES`.
        failures: `schema.FAILURES`.
        about: `campaign` (the config as a mapping, its `name` in it), `methods` (method → one sentence), `changes`
            (since the last campaign, see `steps.publish`), and what else a reader may ask for (versions, commit,
            counts); all optional, shown as it is.
        standings: `schema.STANDINGS`; ranks and correlations are shown where it has them.
        robustness: see `robustness.section`.
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
    context = {
        "name": campaign.get("name", "campaign"),
        "headline": found,
        "tiles": _tiles(scores, failures, found),
        "shots": tables.columns(rows),
        "matrix": tables.matrix(rows),
        "heads": sorted({row.head for row in rows}),
        "rows": rows,
        "datasets": _datasets(scores, rows, head, seen),
        "stands": stands,
        "charts": _charts(scores, rows, head, stands),
        "costs": _costs(scores, rows, head),
        "pairs": _pairs(scores, head),
        "backbones": _backbones(scores, head),
        "failures": _failures(failures),
        "robustness": robustness,
        "methods": IN_WORDS | about.get("methods", {}),
        "changes": about.get("changes"),
        "settings": yaml.safe_dump(campaign, sort_keys=False) if campaign else "",
        "provenance": {
            key: value
            for key, value in about.items()
            if key not in ("campaign", "methods", "changes", "seen")
        },
    }
    return _template().render(context)


@functools.cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": summary.percent,
        "points": gains.points,
        "interval": tables.interval,
        "correlation": tables.correlation,
        "shots_name": tables.shots_name,
        "fair": summary.compared,
        "svg": Markup,
    }
    return environment.get_template("page.html.j2")


def _tiles(scores: pa.Table, failures: pa.Table, found: dict) -> list[tuple[str, str]]:
    """The few numbers on top: (number, what it is)."""
    counts = summary.counts(scores)
    tiles = []
    if "synergy" in found:
        number = _with_interval(found, "synergy")
        tiles.append((number, f"points of synergy: {found['method']} over itself on one backbone"))
    if "gain" in found:
        number = _with_interval(found, "gain")
        tiles.append((number, f"points: {found['method']} over the best single backbone"))
        tiles.append((f"{found['wins']} of {found['compared']}", "datasets on which it is better"))
    if "oracle_gain" in found:
        tiles.append(
            (gains.points(found["oracle_gain"]), "points: the oracle, a bound on choosing")
        )
    tiles.append((f"{found['backbones']}", "backbones"))
    images = f"{int(counts['n_scored'].sum()):,}".replace(",", " ")
    missing = int((counts["n_expected"] - counts["n_scored"]).sum())
    tiles.append(
        (
            images,
            "test images scored" + (f", {missing} could not be" if missing else ", all there were"),
        )
    )
    return tiles


def _with_interval(found: dict, key: str) -> str:
    """`+1.2 [+0.3, +2.1]` of a headline number."""
    ends = [found.get(f"{key}_{end}") for end in ("low", "high")]
    shown = f" [{gains.points(ends[0])}, {gains.points(ends[1])}]" if None not in ends else ""
    return gains.points(found[key]) + shown


def _top(rows: list[Row], head: str, shots: int) -> list[Row]:
    """The fused methods of one head at one number of shots, from the greatest gain down."""
    fused = [row for row in rows if (row.head, row.kind, row.shots) == (head, "fuser", shots)]
    gain = {row: against.mean if (against := summary.compared(row)) else -1.0 for row in fused}
    return sorted(fused, key=lambda row: -gain[row])[:SHOWN_METHODS]


def _most_shots(rows: list[Row], head: str) -> int:
    return max((row.shots for row in rows if row.head == head and row.kind == "fuser"), default=0)


def _series(table: pd.DataFrame, method: str, shots: int, column: str = "top1") -> pd.Series:
    """dataset → a column of one method; at no shots where it has none at these."""
    own = table[table["method"] == method]
    chosen = own[own["shots"] == shots]
    return (own[own["shots"] == 0] if chosen.empty else chosen).set_index("dataset")[column]


def _charts(scores: pa.Table, rows: list[Row], head: str, stands: dict) -> dict[str, charts.Chart]:
    shots = _most_shots(rows, head)
    top = _top(rows, head, shots)
    table = summary.per_dataset(scores)
    table = table[table["head"] == head]
    against = "on_support" if shots else "on_test"
    drawn = {}
    if not top or table[table["method"] == top[0].method][against].isna().all():
        return drawn
    methods = [row.method for row in top]
    at = table[(table["shots"] == shots) & table["method"].isin(methods)]
    reference = _series(table, ON_SUPPORT if shots else ON_TEST, shots)
    oracle = _series(table, ORACLE, shots)
    drawn["gains"] = charts.gains(at, methods, oracle - reference, against)
    if not oracle.empty:
        best, fused = _series(table, ON_TEST, shots), _series(table, methods[0], shots)
        drawn["headroom"] = charts.headroom(best, oracle, fused, methods[0])
    stand = stands.get((head, methods[0], shots), {})
    if stand.get("correlation") is not None:
        share = pd.Series(summary.measures_of_set(scores, "complementarity", head))
        gain = _series(table, methods[0], shots, against)
        drawn["scatter"] = charts.scatter(gain, share, methods[0], tables.correlation(stand))
    if len({row.shots for row in rows if row.kind == "fuser" and row.shots}) > 1:
        drawn["shots"] = charts.against_shots(
            _curves(rows, head, methods[: SHOWN_METHODS - 1]), _levels(rows, head)
        )
    return drawn


def _costs(scores: pa.Table, rows: list[Row], head: str) -> dict:
    """Accuracy against cost where it is known: a chart, the points on the front, and what support sets choose."""
    shots = _most_shots(rows, head)
    points = costs.curve(scores, head, 0) or costs.curve(scores, head, shots)
    if not points:
        return {}
    shown = [p for p in points if p.on_front or p.kind in ("single", "full")]
    chart = charts.against_cost(points)
    return {"chart": chart, "points": shown, "choices": costs.choices(scores, head, shots)}


def _curves(rows: list[Row], head: str, methods: list[str]) -> list[charts.Curve]:
    curves = []
    for method in [*methods, ON_SUPPORT]:
        line = sorted(
            (r for r in rows if (r.head, r.method) == (head, method) and r.shots),
            key=lambda r: r.shots,
        )
        if line:
            std = [row.top1_std or 0.0 for row in line]
            curves.append(
                charts.Curve(method, [row.shots for row in line], [row.top1 for row in line], std)
            )
    return curves


def _levels(rows: list[Row], head: str) -> list[tuple[str, float]]:
    """The best fuser without labels and the best single backbone in hindsight."""
    own = [row for row in rows if row.head == head and row.shots == 0]
    free = max((row for row in own if row.kind == "fuser"), key=lambda row: row.top1, default=None)
    shown = [row for row in own if row.method == ON_TEST] + ([free] if free else [])
    return [(row.method, row.top1) for row in shown]


def _pairs(scores: pa.Table, head: str) -> list[dict]:
    found = []
    for metric, title, signed, words in PAIRS:
        for name in ALIASES.get(metric, (metric,)):
            matrix = summary.pair_means(scores, name, head)
            if not matrix.isna().all(axis=None):
                found.append(
                    {
                        "title": title,
                        "words": words,
                        "chart": charts.heat_map(matrix, title, metric, signed),
                    }
                )
                break
    return found


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
    shots = _most_shots(rows, head)
    table = summary.per_dataset(scores)
    table = table[table["head"] == head]
    across = [ON_SUPPORT] * bool(shots) + [row.method for row in _top(rows, head, shots)] + [ORACLE]
    values = {method: _series(table, method, shots).to_dict() for method in dict.fromkeys(across)}
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
