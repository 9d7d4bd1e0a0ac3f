"""The leaderboard as Markdown and for the terminal: methods down, shots across."""

from typing import TYPE_CHECKING

import pyarrow as pa

from clipray.report.gains import Gain, points
from clipray.report.summary import ALONE_ON_TEST, COMPARED, Row, compared, leaderboard, percent
from clipray.shots import words

if TYPE_CHECKING:
    from rich.table import Table

CAPTION = (
    "Mean top-1 accuracy in percent over datasets (and seeds); behind it the gain in points over the best single "
    "backbone picked with the same labels or, without labels, over the best one of each test set in hindsight. "
    "alone/<method>: the same method with the same labels on one backbone; what a fuser has above it is synergy."
)
CORRELATION = ("correlation", "correlation_low", "correlation_high")
KINDS = ("bound", *COMPARED, "alone", "reference", "single")  # from the top of the table down
ORDER = {kind: place for place, kind in enumerate(KINDS)}
MARKS = {"bound": " (bound)", "control": " (control)"}
SHOWN = ("bound", *COMPARED)  # the kinds with a gain beside their accuracy


def columns(rows: list[Row]) -> list[int]:
    """The numbers of shots that occur; 0 first."""
    return sorted({row.shots for row in rows})


def matrix(rows: list[Row]) -> list[tuple[str, str, str, dict[int, Row]]]:
    """(head, method, kind, shots → row): in the order of `ORDER`, each kind from the best down."""
    lines: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        if row.method.startswith(ALONE_ON_TEST):  # one line for every fuser: in the full list only
            continue
        lines.setdefault((row.head, row.method, row.kind), {})[row.shots] = row
    best = {key: max(row.top1 for row in cells.values()) for key, cells in lines.items()}
    keys = sorted(lines, key=lambda key: (key[0], ORDER[key[2]], -best[key], key[1]))
    return [(*key, lines[key]) for key in keys]


def interval(gain: Gain | None) -> str:
    """`+1.2 [+0.3, +2.1]`, or a dash."""
    if gain is None:
        return "–"
    return points(gain.mean) + (
        f" [{points(gain.low)}, {points(gain.high)}]" if gain.low is not None else ""
    )


def correlation(stand: dict) -> str:
    """A row of `schema.STANDINGS` as a sentence on gain and complementarity."""
    value, low, high = (f"{stand[key]:+.2f}".replace("-", "−") for key in CORRELATION)
    return f"Pearson's correlation over datasets: {value} [{low}, {high}]."


def markdown(scores: pa.Table) -> str:
    """The leaderboard as a Markdown table, its caption below."""
    rows = leaderboard(scores)
    shots = columns(rows)
    lines = [
        "| method | " + " | ".join(map(words, shots)) + " |",
        "|---|" + "---:|" * len(shots),
    ]
    for head, method, kind, cells in matrix(rows):
        name = f"`{method}`" + MARKS.get(kind, "") + _head(rows, head)
        lines.append(f"| {name} | " + " | ".join(_cell(cells.get(k)) for k in shots) + " |")
    return "\n".join([*lines, "", CAPTION, ""])


def console_table(scores: pa.Table) -> "Table":
    """The leaderboard for the terminal; print it with a `rich` console."""
    from rich import box
    from rich.table import Table

    rows = leaderboard(scores)
    shots = columns(rows)
    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", caption_style="dim")
    table.add_column("method", no_wrap=True)
    for k in shots:
        table.add_column(words(k), justify="right", no_wrap=True)
    before = None
    for head, method, kind, cells in matrix(rows):
        if before not in (None, (head, kind)):
            table.add_section()
        before = (head, kind)
        name = method + MARKS.get(kind, "") + _head(rows, head)
        table.add_row(
            name,
            *(_coloured(cells.get(k)) for k in shots),
            style="dim" if kind == "bound" else None,
        )
    return table


def _head(rows: list[Row], head: str) -> str:
    """The head's name, where there are several."""
    return f" · {head}" if len({row.head for row in rows}) > 1 else ""


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    gain = compared(row) if row.kind in SHOWN else None
    return percent(row.top1) + (f" ({points(gain.mean)})" if gain else "")


def _coloured(row: Row | None) -> str:
    if row is None:
        return ""
    gain = compared(row) if row.kind in SHOWN else None
    if gain is None:
        return f"{percent(row.top1)}      "
    colour = "green" if gain.mean > 0 else "red" if gain.mean < 0 else "dim"
    return f"{percent(row.top1)} [{colour}]{points(gain.mean):>5}[/]"
