"""Where a campaign's scores and its report lie in a workspace, and reading them back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from clipray import schema
from clipray.errors import ConfigError
from clipray.store import Store

FOLDER = "reports"
SCORES, FAILURES, ABOUT = "scores.parquet", "failures.parquet", "about.json"
STANDINGS = "standings.parquet"
PAGE, TABLE, SETTINGS = "report.html", "leaderboard.md", "config.yaml"
DETAILS = "details.json"  # of single images, see `steps.publish.details`
MARK, CHANGES = "published.json", "changes.md"


def write(
    store: Store,
    name: str,
    scores: pa.Table,
    failures: pa.Table,
    about: dict,
    standings: pa.Table | None = None,
) -> dict[str, str]:
    """Write a campaign's scores and failures, and its report beside them, under `reports/<name>`.

    Args:
        store: the workspace.
        name: the campaign.
        scores: `schema.SCORES`, all datasets.
        failures: `schema.FAILURES`.
        about: settings and provenance, see `page.render`.
        standings: `schema.STANDINGS`; none where nothing was ranked.

    Returns:
        the full addresses: `scores`, `failures`, `standings`, `report`, `markdown`, and the folders `tables` and
        `figures`.
    """
    folder = f"{FOLDER}/{name}"
    standings = schema.STANDINGS.empty_table() if standings is None else standings
    store.write_table(f"{folder}/{SCORES}", scores.cast(schema.SCORES))
    store.write_table(f"{folder}/{FAILURES}", failures.cast(schema.FAILURES))
    store.write_table(f"{folder}/{STANDINGS}", standings.cast(schema.STANDINGS))
    store.write_json(f"{folder}/{ABOUT}", about)
    return {
        "scores": store.place(f"{folder}/{SCORES}"),
        "failures": store.place(f"{folder}/{FAILURES}"),
        "standings": store.place(f"{folder}/{STANDINGS}"),
        **draw(store, folder, scores, failures, about, standings),
    }


def draw(
    store: Store,
    folder: str,
    scores: pa.Table,
    failures: pa.Table,
    about: dict,
    standings: pa.Table,
    source: tuple[Store, str] | None = None,
) -> dict[str, str]:
    """Write the page, its tables and its figures into a folder of `store`; their addresses.

    Args:
        source: the store and folder of what `robustness` has written; by default the same.
    """
    from clipray.report import exports, robustness
    from clipray.report.contents import contents
    from clipray.report.tables import markdown

    from_store, from_folder = source or (store, folder)
    withstood = robustness.section(from_store, from_folder)
    page, table, settings = (_within(folder, name) for name in (PAGE, TABLE, SETTINGS))
    store.write(table, markdown(scores).encode())
    details = from_store.read_json(_within(from_folder, DETAILS)) or []
    context = contents(scores, failures, about, standings, withstood, details)
    beside = {"leaderboard": TABLE}
    if (from_store.uri, from_folder) == (store.uri, folder):
        names = {"scores": SCORES, "standings": STANDINGS, "failures": FAILURES}
        beside |= {
            title: name for title, name in names.items() if store.exists(_within(folder, name))
        }
    if context["settings"]:
        store.write(settings, context["settings"].encode())
        beside["config"] = SETTINGS
    store.write(page, exports.write(store, folder, context, beside).encode())
    return {
        "report": store.place(page),
        "markdown": store.place(table),
        "tables": store.place(_within(folder, exports.TABLES)),
        "figures": store.place(_within(folder, exports.FIGURES)),
    }


def compare(
    store: Store, folder: str, campaigns: Mapping[str, pa.Table], reports: Sequence[str]
) -> str:
    """Write a page that compares campaigns; its address.

    Args:
        campaigns: name → `schema.SCORES`. reports: the address of each one's report, in the same order.
    """
    from clipray.report import campaigns as compared

    here, links = store.place(folder).rstrip("/") + "/", {}
    for name, place in zip(campaigns, reports, strict=True):
        links[name] = place.removeprefix(here) if place.startswith(here) else _link(place)
    page = _within(folder, compared.PAGE)
    store.write(page, compared.render(campaigns, links).encode())
    return store.place(page)


def _link(place: str) -> str:
    """A link to a report elsewhere on the same disk; a remote one is named and not linked."""
    return "" if "://" in place else Path(place).absolute().as_uri()


def campaigns(store: Store) -> list[str]:
    """The campaigns with stored scores."""
    return sorted(name for name in store.names(FOLDER) if store.exists(f"{FOLDER}/{name}/{SCORES}"))


def read(
    store: Store, folder: str, scores: str = SCORES
) -> tuple[pa.Table, pa.Table, dict, pa.Table]:
    """Scores, failures, settings and standings from a folder; all but the scores are empty where they are missing."""

    def table(file: str, empty: pa.Schema) -> pa.Table:
        place = _within(folder, file)
        return store.read_table(place) if store.exists(place) else empty.empty_table()

    about = store.read_json(_within(folder, ABOUT)) or {}
    found = store.read_table(_within(folder, scores))
    lacking = [name for name in schema.SCORES.names if name not in found.column_names]
    if lacking:
        raise ConfigError(
            f"{store.place(_within(folder, scores))} has no column {lacking[0]!r}: an older clipray wrote it, or it "
            "is no table of scores; `python -m jobs.run CONFIG` writes it anew"
        )
    return found, table(FAILURES, schema.FAILURES), about, table(STANDINGS, schema.STANDINGS)


def _within(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file
