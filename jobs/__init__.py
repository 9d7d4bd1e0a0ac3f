"""What every job shares: its arguments, its errors, and the last line it prints."""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from clipray.errors import ClipRayError


def arguments(
    doc: str, config: str | None = "required", positions: tuple = (), **flags: dict
) -> argparse.Namespace:
    """The command line of a job: CONFIG, `--set a.b=c` (repeated), `--verbose`, and the job's own flags.

    Args:
        doc: the job's docstring, which is its help; its first line names the job.
        config: "required", "optional", or None for a job that takes no config.
        positions: names of further arguments behind the config.
        flags: argparse's settings by the flag's name: `sample={"type": int, "default": 500, "help": "…"}`.

    Returns:
        `config` (a path or None), `set` (a list), `verbose`, and the job's own arguments and flags.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if config:
        parser.add_argument(
            "config", nargs=None if config == "required" else "?", help="a campaign's YAML file"
        )
    for name in positions:
        parser.add_argument(name)
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a key of the config"
    )
    for name, settings in flags.items():
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    parser.add_argument("--verbose", action="store_true", help="show what the libraries say")
    return parser.parse_args()


def console() -> Console:
    """Where a job prints its tables: stdout, wide enough for them where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def say(text: str) -> None:
    """Tell a person something; stdout is for the last line."""
    print(text, file=sys.stderr, flush=True)


def finish(result: dict[str, Any]) -> None:
    """Print the job's last line: one JSON object."""
    sys.stderr.flush()
    print(json.dumps(result, ensure_ascii=False, default=str), flush=True)


def run(main: Callable[[], int | None]) -> None:
    """Call a job's main and leave.

    An error of `clipray.errors` is told without a traceback, with its exit code; workers that died too often, with 1.
    """
    try:
        code = main() or 0
    except ClipRayError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        code = 130
    except Exception as error:
        if (words := _lost(error)) is None:
            raise
        print(f"error: {words}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _lost(error: Exception) -> str | None:
    if "ray" not in sys.modules:
        return None
    from clipray.steps.cluster import lost

    return lost(error)
