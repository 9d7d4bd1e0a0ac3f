"""Embed a campaign's images and class names; evaluate nothing.

    python -m jobs.embed configs/demo.yaml
    python -m jobs.embed configs/demo.yaml --dry-run               the plan, with counts and expected cost
    python -m jobs.embed my.yaml --set backbones=[openai] --set compute.batch_size=256

What is already there is skipped; the same command again continues a run that was stopped. The last line on stdout is
one JSON object: the addresses of the embeddings by dataset, split and backbone, and the number of failed images.
"""

from jobs import DRY, FAILED, arguments, finish, planned, read_campaign, run, say_failed


def main() -> int:
    """Plan and embed."""
    given = arguments(__doc__, dry_run=DRY)
    campaign = read_campaign(given)
    todo = planned(given, campaign, publishes=False)
    if todo is None:
        return 0
    from clipray.steps import campaign as steps

    steps.prepare(todo)
    steps.embed_images(todo)
    places = {
        f"{dataset}/{split}": {
            name: todo.store.place(address) for name, address in work.addresses.items()
        }
        for (dataset, split), work in todo.works.items()
    }
    images = {(row["dataset"], row["split"], row["image_id"]) for row in todo.failures}
    failed = len({one for one in images if one[2] is not None})
    told = {"workspace": todo.store.uri, "embeddings": places, "failed_images": failed}
    say_failed(todo)
    finish(told | {"failed": todo.failed})
    return FAILED if todo.failed else 0


if __name__ == "__main__":
    run(main)
