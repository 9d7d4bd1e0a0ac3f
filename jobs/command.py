"""The command line of a job: what it takes, its usage and help, and what is said of a mistake in it."""

import argparse
import re
import sys
from collections.abc import Mapping

import clipray
from clipray import progress
from clipray.config.messages import nearest

CAMPAIGN = "a campaign's YAML file, such as configs/demo.yaml"
DRY = {"action": "store_true", "help": "print the plan and stop"}


def arguments(
    doc: str,
    config: str | None = CAMPAIGN,
    required: bool = True,
    first: str = "CONFIG",
    positions: Mapping[str, str] | None = None,
    **flags: dict,
) -> argparse.Namespace:
    """The command line of a job: CONFIG, `--set a.b=c` (repeated), `--verbose`, `--quiet`, and the job's own.

    Args:
        doc: the job's docstring, which is its help; the first command in it is the job's own.
        config: what CONFIG is.
        required: whether CONFIG must be given.
        first: the word for it in the usage.
        positions: further arguments behind the config, with their help; a name's "?": may be left out; "*": many.
        flags: argparse's settings by the flag's name: `sample={"type": int, "default": 500, "help": "…"}`.

    Returns:
        `config` (a path or None), `set` (a list), `verbose`, and the job's own arguments and flags.
    """
    parser = argparse.ArgumentParser(
        prog=re.search(r"python -m jobs\.\w+", doc)[0],
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    many = None if required else "?"
    parser.add_argument("config", nargs=many, metavar=first, help=config)
    for name, words in (positions or {}).items():
        plain, many = name.rstrip("?*"), name[-1] if name[-1] in "?*" else None
        parser.add_argument(plain, nargs=many, metavar=plain.upper(), help=words)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override a key of the config; c is YAML, as in 'shots=[1, 4]'; may stand again and again",
    )
    for name, settings in flags.items():
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--verbose", action="store_true", help="show what the libraries say")
    loud.add_argument("--quiet", action="store_true", help="errors and the last line only")
    parser.add_argument(
        "--log",
        choices=["text", "json"],
        default="text",
        help="json: each line on stderr is an object with time, level and text, for log collectors",
    )
    parser.add_argument("--version", action="version", version=f"clipray {clipray.__version__}")
    return _parsed(parser, first if required else f"[{first}]", list(positions or ()))


def _parsed(
    parser: argparse.ArgumentParser, first: str, positions: list[str]
) -> argparse.Namespace:
    """The arguments; what is wrong with them is told with the usage and an example, and exit code 2."""
    options = parser.format_usage().partition(parser.prog)[2]
    optional = re.findall(r"\[(?:[^][]|\[[^]]*\])*\]", " ".join(options.split()))
    marks = {"?": "[{}]", "*": "[{} …]"}
    named = [marks.get(n[-1], "{}").format(n.rstrip("?*").upper()) for n in positions]
    needed = [first, *named]
    told = {name.rstrip(" …]") for name in needed}
    others = [one for one in optional if one.rstrip(" .]") not in told]
    parser.usage = " ".join([parser.prog, *needed, *others])
    example = re.search(rf"^ +({re.escape(parser.prog)} .*?)(  .*)?$", parser.description, re.M)

    def fail(message: str) -> None:
        parser.print_usage(sys.stderr)
        print(f"error: {message}", file=sys.stderr)
        if example:
            print(f"for example: {example[1]}    (--help tells more)", file=sys.stderr)
        sys.exit(2)

    parser.error = fail
    given, rest = parser.parse_known_args()
    if rest:
        known = [flag for action in parser._actions for flag in action.option_strings]
        close = nearest(rest[0].partition("=")[0], known)
        fail(f"there is no argument {rest[0]}.{close}")
    if given.quiet:
        progress.hush()
    if given.log == "json":
        progress.write_json()
    return given
