"""Which charts a page has: stored scores → the methods and series that are drawn."""

import pandas as pd
import pyarrow as pa

from clipray.report import charts, costs, summary, tables
from clipray.report.canvas import Chart
from clipray.report.summary import ON_SUPPORT, ON_TEST, ORACLE, Row

MANY = 10  # datasets; over fewer a correlation is a sentence, not a chart
SHOWN_METHODS = 4  # in charts and in the table per dataset
SPACES = "embeddings"  # stands for a head where measures need none
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
    (
        "cka",
        "CKA of embeddings, %",
        False,
        "How alike two spaces are, whatever their axes; 100: the same.",
    ),
    (
        "mutual_knn",
        "Shared neighbours, %",
        False,
        "Of an image's ten nearest images, those both spaces name.",
    ),
)
ALIASES = {"rescue": ("rescue", "rescue_rate"), "yule_q": ("yule_q", "q_statistic")}


def top(rows: list[Row], head: str, shots: int) -> list[Row]:
    """The fused methods of one head at one number of shots, from the greatest gain down."""
    fused = [row for row in rows if (row.head, row.kind, row.shots) == (head, "fuser", shots)]
    gain = {row: against.mean if (against := summary.compared(row)) else -1.0 for row in fused}
    return sorted(fused, key=lambda row: -gain[row])[:SHOWN_METHODS]


def most_shots(rows: list[Row], head: str) -> int:
    """The greatest number of shots that a fuser of this head has."""
    return max((row.shots for row in rows if row.head == head and row.kind == "fuser"), default=0)


def series(table: pd.DataFrame, method: str, shots: int, column: str = "top1") -> pd.Series:
    """dataset → a column of one method; at no shots where it has none at these."""
    own = table[table["method"] == method]
    chosen = own[own["shots"] == shots]
    return (own[own["shots"] == 0] if chosen.empty else chosen).set_index("dataset")[column]


def of_scores(scores: pa.Table, rows: list[Row], head: str, stands: dict) -> dict[str, Chart]:
    """Draw where fusing helps: by dataset, by shots, towards the oracle, and against complementarity."""
    shots = most_shots(rows, head)
    best = top(rows, head, shots)
    table = summary.per_dataset(scores)
    table = table[table["head"] == head]
    against = "on_support" if shots else "on_test"
    drawn = {}
    if not best or table[table["method"] == best[0].method][against].isna().all():
        return drawn
    methods = [row.method for row in best]
    at = table[(table["shots"] == shots) & table["method"].isin(methods)]
    reference = series(table, ON_SUPPORT if shots else ON_TEST, shots)
    oracle = series(table, ORACLE, shots)
    drawn["gains"] = charts.gains(at, methods, oracle - reference, against)
    if not oracle.empty:
        first, fused = series(table, ON_TEST, shots), series(table, methods[0], shots)
        drawn["headroom"] = charts.headroom(first, oracle, fused, methods[0])
    stand = stands.get((head, methods[0], shots), {})
    if stand.get("correlation") is not None and stand["datasets"] >= MANY:
        share = pd.Series(summary.measures_of_set(scores, "complementarity", head))
        gain = series(table, methods[0], shots, against)
        drawn["scatter"] = charts.scatter(gain, share, methods[0], tables.correlation(stand))
    if len({row.shots for row in rows if row.kind == "fuser" and row.shots}) > 1:
        drawn["shots"] = charts.against_shots(
            _curves(rows, head, methods[: SHOWN_METHODS - 1]), _levels(rows, head)
        )
    return drawn


def of_costs(scores: pa.Table, rows: list[Row], head: str) -> dict:
    """Accuracy against cost where it is known: a chart, the points on the front, and what support sets choose."""
    shots = most_shots(rows, head)
    points = costs.curve(scores, head, 0) or costs.curve(scores, head, shots)
    if not points:
        return {}
    shown = [p for p in points if p.on_front or p.kind in ("single", "full")]
    chart = charts.against_cost(points)
    found = {"chart": chart, "points": shown, "choices": costs.choices(scores, head, shots)}
    spent = costs.spent(scores, head, shots)
    return found | ({"spent": charts.against_spent(spent)} if len(spent) > 1 else {})


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


def of_pairs(scores: pa.Table, head: str) -> list[dict]:
    """Draw every stored measure of `PAIRS`: its `title`, `words` and `chart`."""
    found = []
    for metric, title, signed, words in PAIRS:
        for name in ALIASES.get(metric, (metric,)):
            of = SPACES if metric in ("cka", "mutual_knn") else head
            matrix = summary.pair_means(scores, name, of)
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
