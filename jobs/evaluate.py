"""Evaluate a campaign whose images are embedded: heads, fusers, complementarity, scores, report, MLflow.

    python -m jobs.evaluate configs/demo.yaml
    python -m jobs.evaluate configs/demo.yaml --set 'heads=[zero_shot, linear_probe]' --set 'shots=[1, 2, 4]'

Needs no GPU. The last line on stdout is one JSON object, as that of `jobs.run`.
"""

from clipray import config
from clipray.errors import ConfigError
from clipray.steps import publish
from clipray.steps import run as steps
from jobs import arguments, finish, run


def main() -> None:
    """Plan, check that everything is embedded, evaluate, publish."""
    given = arguments(__doc__)
    todo = steps.plan(config.load(config.Campaign, given.config, given.set), given.verbose)
    if todo.images or todo.classifiers:
        raise ConfigError(
            f"{todo.images} images are not embedded yet: run `python -m jobs.embed {given.config}` first"
        )
    steps.embed_images(todo)
    finish(publish.publish(todo, steps.evaluate_datasets(todo)))


if __name__ == "__main__":
    run(main)
