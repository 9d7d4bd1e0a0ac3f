"""Evaluate a campaign whose images are embedded: heads, fusers, complementarity, scores, report, MLflow.

    python -m jobs.evaluate configs/demo.yaml
    python -m jobs.evaluate configs/demo.yaml --dry-run            what is evaluated, and what is not
    python -m jobs.evaluate configs/demo.yaml --set 'heads=[zero_shot, linear_probe]' --set 'shots=[1, 2, 4]'

Needs no GPU. The last line on stdout is one JSON object, as that of `jobs.run`.
"""

from clipray.errors import ConfigError, ErrorBudget
from clipray.progress import working
from jobs import (
    DRY,
    FAILED,
    arguments,
    finish,
    nothing_left,
    read_campaign,
    run,
    say,
    say_failed,
    tracked,
)


def main() -> int:
    """Plan, check that everything is embedded, evaluate, publish."""
    given = arguments(__doc__, dry_run=DRY)
    campaign = read_campaign(given)
    from clipray.steps import publish
    from clipray.steps import run as steps
    from clipray.steps.cluster import check_lasting
    from clipray.steps.outlook import describe, outlook

    check_lasting(workspace=campaign.workspace)
    todo = steps.plan(campaign, given.verbose, given.dry_run)
    facts = outlook(todo)
    say("\n".join(describe(facts)))
    if given.dry_run:
        finish(facts)
        return 0
    try:
        steps.recall(todo)
    except ConfigError as error:
        raise ConfigError(f"{error}: run `python -m jobs.embed {given.config}` first") from None
    try:
        places = steps.evaluate_datasets(todo)
    except ErrorBudget as error:
        return nothing_left(todo, error)
    with working("writing the report and MLflow's records"):
        result = publish.publish(todo, places)
    say_failed(todo)
    code = tracked(result)
    finish(result)
    return FAILED if todo.failed else code


if __name__ == "__main__":
    run(main)
