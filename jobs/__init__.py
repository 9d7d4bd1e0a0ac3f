"""What every job shares: its arguments, its errors, and the last line it prints."""

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from clipray import progress
from clipray.errors import ClipRayError, ConfigError, ErrorBudget, TrackingError, Worse
from clipray.progress import say, tell
from clipray.secrets import redacted
from jobs.command import DRY, arguments

__all__ = [
    "DRY",
    "FAILED",
    "arguments",
    "console",
    "finish",
    "naming",
    "planned",
    "read_campaign",
    "run",
    "say",
    "say_failed",
    "score",
    "tracked",
    "work_alone",
]

_UNTIL_THE_END = ExitStack()
FAILED = ErrorBudget.exit_code  # some datasets or backbones failed, the others are done


def read_campaign(given: argparse.Namespace, *sets: str) -> Any:
    """The campaign of the command line, with all checked that needs no torch, no data and no Ray."""
    from clipray import config
    from clipray.steps import checks

    say(f"reading {given.config}")
    campaign = config.load(config.Campaign, given.config, [*given.set, *sets])
    with naming(given.config):
        checks.check(campaign)
    return campaign


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the config's path before what is wrong with it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def console(stream: TextIO | None = None) -> Any:
    """Where a job prints its tables: wide enough where it is no terminal, and nowhere with --quiet.

    Args:
        stream: stdout where none is given.
    """
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, quiet=progress.is_quiet())


def say_failed(todo: Any) -> None:
    """Tell what of a campaign's plan failed as a whole and is in no score."""
    from clipray.steps.todo import told

    for text in told(todo.failed):
        say(f"failed  {text}")


def planned(given: argparse.Namespace, campaign: Any, publishes: bool = True) -> Any:
    """Plan a campaign and tell the plan; None with --dry-run, whose last line is the plan.

    Args:
        publishes: whether the job records runs, so that MLflow is looked at before any work.
    """
    # imported here, for a mistake in the config is told before them
    from clipray.steps import campaign as steps
    from clipray.steps.cluster import check_lasting
    from clipray.steps.outlook import describe, outlook
    from clipray.steps.publish import publish

    check_lasting(workspace=campaign.workspace)
    if publishes and not given.dry_run:
        publish.check_tracking(campaign)
    if not given.dry_run:
        work_alone(campaign.workspace, campaign.name)
    todo = steps.plan(campaign, given.verbose, given.dry_run)
    facts = outlook(todo)
    say("\n".join(describe(facts)))
    if given.dry_run:
        finish(facts)
        return None
    return todo


def work_alone(workspace: str, name: str) -> None:
    """Wait until no other job works in a workspace, and keep others away until this job ends."""
    from clipray.lock import held
    from clipray.store import Store

    job = Path(sys.argv[0]).stem
    _UNTIL_THE_END.enter_context(held(Store(workspace), f"jobs.{job} {name}"))


def score(todo: Any) -> int:
    """Evaluate what is embedded, publish it and print the last line; the exit code."""
    from clipray.steps import evaluations
    from clipray.steps.publish import publish

    try:
        places = evaluations.evaluate_datasets(todo)
    except ErrorBudget as error:
        return nothing_left(todo, error)
    result = publish.publish(todo, places, show)
    say(f"report  {result['report']}")
    if not result["changed"]:
        say("nothing had to be done: all of it was there")
    say_failed(todo)
    code = tracked(result)
    worse = got_worse(result["compared"], todo.campaign.regression.fail)
    finish(result | ({"embedding": todo.spent} if todo.spent else {}))
    return FAILED if todo.failed else worse or code


def show(scores: Any, headline: dict) -> None:
    """Show a person the leaderboard, and what it says."""
    from clipray.report import console_table

    console(sys.stderr).print(console_table(scores))
    say("\n".join(headline["text"]) + "\n")


def got_worse(compared: dict | None, fail: bool) -> int:
    """Tell what changed since the last successful campaign; the exit code of one that got worse, where it is asked."""
    if not compared:
        return 0
    number = compared["counts"]["worse"]
    if not (fail and number):
        say(compared["text"])
        return 0
    error = Worse(f"{number} results got worse.\n{compared['text']}")
    tell(f"error: {error}")
    return error.exit_code


def nothing_left(todo: Any, error: ErrorBudget) -> int:
    """End a job whose datasets have all failed: the reasons, the JSON line, and the exit code."""
    tell(f"error: {error}")
    told = {"name": todo.campaign.name, "workspace": todo.store.uri}
    finish(told | {"outcomes": {}, "failed": todo.failed})
    return FAILED


def finish(result: dict[str, Any]) -> None:
    """Print the job's last line: one JSON object."""
    sys.stderr.flush()
    print(redacted(json.dumps(result, ensure_ascii=False, default=str)), flush=True)


def tracked(result: dict[str, Any]) -> int:
    """Say where the runs are or, where MLflow failed, how to send them; the exit code that this wants."""
    mlflow = result["mlflow"]
    if "error" in mlflow:
        tell(f"error: {mlflow['error']}\n  all results are kept; to send them: {mlflow['send']}")
        return TrackingError.exit_code
    if mlflow["open"]:
        say(f"runs    {mlflow['open']}")
    return 0


def run(main: Callable[[], int | None]) -> None:
    """Call a job's main and leave.

    An error of `clipray.errors` is told without a traceback, with its exit code, also where a worker raised it; workers
    that died too often are one.
    """
    try:
        with progress.heartbeat(), _UNTIL_THE_END:
            code = main() or 0
    except KeyboardInterrupt:
        tell("stopped; the same command continues")
        code = 130
    except Exception as error:
        told = _known(error)
        tell(f"error: {told}" if told else traceback.format_exc())
        code = told.exit_code if told else 1
    sys.exit(code)


def _known(error: Exception) -> ClipRayError | None:
    if "ray" not in sys.modules:
        return error if isinstance(error, ClipRayError) else None
    from clipray.steps.cluster import known

    return known(error)
