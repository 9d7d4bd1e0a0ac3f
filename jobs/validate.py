"""Read a sample of each dataset of a campaign and say whether it can be used, before anything is computed.

    python -m jobs.validate configs/demo.yaml
    python -m jobs.validate CONFIG --sample 0                      every image, not 500 a split
    python -m jobs.validate CONFIG --set 'datasets=[parquet/*]'    other datasets than the config's

Reports counts, classes, corrupt files, label range, images per class, and images that stand in train and in test.
Starts no Ray and loads no model. Exit code 2 if the config or a dataset cannot be used.
The last line on stdout is one JSON object.
"""

from jobs import arguments, console, finish, read_campaign, run, say

COLUMNS = (
    "dataset",
    "split",
    "images",
    "read",
    "corrupt",
    "classes",
    "a class",
    "labels",
    "short side",
    "in both",
)


def main() -> int:
    """Print a table, the findings and the JSON line."""
    sample = {
        "type": int,
        "default": 500,
        "metavar": "N",
        "help": "images to read per split; 0: all (default 500)",
    }
    given = arguments(__doc__, sample=sample)
    campaign = read_campaign(given)
    from rich.table import Table

    from clipray import catalog
    from clipray.steps.index import validate

    datasets = catalog.datasets(campaign.datasets, campaign.data_root)
    catalog.backbones(campaign.backbones, datasets)  # only their names are checked

    table, reports = Table(*COLUMNS, title="Datasets"), []
    for report in validate.validate(campaign, datasets, given.sample):
        say(f"read {report['dataset']}")
        reports.append(report)
        for row in validate.rows(report):
            table.add_row(*row)
    screen = console()
    screen.print(table)
    for report in reports:
        for kind in ("errors", "warnings"):
            for text in report[kind]:
                line = f"{kind[:-1]}: {report['dataset']}: {text}"
                screen.print(line, markup=False, emoji=False)
    unusable = [report["dataset"] for report in reports if report["errors"]]
    finish({"usable": len(reports) - len(unusable), "unusable": unusable, "datasets": reports})
    return 2 if unusable else 0


if __name__ == "__main__":
    run(main)
