"""YAML and `--set` → checked models: strict reading, and messages that say where, what and the remedy."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clipray.config import names
from clipray.config.messages import nearest, told, value_problem
from clipray.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Model = TypeVar("Model", bound=BaseModel)


class _Reader(yaml.SafeLoader):
    """YAML as people mean it: a key stands once, `1e-3` is a number, and a date is the text that it looks like."""


def _mapping(reader: _Reader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key, line = key_node.value, key_node.start_mark.line + 1
        if isinstance(key, str) and key in seen:
            raise ConfigError(f"the key {key!r} stands twice, in lines {seen[key]} and {line}")
        if isinstance(key, str):
            seen[key] = line
    reader.flatten_mapping(node)
    return reader.construct_mapping(node, deep=True)


_Reader.yaml_implicit_resolvers = {
    sign: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
    for sign, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1, which PyYAML reads, demands a point and a sign: 1e-3 would be text
_Reader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file; `ConfigError` where it is missing or is not one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        close = _files_like(Path(path)) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"cannot read {path}: {error.strerror}.{close}") from error
    try:
        value = _parsed(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}. Save it as UTF-8"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {_yaml_problem(error)}") from error
    if value is None:
        raise ConfigError(f"{path} is empty: it must hold `key: value` lines")
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold `key: value` lines")
    return value


def _parsed(text: str) -> Any:
    return yaml.load(text, Loader=_Reader)


def _yaml_problem(error: Exception) -> str:
    """One sentence with the line."""
    mark = getattr(error, "problem_mark", None)
    words = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "'\\t'" in words:
        words = "a tab cannot indent; use spaces"
    return words if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {words}"


def _files_like(path: Path) -> str:
    """Config files with a name like that of one that is missing."""
    folders = dict.fromkeys((path.parent, Path("configs"), Path("configs/tune"), CONFIGS))
    there = [str(file) for folder in folders for file in sorted(folder.glob("*.y*ml"))]
    stems = {Path(file).stem: file for file in reversed(there)}
    close = difflib.get_close_matches(path.stem, stems, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(stems[name] for name in close)}?" if close else ""


def apply_sets(values: dict, sets: Iterable[str]) -> dict:
    """Values with each `a.b=c` of `--set` laid over them; c is read as YAML, and a number names a list's entry."""
    for text in sets:
        path, equals, value = text.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set {text}: write it as key.subkey=value")
        place: Any = values
        for number, part in enumerate(parts[:-1]):
            place = _below(place, part, parts[number + 1], f"--set {text}")
        try:
            read = _parsed(value)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or error
            raise ConfigError(f"--set {text}: {value} is not YAML ({problem})") from error
        place[_position(place, parts[-1], f"--set {text}")] = read
    return values


def _below(place: dict | list, part: str, below: str, where: str) -> dict | list:
    """What lies behind a key of a mapping or a number of a list; an empty mapping is put where nothing is."""
    at = _position(place, part, where)
    if isinstance(place, dict) and place.get(at) is None:
        if below.isdecimal():
            raise ConfigError(
                f"{where}: the file has no list {part}; set it whole as {part}='[a, b]'"
            )
        place[at] = {}
    found = place[at]
    if not isinstance(found, dict | list):
        raise ConfigError(f"{where}: {part} holds a value, not keys: there is no {below} in it")
    return found


def _position(place: dict | list, part: str, where: str) -> str | int:
    if isinstance(place, dict):
        return part
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    raise ConfigError(
        f"{where}: {part!r} names no entry of a list of {len(place)}. Give its number, counted from 0, or set the "
        "whole list as key='[a, b]'"
    )


def parse(model: type[Model], values: Mapping[str, Any], origin: str) -> Model:
    """A checked `model`; `ConfigError` names each bad dotted path, what it must be, and the known keys."""
    try:
        # as JSON, so that true is no 1 and "3" no 3, while a list may stand for a tuple
        return model.model_validate_json(json.dumps(values, default=_plain), strict=True)
    except ValidationError as error:
        raise ConfigError("\n".join([f"{origin}:", *told(model, values, error)])) from error


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


def load(model: type[Model], path: str | Path, sets: Sequence[str] = ()) -> Model:
    """Read, override and check a config file. Where it gives no `name`, the file's own is taken."""
    values = apply_sets(read_yaml(path), sets or ())
    default = getattr(model, "name_of_file", None)
    if default and "name" not in values:
        values["name"] = default(names.plain(Path(path).stem, "campaign"))
    return parse(model, values, str(path))


def check_value(kind: Any, value: Any, where: str) -> None:
    """`ConfigError` unless the value is of the type, by its annotation; a list may stand for a tuple."""
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise ConfigError(f"{where}: {value_problem(error)}") from error


def check_settings(settings: Any, changes: Mapping[str, Any], where: str) -> None:
    """`ConfigError` unless each change names a field of the dataclass and has its type; reaches into nested ones."""
    hints = get_type_hints(type(settings))
    for key, value in changes.items():
        if key not in hints:
            raise ConfigError(f"{where}: {unknown(key, hints)}")
        now = getattr(settings, key)
        if is_dataclass(now) and isinstance(value, Mapping):
            check_settings(now, value, f"{where}.{key}")
        else:
            check_value(hints[key], value, f"{where}.{key}")


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the nearest ones, then all.

    >>> unknown("nlcc", ["nlc", "log_avg"])
    "there is no 'nlcc'. Did you mean nlc? Known: nlc, log_avg"
    """
    every = list(known)
    return f"there is no {name!r}.{nearest(name, every)} Known: {', '.join(every) or 'none'}"
