"""Tell what a workspace holds: who works in it, what is done, what failed, and what it took.

    python -m jobs.status workspace/demo
    python -m jobs.status s3://bucket/ws --price cuda=2.50 --price cpu=0.04      per hour of a device: estimated money

Reads one listing and the small files; changes nothing. The last line on stdout is one JSON object.
"""

from clipray.errors import ConfigError
from jobs import arguments, console, finish, run, say

PLACE = "a workspace: a folder or URI"
PRICE = {
    "action": "append",
    "default": [],
    "metavar": "DEVICE=MONEY",
    "help": "what an hour of a device costs, cpu or cuda; may stand again and again",
}


def main() -> None:
    """Read, print, and the JSON line."""
    given = arguments(__doc__, config=PLACE, first="WORKSPACE", price=PRICE)
    prices = dict(price(text) for text in given.price)
    from clipray.steps.status import status
    from clipray.store import Store

    store = Store(given.config)
    told = status(store, prices)
    if not told["kinds"] and not told["campaigns"]:
        raise ConfigError(f"{store.uri} is no workspace: no run has written there")
    show(told)
    finish(told)


def price(text: str) -> tuple[str, float]:
    """Read `cuda=2.50`."""
    device, _, money = text.partition("=")
    try:
        if device in ("cpu", "cuda") and float(money) >= 0:
            return device, float(money)
    except ValueError:
        pass
    raise ConfigError(f"--price {text}: write it as cpu=0.04 or cuda=2.50")


def show(told: dict) -> None:
    """Print who works, the campaigns, and two tables."""
    from rich.table import Table

    working = told["working"]
    say(f"working: {working['job']} on {working['host']}" if working else "nobody works here")
    for one in told["campaigns"]:
        say(
            f"\n{one['name']}  {one['datasets']} datasets, published {one['last']}  {one['report']}"
        )
        say("\n".join(f"  {line}" for line in one["text"]))
        for row in one["failed"]:
            say(f"  failed: {row['dataset'] or ''} {row['backbone'] or ''}: {row['error']}")
    kinds = Table("artefacts", "whole", "unfinished", "MB")
    for kind, row in told["kinds"].items():
        kinds.add_row(kind, str(row["whole"]), str(row["unfinished"]), f"{row['bytes'] / 1e6:.1f}")
    console().print(kinds)
    drawn = Table(
        "backbone", "images", "MB", "device", "device-seconds (estimate)", "money (estimate)"
    )
    for name, row in told["embedding"].items():
        seconds, money = row["device_seconds"], row.get("money")
        drawn.add_row(
            name,
            str(row["images"]),
            f"{row['bytes'] / 1e6:.1f}",
            row["device"] or "",
            "" if seconds is None else f"{seconds:.0f}",
            "" if money is None else f"{money:.2f}",
        )
    console().print(drawn)


if __name__ == "__main__":
    run(main)
