"""Choose settings of fusers and heads on cached embeddings, over many datasets in parallel, with Ray Tune.

    python -m jobs.tune configs/tune/demo.yaml                      offline, on the demo's sets
    python -m jobs.tune configs/tune/gates.yaml --dry-run           how many fits, and what they may see
    python -m jobs.tune configs/tune/gates.yaml --set samples=400   more of them; what is recorded is not fitted again
    python -m jobs.run WORKSPACE/reports/NAME/best.yaml             score what was chosen on the test images
    ray job submit --working-dir . -- python -m jobs.tune configs/tune/gates.yaml --set workspace=s3://bucket/ws

No test image is ever read. The same command again continues a search that was stopped. Progress goes to stderr; the
last line on stdout is one JSON object: best (a campaign), choices, fits, mlflow, headline. Exit code 1 where more fits
failed than `error_budget` allows.
"""

import json
import sys

from clipray import config
from clipray.config.search import Tune
from clipray.progress import working
from clipray.steps.tune import space as spaces
from jobs import DRY, arguments, console, finish, naming, run, say, tracked, work_alone

CONFIG = "a search's YAML file, such as configs/tune/demo.yaml"
RETRY = {"action": "store_true", "help": "fit again what failed before"}


def main() -> int:
    """Prepare, fit what is missing, choose, publish."""
    given = arguments(__doc__, config=CONFIG, dry_run=DRY, retry_failed=RETRY)
    say(f"reading {given.config}")
    wanted = config.load(Tune, given.config, given.set)
    with naming(given.config):
        spaces.check(wanted)
    # imported here, for a mistake in the config is told before them
    from clipray.steps import outlook
    from clipray.steps.campaign import plan
    from clipray.steps.cluster import check_lasting
    from clipray.steps.tracked import check as check_tracking
    from clipray.steps.tune import search as tune
    from clipray.steps.tune.publish import describe, publish

    check_lasting(workspace=wanted.workspace)
    if given.dry_run:
        todo = plan(tune.campaign(wanted), given.verbose, dry=True, whole=tune.whole(wanted))
        facts = outlook.of_search(wanted, outlook.outlook(todo))
        say("\n".join(outlook.describe_search(facts)))
        finish(facts)
        return 0
    say("\n".join(outlook.defaults(wanted)))
    check_tracking(f"tune/{wanted.name}", wanted)
    work_alone(wanted.workspace, wanted.name)
    search = tune.prepare(wanted, given.verbose, given.retry_failed)
    say("\n".join(describe(search)))
    tune.fit(search, given.verbose)
    with working("writing what was chosen and MLflow's records"):
        result = publish(search)
    show(result)
    code = tracked(result)
    finish(result)
    return int(tune.over_budget(search)) or code


def show(result: dict) -> None:
    """What was chosen, what it gains where that can be said, and what to do with it."""
    from rich.table import Table

    drawn = Table(
        "search", "for", "chosen by", "defaults", "settings", title=f"chosen by {result['name']}"
    )
    for row in result["chosen"]:
        place = [str(row[key]) for key in ("dataset", "shots", "seed") if row[key] is not None]
        scores = [
            "" if row[key] is None else f"{row[key]:.4f}" for key in ("chosen_by", "default_by")
        ]
        both = json.loads(row["settings"]) | {
            f"head.{k}": v for k, v in json.loads(row["head_settings"]).items()
        }
        words = ", ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in both.items()
        )
        drawn.add_row(row["search"], " ".join(place) or "all", *scores, words or "the defaults")
    console(sys.stderr).print(drawn)
    say("\n".join(result["headline"]["text"]))
    say(f"\nto score it on the test images: python -m jobs.run {result['best']}")


if __name__ == "__main__":
    run(main)
