"""Evaluate a campaign whose images are embedded: heads, fusers, complementarity, scores, report, MLflow.

    python -m jobs.evaluate configs/demo.yaml
    python -m jobs.evaluate configs/demo.yaml --dry-run            what is evaluated, and what is not
    python -m jobs.evaluate configs/demo.yaml --set 'heads=[zero_shot, linear_probe]' --set 'shots=[1, 2, 4]'

Needs no GPU. The last line on stdout is one JSON object, as that of `jobs.run`.
"""

from clipray.errors import ConfigError
from jobs import DRY, arguments, planned, read_campaign, run, score


def main() -> int:
    """Plan, check that everything is embedded, evaluate, publish."""
    given = arguments(__doc__, dry_run=DRY)
    campaign = read_campaign(given)
    todo = planned(given, campaign)
    if todo is None:
        return 0
    from clipray.steps import campaign as steps

    try:
        steps.recall(todo)
    except ConfigError as error:
        raise ConfigError(f"{error}: run `python -m jobs.embed {given.config}` first") from None
    return score(todo)


if __name__ == "__main__":
    run(main)
