"""Draw reports anew from stored scores; nothing is computed.

    python -m jobs.report workspace/demo                                   every campaign of a workspace
    python -m jobs.report configs/demo.yaml                                the campaign of a config
    python -m jobs.report workspace/demo/reports/demo/scores.parquet       one table of scores
    python -m jobs.report s3://bucket/ws --out reports/                    into another folder
    python -m jobs.report workspace/a workspace/b                          these, and a page that compares them

Writes report.html, leaderboard.md, tables and figures beside the scores; of several arguments also compared.html among
the reports of the first. The last line on stdout is one JSON object: the addresses and the headline of each report.
"""

import re

from clipray import config
from clipray.config.robustness import Robustness
from clipray.errors import ConfigError
from clipray.report import files
from clipray.store import Store
from jobs import arguments, finish, run, say

GIVEN = "a workspace (a folder or URI), a campaign's YAML file, or a table of scores"

OUT = {
    "metavar": "DIR",
    "help": "a folder, local or s3://, for the reports; default: beside the scores",
}


def places(given: str, sets: list[str]) -> tuple[Store, list[tuple[str, str]]]:
    """The store and the (folder, file) of each table of scores that an argument means."""
    if given.endswith((".yaml", ".yml")):
        campaign = config.load(Robustness, given, sets)
        store, names = Store(campaign.workspace), [campaign.name]
    elif given.endswith(".parquet"):
        folder, _, file = given.rpartition("/")
        return Store(folder or "."), [("", file)]
    else:
        store = Store(given)
        names = files.campaigns(store)
    found = [(f"{files.FOLDER}/{name}", files.SCORES) for name in names]
    if not found or not all(store.exists(f"{folder}/{file}") for folder, file in found):
        raise ConfigError(
            f"no scores under {store.place(files.FOLDER)}: run `python -m jobs.run CONFIG` first"
        )
    return store, found


def main() -> None:
    """Find the scores, draw, compare where there are several, tell where."""
    more = {"more*": "further ones, to compare with"}
    given = arguments(__doc__, config=GIVEN, first="WORKSPACE", positions=more, out=OUT)
    found = []
    for argument in (given.config, *given.more):
        say(f"looking for the scores of {argument}")
        store, here = places(argument, given.set)
        found += [(store, folder, file) for folder, file in here]
    from clipray.report import headline

    reports, scores_of = [], {}
    for store, folder, file in found:
        scores, failures, about, standings = files.read(store, folder, file)
        name = about.get("campaign", {}).get("name", "")
        key = name if name and name not in scores_of else store.place(folder or file)
        target, place = store, folder
        if given.out:
            target, place = Store(given.out), inside(key) if len(found) > 1 else ""
        source = (store, folder)
        made = files.draw(target, place, scores, failures, about, standings, source)
        told = headline(scores, failures, about.get("seen"))
        say("\n".join([*told["text"], f"report  {made['report']}"]))
        reports.append({"name": name, **made, "headline": told})
        scores_of[key] = scores
    compared = {}
    if given.more and len(scores_of) > 1:
        first = Store(given.out) if given.out else found[0][0]
        folder = "" if given.out else files.FOLDER
        compared["compared"] = files.compare(
            first, folder, scores_of, [one["report"] for one in reports]
        )
        say(f"compared  {compared['compared']}")
    finish({"reports": reports, **compared})


def inside(key: str) -> str:
    """A campaign's name, or its address as a name, for a folder that holds several."""
    return re.sub(r"[^\w.-]+", "-", key).strip("-.")


if __name__ == "__main__":
    run(main)
