"""What there is to show → one self-contained HTML page."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from clipray import shots
from clipray.report import gains, methods, summary, tables
from clipray.report.contents import contents


class Files(NamedTuple):
    """What lies beside the page, as links relative to it.

    Attributes:
        listed: (title, {kind: link}) for the contents. tables, figures: name → {kind: link}.
    """

    listed: tuple[Mapping, ...] = ()
    tables: Mapping[str, Mapping[str, str]] = {}
    figures: Mapping[str, Mapping[str, str]] = {}


def render(*given: Any, **named: Any) -> str:
    """Draw the report as HTML that needs nothing from elsewhere; it takes the arguments of `contents`."""
    return html(contents(*given, **named))


def html(context: dict[str, Any], files: Files | None = None) -> str:
    """The page that shows `contents`, with links to what lies beside it."""
    return template("page.html.j2").render(context, files=files or Files())


@functools.cache
def template(name: str) -> Any:
    """A template, with the filters that all of them use."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": summary.percent,
        "points": gains.points,
        "interval": tables.interval,
        "correlation": tables.correlation,
        "shots_name": shots.words,
        "shots": shots.named,
        "fair": summary.compared,
        "as_metric": methods.as_metric,
        "breakable": _breakable,
        "json": lambda value: Markup(methods.as_json(value)),
        "svg": Markup,
    }
    return environment.get_template(name)


def _breakable(name: str) -> Markup:
    """A name that may go on in the next line behind `_`, `/` and `-`."""
    text = str(escape(name.removeprefix("single/")))
    for mark in "_/-":
        text = text.replace(mark, f"{mark}<wbr>")
    return Markup(text)
