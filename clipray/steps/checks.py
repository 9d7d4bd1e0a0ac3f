"""What can be wrong with a config, found in a moment: methods, settings, names, places; no torch, no data, no Ray."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from clipray.config import Campaign, Fuser, Head, Inputs, check_settings, names, unknown
from clipray.errors import ConfigError
from clipray.numerics import declared

REFERENCE = "best_single_on_support"  # always there, before the fusers that are compared with it


def entries(campaign: Campaign) -> tuple[Fuser, ...]:
    """Return the config's fusers, and before them the reference: the single backbone chosen on the support set."""
    reference = Fuser(name=REFERENCE, fuser=REFERENCE)
    named = [Fuser(name=f, fuser=f) if isinstance(f, str) else f for f in campaign.fusers]
    return (reference, *(fuser for fuser in named if fuser != reference))


def unlabelled(entry: Fuser) -> str:
    """Return which unlabelled images a fuser learns from: "batch", "train" or "none"."""
    settings = declared.settings_of(declared.fusers()[entry.fuser], entry.settings_for(0, 0))
    return getattr(settings, "unlabelled", "none")


def named_heads(heads: tuple[str | Head, ...]) -> tuple[Head, ...]:
    """Return the config's heads, each with its name and settings."""
    return tuple(Head(name=h, head=h) if isinstance(h, str) else h for h in heads)


def check(campaign: Campaign) -> None:
    """Raise `ConfigError` for a method, setting, name or place that cannot be."""
    for number, head in enumerate(campaign.heads):
        _method("head", head, f"heads.{number}", declared.heads())
    for number, fuser in enumerate(campaign.fusers):
        _method("fuser", fuser, f"fusers.{number}", declared.fusers())
    names.refuse_merged((head.name for head in named_heads(campaign.heads)), "heads")
    fusers = entries(campaign)
    names.refuse_merged((fuser.name for fuser in fusers), "fusers")
    places(campaign)


def _method(key: str, entry: str | Head | Fuser, where: str, known: Mapping[str, Any]) -> None:
    """Check one entry of `heads` or `fusers`."""
    if isinstance(entry, str):
        if entry not in known:
            raise ConfigError(f"{where}: {unknown(entry, known)}")
        return
    kind = getattr(entry, key)
    if kind not in known:
        raise ConfigError(f"{where}.{key}: {unknown(kind, known)}")
    method_name(entry.name, kind, f"{where}.name", known)
    settings(known[kind], entry.settings, f"{where}.settings")
    for number, chosen in enumerate(entry.chosen):
        settings(known[kind], chosen.settings, f"{where}.chosen.{number}.settings")


def method_name(name: str, kind: str, where: str, known: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a method has a reserved name or the name of another method."""
    if name == kind:
        return
    names.refuse_reserved(name, where)
    others = {names.key(other): other for other in known}
    other = others.get(names.key(name))
    if other is not None:
        raise ConfigError(
            f"{where}: {name!r} is the name of a method of clipray ({other}); give this {kind} a name of its own"
        )


def settings(method: Any, changes: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` where a method has no such settings, or refuses their values."""
    check_settings(method.settings, changes, where)
    try:
        declared.settings_of(method, changes)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def places(inputs: Inputs) -> None:
    """Raise `ConfigError` where the workspace, the data root or a dataset names storage that cannot be."""
    storage(inputs.workspace, "workspace")
    storage(inputs.data_root, "data_root")
    for number, text in enumerate(inputs.datasets):
        storage(text, f"datasets.{number}")


def storage(place: str, where: str) -> None:
    """Raise `ConfigError` for a protocol that nothing here reads, or for a Windows path on another system."""
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/](?!/)", place):
        raise ConfigError(
            f"{where}: {place} is a Windows path, and this machine has no drives: write it as /folder/…"
        )
    protocol, mark, _ = place.partition("://")
    if not mark:
        return
    import fsspec

    known = fsspec.available_protocols()
    common = [name for name in ("s3", "gs", "abfs", "hdfs", "file") if name in known]
    for part in protocol.split("::"):
        if part not in known:
            raise ConfigError(
                f"{where}: {place}: there is no protocol {part!r}.{names_like(part, known)} Usual ones: "
                f"{', '.join(f'{name}://' for name in common)}, or a folder's path"
            )
        try:
            fsspec.get_filesystem_class(part)
        except ImportError as error:
            raise ConfigError(f"{where}: {place}: {error}") from error


def names_like(text: str, known: Iterable[str]) -> str:
    """List the known protocols that resemble a wrong one."""
    close = [name for name in known if len(name) == len(text) and name[:1] == text[:1]]
    return f" Did you mean {', '.join(close[:3])}?" if close else ""
