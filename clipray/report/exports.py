"""The page's tables and figures as files beside it: CSV, Markdown and LaTeX; SVG and PNG."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from clipray.report import page
from clipray.report.contents import figures
from clipray.report.page import Files
from clipray.report.summary import Row
from clipray.shots import words
from clipray.store import Store

TABLES, FIGURES = "tables", "figures"
SUFFIXES = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
PICTURES = {"svg": "SVG", "png": "PNG"}


def write(store: Store, folder: str, context: dict[str, Any], beside: Mapping[str, str]) -> str:
    """Write every table and figure of a page into a folder, and give the page that links to them.

    Args:
        folder: of the page. context: `contents`. beside: title → name of what lies there already.
    """
    tables: dict[str, dict[str, str]] = {}
    for name, frame in frames(context).items():
        for suffix, kind in SUFFIXES.items():
            place = f"{TABLES}/{name}.{suffix}"
            store.write(f"{folder}/{place}".lstrip("/"), formatted(frame, suffix).encode())
            tables.setdefault(name, {})[kind] = place
    drawn: dict[str, dict[str, str]] = {}
    for chart in figures(context):
        for suffix, content in chart.files():
            place = f"{FIGURES}/{chart.name}.{suffix}"
            store.write(f"{folder}/{place}".lstrip("/"), content)
            drawn.setdefault(chart.name, {})[PICTURES[suffix]] = place
    listed = [{"title": title, "links": {kind: place}} for title, kind, place in _beside(beside)]
    listed += [{"title": f"table: {name}", "links": links} for name, links in tables.items()]
    return page.html(context, Files(tuple(listed), tables, drawn))


def _beside(beside: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for title, place in beside.items():
        yield title, place.rpartition(".")[2], place


def frames(context: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """The page's tables by name; those that are empty are left out. Columns in `, %` and `points` are 100 times."""
    found = {
        "leaderboard": pd.DataFrame(_board(context)),
        "methods": pd.DataFrame(_method(context, row) for row in context["rows"]),
        "datasets": pd.DataFrame(_dataset(context, line) for line in context["datasets"]["lines"]),
        "backbones": pd.DataFrame(map(_backbone, context["backbones"])),
        "costs": pd.DataFrame(map(_point, context["costs"].get("points", ()))),
    }
    return {name: frame for name, frame in found.items() if not frame.empty}


def formatted(frame: pd.DataFrame, suffix: str) -> str:
    """A table as text. CSV has all digits; the others have those that a reader wants.

    >>> print(formatted(pd.DataFrame({"method": ["a_b"], "top-1, %": [51.26]}), "md"))
    | method | top-1, % |
    |---|---:|
    | a_b | 51.3 |
    <BLANKLINE>
    """
    if suffix == "csv":
        return frame.to_csv(index=False)
    right = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
    shown = pd.DataFrame({name: [_shown(name, v) for v in frame[name]] for name in frame})
    if suffix == "md":
        rows = [list(shown), *shown.to_numpy().tolist()]
        lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
        lines.insert(1, "|" + "".join("---:|" if one else "---|" for one in right))
        return "\n".join(lines) + "\n"
    styler = shown.style.format(escape="latex").format_index(escape="latex", axis="columns")
    layout = "".join("r" if one else "l" for one in right)
    return "% needs \\usepackage{booktabs}\n" + styler.hide(axis="index").to_latex(
        column_format=layout, hrules=True
    )


def _shown(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return ""
    if float(value).is_integer() and not name.endswith(("%", "points")):
        return f"{int(value)}"
    return f"{value:.1f}" if name.endswith(("%", "points")) else f"{value:.3g}"


def _board(context: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in context["board"]:
        for line in group.lines:
            cells = {f"{words(k)}, %": _top1(line.cells.get(k)) for k in context["shots"]}
            yield {"head": group.head, "kind": group.kind, "method": line.method} | cells


def _top1(row: Row | None) -> float | None:
    return None if row is None else 100 * row.top1


def _method(context: dict[str, Any], row: Row) -> dict[str, Any]:
    found = {key: getattr(row, key) for key in ("head", "method", "kind", "shots", "datasets")}
    found["top-1, %"] = _top1(row)
    for name, gain in (
        ("synergy", row.synergy),
        ("gain on support", row.on_support),
        ("gain on test", row.on_test),
    ):
        for end in ("mean", "low", "high"):
            value = getattr(gain, end) if gain else None
            found[f"{name} {end}, points"] = None if value is None else 100 * value
        for count in ("wins", "ties", "losses"):
            found[f"{name} {count}"] = getattr(gain, count) if gain else None
    own = context["means"].get((row.head, row.method, row.shots), {})
    metrics = context["quality"] | (context["spent"] if context["has_costs"] else {})
    for metric, title in metrics.items():
        value = own.get(metric)
        found[title] = 100 * value if value is not None and title.endswith("%") else value
    return found


def _dataset(context: dict[str, Any], line: dict[str, Any]) -> dict[str, Any]:
    found = {key: line[key] for key in ("dataset", "scored", "expected")}
    found |= {"best single": line["best"], "best single, %": _hundred(line["best_top1"])}
    values = {f"{name}, %": _hundred(value) for name, value in line["values"].items()}
    return found | values | {"complementarity, %": _hundred(line["complementarity"])}


def _backbone(line: dict[str, Any]) -> dict[str, Any]:
    return {
        key if key == "name" else f"{key}, %": v if key == "name" else 100 * v
        for key, v in line.items()
    }


def _point(point: Any) -> dict[str, Any]:
    return {
        "backbones": " + ".join(point.members),
        "kind": point.kind,
        "threshold": point.threshold,
        "GFLOPs": point.gflops,
        "top-1, %": 100 * point.top1,
        "on the front": int(point.on_front),
    }


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value
