"""Remove what no campaign of a workspace needs any more.

    python -m jobs.gc workspace/demo --dry-run              what would go, and how many bytes
    python -m jobs.gc s3://bucket/ws --keep 5               keep what the last 5 publications of every campaign stand on
    python -m jobs.gc s3://bucket/ws --keep 1 --days 0      all that the last ones do not need, however young

Embeddings, classifiers, support sets and evaluations go, and entries of the history; reports, cards, indexes and
searches stay. Nothing goes that is younger than --days, for a run may be at it. The last line on stdout is one JSON
object: what was removed, and its bytes.
"""

from clipray.errors import ConfigError
from jobs import arguments, finish, run, say, work_alone

PLACE = "a workspace: a folder or URI"
KEEP = {"type": int, "default": 3, "metavar": "N", "help": "publications a campaign (default: 3)"}
DAYS = {"type": float, "default": 7.0, "metavar": "N", "help": "of grace (default: 7)"}
DRY = {"action": "store_true", "help": "tell what would go, and stop"}


def main() -> None:
    """List, tell, remove."""
    given = arguments(__doc__, config=PLACE, first="WORKSPACE", keep=KEEP, days=DAYS, dry_run=DRY)
    if given.keep < 1:
        raise ConfigError("--keep: at least 1, or nothing would be left")
    from clipray.artefacts import inventory
    from clipray.store import Store

    store = Store(given.config)
    if not store.names(inventory.REPORTS):
        raise ConfigError(
            f"{store.uri} is no workspace with results: there is no {store.place(inventory.REPORTS)}"
        )
    if not given.dry_run:
        work_alone(store.uri, "all")
    gone = inventory.unused(store, given.keep, given.days)
    total = sum(one.bytes for one in gone)
    for one in gone:
        say(f"{one.bytes / 1e6:10.1f} MB  {one.address}{'' if one.whole else '  (never finished)'}")
        if not given.dry_run:
            store.remove(one.address)
    entries = 0 if given.dry_run else inventory.forget(store, given.keep)
    word = "would go" if given.dry_run else "removed"
    say(f"{word}: {len(gone)} artefacts, {total / 1e6:.1f} MB")
    addresses = [one.address for one in gone]
    finish(
        {
            "workspace": store.uri,
            "removed": addresses,
            "bytes": total,
            "entries": entries,
            "dry_run": given.dry_run,
        }
    )


if __name__ == "__main__":
    run(main)
