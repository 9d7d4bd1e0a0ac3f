"""Fitted fusers as files: safetensors with the settings as JSON in the header, no pickle."""

import json
from typing import Any

from safetensors.torch import load, save

from clipray.config import Fuser
from clipray.numerics.contracts import State
from clipray.numerics.fusers import from_parts, to_parts
from clipray.store import Store

FOLDER = "fusers"


def path(place: str, head: str, name: str, shots: int, seed: int) -> str:
    """Return the path of a fitted fuser in an evaluation."""
    return f"{place}/{FOLDER}/{head}/{name}/{shots}-shot-seed-{seed}.safetensors"


def write(store: Store, file: str, entry: Fuser, state: State, **about: Any) -> None:
    """Store a fitted fuser.

    Args:
        entry: its entry in the config. about: what else a reader has to know (backbones, class names, head…).
    """
    tensors, mapping = to_parts(state)
    header = {"fuser": entry.model_dump(mode="json"), "state": mapping, "about": about}
    store.write(file, save(tensors, {name: json.dumps(value) for name, value in header.items()}))


def read(store: Store, file: str) -> tuple[Fuser, State, dict]:
    """Read what `write` stored: the entry, the state, and `about`."""
    data = store.read(file)
    length = int.from_bytes(
        data[:8], "little"
    )  # safetensors: 8 bytes of length, the header as JSON, the tensors
    header = {
        name: json.loads(value)
        for name, value in json.loads(data[8 : 8 + length])["__metadata__"].items()
    }
    entry = Fuser(**header["fuser"])
    return entry, from_parts(entry.fuser, load(data), header["state"]), header["about"]
