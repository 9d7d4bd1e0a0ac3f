"""Load backbones, fetching their weights, and show a card of each.

    python -m jobs.backbones CONFIG                       those that a campaign names
    python -m jobs.backbones openai-vit-b-32 shipped      names or groups of configs/backbones.yaml
    python -m jobs.backbones mine.yaml                    an entry of one's own

A card tells where the weights come from (file, revision, content, size), what the model is (image size and
preprocessing, activation, tokenizer, scale, bias, GFLOPs), and how far fp16 and bf16 move its embeddings (least cosine
to fp32 on noise). Starts no Ray. A backbone that cannot be loaded does not stop the others; the exit code is then 2.
The last line on stdout is one JSON object.
"""

import argparse
from typing import Any

from rich.table import Table

from clipray import backbones, catalog, config
from clipray.errors import ClipRayError, ConfigError
from clipray.steps.embed import measure as cards
from jobs import console, finish, run, say


def main() -> int:
    """Print a card for each backbone and the JSON line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.backbones",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a campaign's YAML file, or names")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", help="override a key of the config"
    )
    given = parser.parse_args()
    names = [name for text in given.names for name in named(text, given.set)]
    screen = console()
    known: list[dict] = []
    failed: dict[str, str] = {}
    for spec in catalog.backbones(names):
        say(f"loading {spec.name}")
        try:
            card = cards.describe(backbones.load(spec))
        except ClipRayError as error:
            say(f"error: {error}")
            failed[spec.name] = str(error)
            continue
        known.append(card)
        screen.print(table(card))
        for precision, cosine in card["drift"].items():
            if not isinstance(cosine, float) or cosine < cards.CLOSE:
                say(f"warning: {spec.name} in {precision}: cosine to fp32 {cosine}")
    finish({"loaded": len(known), "failed": failed, "backbones": known})
    return ConfigError.exit_code if failed else 0


def named(text: str, sets: list[str]) -> list[str]:
    """Return what an argument stands for: itself, or the backbones of a campaign's file."""
    if not text.endswith(catalog.YAML):
        return [text]
    values = config.read_yaml(text)
    if "backbones" not in values:
        return [text]
    wanted = config.apply_sets(values, sets)["backbones"]
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise ConfigError(f"{text}: backbones must be a list of names")
    return wanted


def table(card: dict[str, Any]) -> Table:
    """Return a card as a table of two columns."""
    shown = Table("", card["name"], show_header=True, title_justify="left")
    for key, value in card.items():
        if key != "name":
            shown.add_row(key, f"{value:.6g}" if isinstance(value, float) else str(value))
    return shown


if __name__ == "__main__":
    run(main)
