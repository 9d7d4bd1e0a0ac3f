"""Compare two methods of a campaign, image by image, on every dataset.

    python -m jobs.compare configs/demo.yaml nlc@4 best_single_on_support@4
    python -m jobs.compare configs/demo.yaml nlc@1 log_avg
    python -m jobs.compare CONFIG linear_probe:nlc@16 zero_shot:nlc@16

A method is named [head:]method[@shots], as in the report. Shows both accuracies, their difference with the 95 %
interval and p-value of the paired bootstrap over images and support sets, and on how many seeds McNemar's exact test
tells them apart (5 %); at the end the mean over datasets with its Student interval. Reads stored outcomes and
computes nothing anew. The last line on stdout is one JSON object.
"""

from jobs import arguments, console, finish, read_campaign, run, say

METHODS = {
    "a": "a method as [head:]method[@shots], such as nlc@4",
    "b": "the method that it is compared with",
}


def main() -> None:
    """Print a table and the JSON line."""
    given = arguments(__doc__, positions=METHODS)
    campaign = read_campaign(given)
    from rich.table import Table

    from clipray.steps.publish import compare as steps

    one, other = (steps.choice(text, campaign) for text in (given.a, given.b))
    rows = steps.compare(campaign, one, other)
    table = Table("dataset", title=f"{one} against {other}")
    for name in (
        "images",
        "a, %",
        "b, %",
        "a − b, points",
        "interval",
        "p",
        "seeds",
        "a better",
        "b better",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        points = [f"{100 * row[key]:.1f}" for key in ("a", "b")]
        signed = [f"{100 * row[key]:+.1f}" for key in ("difference", "low", "high")]
        counts = [str(row[key]) for key in ("seeds", "a_better", "b_better")]
        table.add_row(
            row["dataset"], str(row["images"]), *points, signed[0], f"[{signed[1]}, {signed[2]}]".replace("[", "\\["),
            f"{row['p']:.3f}", *counts,
        )  # fmt: skip
    console().print(table)
    whole = steps.over_datasets(rows)
    found = {"a": str(one), "b": str(other)} | {
        f"{key}_difference": getattr(whole, key) for key in ("mean", "low", "high")
    }
    found |= {"wins": whole.wins, "ties": whole.ties, "losses": whole.losses}
    found |= {
        "a_better": sum(row["low"] > 0 for row in rows),
        "b_better": sum(row["high"] < 0 for row in rows),
    }
    say(words(found, len(rows)))
    finish(found | {"datasets": rows})


def words(found: dict, datasets: int) -> str:
    """The mean over datasets in one line."""
    mean = f"{100 * found['mean_difference']:+.2f} points"
    if datasets > 1:
        mean += f" [{100 * found['low_difference']:+.2f}, {100 * found['high_difference']:+.2f}]"
    counts = " / ".join(f"{found[key]} {key}" for key in ("wins", "ties", "losses"))
    return (
        f"{found['a']} − {found['b']} over {datasets} datasets: {mean}, {counts}; beyond chance better on "
        f"{found['a_better']}, worse on {found['b_better']}"
    )


if __name__ == "__main__":
    run(main)
