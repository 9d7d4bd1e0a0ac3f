"""Embed a campaign's images and class names; evaluate nothing.

    python -m jobs.embed configs/demo.yaml
    python -m jobs.embed my.yaml --set backbones=[openai] --set compute.batch_size=256

What is already there is skipped; the same command again continues a run that was stopped. The last line on stdout is
one JSON object: the addresses of the embeddings by dataset, split and backbone, and the number of failed images.
"""

from clipray import config
from clipray.steps import run as steps
from jobs import arguments, finish, run, say


def main() -> None:
    """Plan and embed."""
    given = arguments(__doc__)
    todo = steps.plan(config.load(config.Campaign, given.config, given.set), given.verbose)
    say("\n".join(steps.describe(todo)))
    steps.prepare(todo)
    steps.embed_images(todo)
    places = {
        f"{dataset}/{split}": {
            name: todo.store.place(address) for name, address in work.addresses.items()
        }
        for (dataset, split), work in todo.works.items()
    }
    finish({"workspace": todo.store.uri, "embeddings": places, "failed_images": len(todo.failures)})


if __name__ == "__main__":
    run(main)
