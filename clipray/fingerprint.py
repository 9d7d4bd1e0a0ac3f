"""Fingerprints of values and of code: what an artefact's address is made of.

A value's fingerprint holds every field of every config object and record in it, save the fields marked `How` where they
are declared. The code's fingerprint holds every definition that an entry function can reach, found by following names
through imports (`reach`), and the versions of the numeric libraries that these definitions use.
"""

import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import PurePath
from typing import Any, NamedTuple

from clipray.reach import closure


class How(NamedTuple):
    """Marks a field that says how or where something is computed, and so changes no number.

    In a config: `compute: Annotated[Compute, How("why it changes no number")]`; in a dataclass:
    `field(metadata={"how": How("…")})`. A field without this mark is part of the fingerprint.
    """

    reason: str


# Libraries whose versions are not recorded, and why. Any other one counts, so a new one is never forgotten.
HOW_LIBRARIES = {
    "filelock": "waits",
    "fsspec": "carries bytes",
    "mlflow": "keeps records",
    "pyarrow": "carries values as they are",
    "pydantic": "checks values, which are in the fingerprint themselves",
    "ray": "where work runs",
    "rich": "prints",
    "safetensors": "carries tensors as they are",
    "yaml": "reads values, which are in the fingerprint themselves",
}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
# What a library computes with, where nothing else in the code imports it.
BEHIND = {"open_clip": ("timm", "torchvision", "transformers")}
# Python's parser is not safe under threads: where two parse at once, CPython 3.11 may raise SystemError ("AST
# constructor recursion depth mismatch"). And what one thread has read, the others need not read again.
_READING = threading.Lock()


def fingerprint(what: Any) -> str:
    """Make the address of a WHAT: 16 hex digits of the hash of its `plain` form as canonical JSON.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(plain(what), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; fields marked `How` are left out.

    Raises:
        TypeError: the value has no form that is the same in every process, so it cannot be part of an address.

    >>> plain({"shots": (1, 2), "rate": 0.5})
    {'shots': [1, 2], 'rate': 0.5}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath | datetime.date):
        return str(value)
    if isinstance(value, Mapping):
        return {_key(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(one) for one in value), key=json.dumps)
    if not isinstance(value, type) and (names := _what_fields(value)) is not None:
        return {name: plain(getattr(value, name)) for name in names}
    raise TypeError(f"a {type(value).__name__} cannot be part of an artefact's address: {value!r}")


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(plain(key))


def _what_fields(value: Any) -> list[str] | None:
    """Name the fields of a config object or dataclass that are not marked `How`; None for other values."""
    if dataclasses.is_dataclass(value):
        every = dataclasses.fields(value)
        return [field.name for field in every if "how" not in field.metadata]
    fields = getattr(type(value), "model_fields", None)
    if fields is None:
        return None
    return [name for name, field in fields.items() if not is_how(field)]


def is_how(field: Any) -> bool:
    """Tell whether a config's field is marked `How`."""
    return any(isinstance(mark, How) for mark in field.metadata)


def code(*entries: Callable | str, root: Any = None) -> dict:
    """Fingerprint the code that some entries run, and the versions of the numeric libraries that it uses.

    Objects that are passed around are followed by the types that annotate them, so that their methods count too.
    A pure move of a definition to another module changes the fingerprint; formatting and comments do not.

    Args:
        entries: functions and classes, or their names as "package.module:name"; "package.module" stands for all of it.
        root: the folder of the package `clipray`; by default the one that is imported, in a folder or a zip file.

    Returns:
        {"digest": 16 hex digits, "libraries": version by distribution}.

    Raises:
        LookupError: there is no such entry.
    """
    names = (
        one if isinstance(one, str) else f"{one.__module__}:{one.__qualname__}" for one in entries
    )
    with _READING:
        return copy.deepcopy(_code(tuple(sorted(names)), root))


@functools.cache
def _code(entries: tuple[str, ...], root: Any) -> dict:
    reached = closure(entries, root)
    text = "\n".join(f"{name} {reached.texts[name]}" for name in sorted(reached.texts))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"digest": digest, "libraries": versions(reached.libraries)}


def versions(libraries: set[str]) -> dict[str, str]:
    """Look up the versions of imported libraries and of what they compute with, by distribution.

    A local suffix is left out: `2.15.0+cpu` and `2.15.0+cu130` are one version on two kinds of machine.
    """
    every = {*libraries, *(name for one in libraries for name in BEHIND.get(one, ()))}
    found = {}
    for name in sorted(every - set(HOW_LIBRARIES)):
        distribution = DISTRIBUTIONS.get(name, name)
        try:
            found[distribution] = metadata.version(distribution).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[distribution] = "not installed"
    return found
