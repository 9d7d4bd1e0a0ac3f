"""Where and when a campaign's numbers were made: what a reader of its report asks first."""

import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from clipray import secrets
from clipray.artefacts import cards
from clipray.config import Campaign
from clipray.numerics import declared
from clipray.steps.checks import entries
from clipray.steps.todo import Plan

DIGITS = 12  # of a digest


def made(todo: Plan) -> dict[str, Any]:
    """Say date, command, run time, machine, devices, weights and where MLflow's runs are, in this order."""
    told = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": command(sys.argv),
        "run time": f"{time.time() - todo.started:.0f} s (what was done before is not done again)",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores (the driver's)",
        **_models(todo),
        "MLflow": _mlflow(todo.campaign),
    }
    return {key: value for key, value in told.items() if value}


def command(arguments: list[str]) -> str:
    """The command line as a person would type it, without secrets.

    >>> command(["/somewhere/jobs/run.py", "my.yaml", "--set", "shots=[1, 2]"])
    "python -m jobs.run my.yaml --set 'shots=[1, 2]'"
    """
    first = Path(arguments[0])
    name = f"python -m {first.parent.name}.{first.stem}" if first.suffix == ".py" else first.name
    return secrets.redacted(" ".join([name, shlex.join(arguments[1:])]).strip())


def methods(campaign: Campaign) -> dict[str, str]:
    """By the name of a campaign's fuser, what its registry says of it, and the settings that are its own."""
    found = {}
    for entry in entries(campaign):
        words = declared.fusers()[entry.fuser].about
        changed = ", ".join(f"{key} {value}" for key, value in entry.settings.items())
        found[entry.name] = f"{words} Here with {changed}." if changed else words
    return found


def _models(todo: Plan) -> dict[str, dict[str, str]]:
    """`devices` and `weights` of the backbones that have a card; given vectors need no model."""
    devices, weights = {}, {}
    for spec in todo.specs:
        address = cards.address(todo.store, spec, todo.campaign.precision)
        card = todo.store.manifest(address)
        if card is None:
            continue
        devices[spec.name] = card.get("device", "")
        origin = card["what"]["backbone"]
        named = origin.get("pretrained") or str(origin.get("weights", ""))[:DIGITS]
        weights[spec.name] = secrets.redacted(f"{origin.get('architecture', '')} {named}".strip())
    return {"devices": devices, "weights": weights}


def _mlflow(campaign: Campaign) -> str:
    tracking = campaign.tracking
    if not tracking.enabled:
        return ""
    place = secrets.redacted(tracking.uri) if tracking.uri else "mlflow.db in the workspace"
    return f"{place}, experiment {tracking.experiment}"
