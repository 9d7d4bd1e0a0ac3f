"""List the datasets and backbones that a campaign can name.

    python -m jobs.ls                          all entries of configs/datasets/ and configs/backbones.yaml
    python -m jobs.ls configs/demo.yaml        those of a campaign, with what its folders were recognised as
    python -m jobs.ls CONFIG --set 'datasets=[parquet/*, cars]'

Needs no GPU, no Ray, no network beyond the data's own. The last line on stdout is one JSON object.
"""

from clipray.secrets import redacted
from jobs import arguments, console, finish, read_campaign, run


def main() -> None:
    """Print two tables and the JSON line."""
    given = arguments(__doc__, required=False)
    campaign = read_campaign(given) if given.config else None
    from rich.table import Table

    from clipray import catalog

    known, groups = catalog.backbone_names()
    if campaign:
        datasets = catalog.datasets(campaign.datasets, campaign.data_root)
        backbones = catalog.backbones(campaign.backbones, datasets)
    else:
        datasets = catalog.datasets(catalog.dataset_names())
        backbones = catalog.backbones(known)

    table = Table("dataset", "format", "uri", "splits", title="Datasets")
    for dataset in datasets:
        splits = ", ".join(
            name if name == there else f"{name}: {there}" for name, there in dataset.splits.items()
        )
        table.add_row(dataset.name, dataset.format, redacted(dataset.uri), splits)
    screen = console()
    screen.print(table)

    table = Table("backbone", "architecture", "weights", "groups", title="Backbones")
    for backbone in backbones:
        within = ", ".join(group for group, members in groups.items() if backbone.name in members)
        table.add_row(
            backbone.name,
            backbone.architecture,
            backbone.pretrained or redacted(backbone.weights) or backbone.revision or "(its own)",
            within,
        )
    for dataset in datasets:
        for name in dataset.backbones:
            table.add_row(name, "(given)", f"of {dataset.name}", "given")
    screen.print(table)
    finish(
        {
            "datasets": [dataset.model_dump(mode="json") for dataset in datasets],
            "backbones": [backbone.model_dump(mode="json") for backbone in backbones],
            "groups": groups,
        }
    )


if __name__ == "__main__":
    run(main)
