"""Measure what backbones and fusers withstand: a campaign, and all of it on perturbed copies of the test images.

    python -m jobs.robustness configs/robustness.yaml
    python -m jobs.robustness configs/robustness.yaml --dry-run
    python -m jobs.robustness my.yaml --set sample=200 --set 'perturbations=[rotation, jpeg]' --set 'severities=[1, 5]'

Takes any campaign's config; by default all perturbations at severities 1, 3 and 5, of all test images. Fusers are
fitted on clean support images. What is already there is skipped. The report of the campaign gets a section, and
robustness.parquet, .csv and .json lie beside it. The last line on stdout is one JSON object, as that of `jobs.run`,
with `robustness` and `sentences`.
"""

from jobs import DRY, FAILED, arguments, finish, naming, planned, run, say, say_failed, tracked

SAMPLE = {"type": int, "metavar": "N", "help": "perturb at most N test images of each dataset"}


def main() -> int:
    """Run the campaign, then embed and score the perturbed copies; 3 where something failed as a whole."""
    given = arguments(__doc__, dry_run=DRY, sample=SAMPLE)
    from clipray import config
    from clipray.config.robustness import Robustness
    from clipray.steps import checks

    sets = [] if given.sample is None else [f"sample={given.sample}"]
    campaign = config.load(Robustness, given.config, [*given.set, *sets])
    from clipray.steps.robustness import plan

    with naming(given.config):
        checks.check(campaign)
        plan.check(campaign)
    todo = planned(given, campaign)
    if todo is None:
        return 0
    return measure(todo, campaign)


def measure(todo, campaign) -> int:
    """Do all that is missing, and tell."""
    from clipray.report.robustness import sentences
    from clipray.steps import campaign as steps
    from clipray.steps import evaluations
    from clipray.steps.publish import publish
    from clipray.steps.robustness import evaluate, plan

    steps.prepare(todo)
    steps.embed_images(todo)
    parts = plan.plan(todo, campaign)
    copies = plan.embed_parts(todo, campaign, parts)
    result = publish.publish(todo, evaluations.evaluate_datasets(todo))
    places = evaluate.score_datasets(todo, parts)
    made = evaluate.publish(todo, campaign, parts, places)
    told = sentences(made.pop("summary"))
    say("\n".join([*told, f"report  {made['report']}"]))
    say_failed(todo)
    code = tracked(result)
    finish(result | made | {"copies_embedded": copies, "sentences": told, "failed": todo.failed})
    return FAILED if todo.failed else code


if __name__ == "__main__":
    run(main)
