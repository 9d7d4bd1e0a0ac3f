"""Dataset and backbone entries by name: files of `configs/datasets/`, keys of `configs/backbones.yaml`, or folders.

Whatever a campaign names becomes a `config.Dataset` or `config.Backbone`; nothing here knows a particular one.
"""

import difflib
import fnmatch
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipray.config import CONFIGS, Backbone, Dataset, parse, read_yaml
from clipray.config.names import plain
from clipray.errors import ConfigError
from clipray.sources import wds
from clipray.sources.chunks import SPLITS, folder_named
from clipray.sources.storage import entries, is_folder, join, resolve, shown

YAML = (".yaml", ".yml")
GIVEN = "given"  # among a campaign's backbones: all of each data set's own


def dataset_names() -> list[str]:
    """List the names that `configs/datasets/` knows, without the examples to copy."""
    return sorted(
        p.stem for p in (CONFIGS / "datasets").glob("*.yaml") if not p.stem.startswith("example-")
    )


def datasets(names: Iterable[str], data_root: str = "") -> list[Dataset]:
    """Return the datasets that a campaign names, in its order, each once.

    Args:
        names: each a name of `configs/datasets/`; a YAML file's path (as it stands, or below `data_root`); a folder
            (an own path or URI, or below `data_root`) in one of the three layouts; or a pattern of such folders.
        data_root: where relative URIs lie.

    Raises:
        ConfigError: nothing of that name (with names that look like it), or two datasets of one name.
    """
    found: dict[str, Dataset] = {}
    for text in names:
        for dataset in _datasets(text, data_root):
            if found.setdefault(dataset.name, dataset) != dataset:
                raise ConfigError(
                    f"two datasets are named {dataset.name!r} ({found[dataset.name].uri} and {dataset.uri}).\n"
                    "  Write a dataset YAML with another `name` for one of them."
                )
    return list(found.values())


def detect(uri: str, data_root: str = "") -> Dataset | None:
    """Recognise the dataset in a folder by its files; None where they fit no layout.

    Parquet: files named after a split. Tars: `<split>/*.tar`. Folder: `<split>/<class folder>/`. A set has the splits
    that are there, in upper or lower case; a validation split serves as test where there is no test.
    """
    place = resolve(uri, data_root)
    if not place.isprintable() and shown(place).count("\\udc"):
        raise ConfigError(f"the folder {shown(place)} has a name that is not UTF-8: rename it")
    there = entries(place)
    name = plain(place.rstrip("/").rpartition("/")[2], "dataset")
    for layout, named in _LAYOUTS.items():
        splits = {}
        for split, aliases in SPLITS.items():
            spelled = (named(place, there, alias) for alias in aliases)
            spelled = next((text for text in spelled if text), None)
            splits |= {split: spelled} if spelled else {}
        if "test" in splits:
            return Dataset(name=name, format=layout, uri=uri, splits=splits)
    return None


def backbones(names: Iterable[str], datasets: Sequence[Dataset] = ()) -> list[Backbone]:
    """Return the backbones that a campaign names, in its order, each once.

    Names that only data sets of given vectors know (see `own_backbones`) are theirs, and left out here.

    Args:
        names: each a name of `configs/backbones.yaml`; a group of it, which stands for its members; or the path of a
            YAML file that holds one entry with its `name`.

    Raises:
        ConfigError: nothing of that name (with names that look like it), or two backbones of one name.
    """
    known, groups = _backbones()
    found: dict[str, Backbone] = {}
    own = {GIVEN, *(name for dataset in datasets for name in dataset.backbones)}
    own = own if any(dataset.given for dataset in datasets) else set()
    for text in names:
        if text in own and text not in known:
            continue
        if text.endswith(YAML):
            own = _backbone_from_yaml(text)
            if found.setdefault(own.name, own) != own or known.get(own.name, own) != own:
                raise ConfigError(
                    f"{text}: there is another backbone named {own.name!r}; give this one another `name`"
                )
            continue
        if text not in known and text not in groups:
            raise ConfigError(
                f"backbone {text!r} is unknown.{_close(text, [*known, *groups])}\n  groups: {', '.join(groups)};"
                " `python -m jobs.ls` lists all. A new one is an entry in configs/backbones.yaml, or a YAML file of it."
            )
        for name in groups.get(text, (text,)):
            found[name] = known[name]
    return list(found.values())


def own_backbones(dataset: Dataset, names: Iterable[str]) -> list[str]:
    """Return the backbones of a data set of given vectors that a campaign names, in its order; `given` names all.

    Raises:
        ConfigError: none.
    """
    names, (_, groups) = list(names), _backbones()
    if GIVEN in names:
        return list(dataset.backbones)
    asked = {name for text in names for name in groups.get(text, (text,))}
    found = [name for name in dataset.backbones if name in asked]
    if not found:
        raise ConfigError(
            f"dataset {dataset.name}: `backbones` names none of those it has vectors of"
            f" ({', '.join(dataset.backbones)}).\n  Add some of them, or `{GIVEN}` for all."
        )
    return found


def text_towers(dataset: Dataset, names: Iterable[str]) -> dict[str, Backbone]:
    """The backbones that make class vectors of given image vectors, by the data set's own names.

    Raises:
        ConfigError: a `model` that is no backbone, or a group of several.
    """
    found = {}
    for name in names:
        model = dataset.backbones[name].model
        if not model:
            continue
        every = backbones([model])
        if len(every) > 1:
            raise ConfigError(
                f"dataset {dataset.name}: backbones.{name}.model: {model!r} is a group of {len(every)} backbones:"
                " name the one that made the image vectors."
            )
        found[name] = every[0]
    return found


def backbone_names() -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Return the names of `configs/backbones.yaml`, and its groups."""
    known, groups = _backbones()
    return list(known), groups


def _datasets(text: str, data_root: str) -> list[Dataset]:
    if text.endswith(YAML):
        return [_from_yaml(text, data_root)]
    shipped = CONFIGS / "datasets" / f"{text}.yaml"
    if "/" not in text and shipped.exists():
        dataset = parse(Dataset, read_yaml(shipped), str(shipped))
        if dataset.name != text:
            raise ConfigError(
                f"{shipped}: name is {dataset.name!r}, but the file is named {text!r}"
            )
        return [dataset]
    dataset = detect(text, data_root)  # first as it stands: a folder may be named "set [2020]"
    if dataset is None and any(sign in text for sign in "*?["):
        found = [each for uri in _expand(text, data_root) if (each := detect(uri, data_root))]
        if not found:
            raise ConfigError(
                f"dataset pattern {text!r}: no folder that fits it below {data_root or '.'!r} holds a dataset"
            )
        return found
    if dataset is None:
        raise _unknown(text, data_root)
    return [dataset]


def _unknown(text: str, data_root: str) -> ConfigError:
    """Make the error of an unknown name and of a folder without a dataset: what is there, and what to do."""
    place = resolve(text, data_root)
    there = entries(place)
    names = [shown(name) for name in there]
    seen = f"holds no train/test split in a known layout (there is: {', '.join(names[:12])})"
    return ConfigError(
        f"dataset {text!r} is unknown.{_close(text, dataset_names())}\n  It is no name of configs/datasets/ and"
        f" the folder {shown(place)} {seen if there else 'does not exist'}.\n{_way_on(place, there)}"
        "  `python -m jobs.ls` lists all; a new one is a YAML file: see configs/datasets/example-folder.yaml."
    )


def _way_on(place: str, there: dict[str, Any]) -> str:
    """Say what to do with a folder of images that almost fits a layout; "" for any other."""
    splits = [_folder_of(there, alias) for aliases in SPLITS.values() for alias in aliases]
    for split in filter(None, splits):
        below = entries(join(place, split)).values()
        if any(info["type"] == "file" for info in below):
            return (
                f"  Its images lie right in {split}/: move each into a folder of its class ({split}/<class>/<image>),"
                " or write a Parquet file with a column of paths and one of labels.\n"
            )
    if any(filter(None, splits)):
        return "  It has a train split only: a test split is needed.\n"
    folders = [name for name, info in there.items() if is_folder(info)]
    files = [name for name, info in there.items() if not is_folder(info)]
    inner = (entries(join(place, name)).values() for name in folders[:3])
    if folders and all(any(info["type"] == "file" for info in infos) for infos in inner):
        return "  If these are class folders, move them into test/, and those to learn from into train/.\n"
    if files and not folders:
        return "  Images belong into test/<class>/<image>, and those to learn from into train/<class>/<image>.\n"
    return ""


def _from_yaml(text: str, data_root: str) -> Dataset:
    if (
        not Path(text).exists()
        and not Path(text).is_absolute()
        and data_root
        and "://" not in data_root
    ):
        text = resolve(text, data_root)
    return parse(Dataset, read_yaml(text), text)


def _backbone_from_yaml(text: str) -> Backbone:
    """Read an entry from a file of its own; what it names lies beside it, unless the path is absolute or a URI."""
    values = read_yaml(text)
    for key in ("weights", "config"):
        place = values.get(key)
        if isinstance(place, str) and place and "://" not in place:
            values[key] = str(Path(text).absolute().parent / Path(place).expanduser())
    scheme, _, place = str(values.get("architecture", "")).partition("local-dir:")
    if not scheme and place:
        folder = Path(text).absolute().parent / Path(place).expanduser()
        values["architecture"] = f"local-dir:{folder}"
    return parse(Backbone, values, text)


def _expand(pattern: str, data_root: str) -> list[str]:
    """List the folders that fit a pattern, part by part, as they are to be written in a config."""
    anchor = "/" if pattern.startswith("/") else ""
    anchor = pattern[: pattern.index("/", pattern.index("://") + 3)] if "://" in pattern else anchor
    found = [anchor]
    for part in pattern[len(anchor) :].strip("/").split("/"):
        found = [
            join(uri, name) if uri else name
            for uri in found
            for name, info in entries(resolve(uri, data_root) if uri else data_root or ".").items()
            if is_folder(info) and (name == part or fnmatch.fnmatchcase(name, part))
        ]
    return found


def _close(text: str, known: Sequence[str]) -> str:
    names = difflib.get_close_matches(text, known, n=4, cutoff=0.5)
    return f" Did you mean {', '.join(names)}?" if names else ""


@functools.lru_cache(maxsize=1)
def _read_backbones(changed: float) -> tuple[dict[str, Backbone], dict[str, tuple[str, ...]]]:
    path = CONFIGS / "backbones.yaml"
    values = read_yaml(path)
    if set(values) != {"backbones", "groups"}:
        raise ConfigError(f"{path}: its keys are `backbones` and `groups`, not {', '.join(values)}")
    known = {
        name: parse(Backbone, {"name": name, **entry}, f"{path}: {name}")
        for name, entry in values["backbones"].items()
    }
    for group, members in values["groups"].items():
        missing = [name for name in members if name not in known]
        if missing or group in known:
            raise ConfigError(
                f"{path}: group {group}: {f'no backbone {missing[0]!r}' if missing else 'also a backbone'}"
            )
    return known, {group: tuple(members) for group, members in values["groups"].items()}


def _backbones() -> tuple[dict[str, Backbone], dict[str, tuple[str, ...]]]:
    path = CONFIGS / "backbones.yaml"
    return _read_backbones(path.stat().st_mtime if path.exists() else 0.0)


def _folder_of(there: dict[str, Any], split: str) -> str | None:
    name = folder_named(there, split)
    return name if name is not None and is_folder(there[name]) else None


def _parquet_split(place: str, there: dict[str, Any], split: str) -> str | None:
    """Return the split as it is spelled in Parquet files' names; None where there are none of it."""
    for names in (there, entries(join(place, "data")) if "data" in there else {}):
        for name in names:
            if found := re.fullmatch(rf"({split})([-_.].*)?\.parquet", name, re.IGNORECASE):
                return found[1]
    return _split_with(place, there, split, (".parquet",))


def _tar_split(place: str, there: dict[str, Any], split: str) -> str | None:
    """Return the split's folder of tars; compressed ones count, because listing them says what is wrong."""
    return _split_with(place, there, split, (".tar", *wds.PACKED))


def _class_split(place: str, there: dict[str, Any], split: str) -> str | None:
    name = _folder_of(there, split)
    below = entries(join(place, name)).values() if name else ()
    return name if any(is_folder(info) for info in below) else None


def _split_with(
    place: str, there: dict[str, Any], split: str, suffixes: tuple[str, ...]
) -> str | None:
    name = _folder_of(there, split)
    below = entries(join(place, name)) if name else ()
    return name if any(each.lower().endswith(suffixes) for each in below) else None


_LAYOUTS = {"parquet": _parquet_split, "wds": _tar_split, "folder": _class_split}
