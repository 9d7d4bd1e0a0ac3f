"""Run a campaign: embed, evaluate, report; everything that is already there is skipped.

    python -m jobs.run configs/demo.yaml                          offline, minutes on a laptop
    python -m jobs.run configs/demo.yaml --dry-run                the plan, with counts and expected cost
    python -m jobs.run configs/demo.yaml --limit 100              a smoke run on 100 images of each split
    python -m jobs.run my.yaml --set workspace=s3://bucket/ws --set compute.batch_size=256
    python -m jobs.run nightly.yaml --fail-on-regression --set regression.tolerance=0.02
    ray job submit --working-dir . -- python -m jobs.run configs/demo.yaml --set workspace=s3://bucket/demo

The same command again continues a run that was stopped, and does nothing when all is done. Progress goes to stderr;
the last line on stdout is one JSON object: workspace, scores, report, failed, mlflow, headline. A dataset or backbone
that fails is recorded and left out, the others go on, and the exit code is 3. What changed since the last
good campaign of the same name is told, and stands in the report and in `changes.md`; without --fail-on-regression the
same command accepts what got worse as the new level.
"""

from jobs import DRY, arguments, planned, read_campaign, run, score

LIMIT = {"type": int, "metavar": "N", "help": "at most N images of each split"}
WORSE = {
    "action": "store_true",
    "help": "exit code 5 where a result got worse than in the last successful campaign of that name",
}


def main() -> int:
    """Plan, compute what is missing, publish; 3 where something failed as a whole."""
    given = arguments(__doc__, dry_run=DRY, limit=LIMIT, fail_on_regression=WORSE)
    sets = [] if given.limit is None else [f"limit={given.limit}"]
    sets += ["regression.fail=true"] if given.fail_on_regression else []
    campaign = read_campaign(given, *sets)
    todo = planned(given, campaign)
    if todo is None:
        return 0
    from clipray.steps import campaign as steps

    steps.prepare(todo)
    steps.embed_images(todo)
    return score(todo)


if __name__ == "__main__":
    run(main)
