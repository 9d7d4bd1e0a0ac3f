"""Scores → one self-contained HTML page, a Markdown table and a table for the terminal.

    summary     scores → leaderboard rows, gains per dataset, pair tables
    gains       differences over datasets with intervals: over a reference, and synergy
    methods     groups of the leaderboard, every metric of a method, and what filters need
    words       the headline: what came out, in sentences
    details     what single images say: trust, classes, overlap
    drawn       which charts a page has; charts and canvas draw them as SVG and PNG
    contents    all of it → what the page shows, in sections
    page        that → HTML (templates/)
    tables      leaderboard → Markdown, terminal
    exports     tables and figures as files beside the page
    files       where a campaign's scores and its report lie in a workspace
    campaigns   several campaigns side by side

It summarises stored scores (means, differences, intervals over datasets) and computes no metric anew.
"""

from importlib import import_module

_HOME = {
    "console_table": "tables",
    "headline": "words",
    "leaderboard": "summary",
    "markdown": "tables",
    "read": "files",
    "render": "page",
    "write": "files",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    """Load what is asked for only then: matplotlib and scipy take seconds, and a job may have nothing to report."""
    if name in _HOME:
        return getattr(import_module(f"clipray.report.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
