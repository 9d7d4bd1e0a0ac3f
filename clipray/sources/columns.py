"""Which columns of a Parquet file hold images and labels, whether they can, and what its metadata says of them."""

import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clipray.config import Dataset
from clipray.errors import ConfigError
from clipray.sources.storage import shown

IMAGE_COLUMNS = ("image", "img", "bytes", "path")
LABEL_COLUMNS = ("label", "labels", "cls")


class Columns(NamedTuple):
    """The two columns' names, and the list that turns string labels into numbers."""

    image: str
    label: str
    labels: list[str]


def chosen(dataset: Dataset, schema: pa.Schema, path: str) -> Columns:
    """The two columns of a file.

    Raises:
        ConfigError: one is missing, or of a type that cannot be one label or one image a row.
    """
    image = _column(dataset, schema, "image", IMAGE_COLUMNS, path)
    label = _column(dataset, schema, "label", LABEL_COLUMNS, path)
    labels = _labels(dataset)
    kind = schema.field(label).type
    values = _values(kind)
    if not pa.types.is_integer(values) and not (labels and is_text(values)):
        raise ConfigError(
            f"dataset {dataset.name}: column {label!r} of {shown(path)} holds {kind}, not integers{_why(kind)}.\n"
            "  For strings write `options: {labels: [<each string, in label order>]}`, or name another column:"
            " `options: {label: …}`."
        )
    _check_images(dataset, schema, image, path)
    return Columns(image, label, labels)


def image_of(dataset: Dataset, schema: pa.Schema, usual: tuple[str, ...], path: str) -> str:
    """The image column of a file that need not have labels; raises as `chosen` does.

    Args:
        usual: the names that it may have, unless `options: {image: …}` says it.
    """
    image = _column(dataset, schema, "image", usual, path)
    _check_images(dataset, schema, image, path)
    return image


def class_names(schema: pa.Schema, columns: Columns) -> list[str] | None:
    """What the label column's classes are called in the data.

    Returns:
        `options: {labels: […]}` for strings; for integers the names of a ClassLabel column that the hub's metadata
        holds, None for metadata of any other make.
    """
    if not pa.types.is_integer(_values(schema.field(columns.label).type)):
        return columns.labels
    try:
        value: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except ValueError:
        return None
    for key in ("info", "features", columns.label, "names"):
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    fits = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return list(value) if fits else None


def paths_to_follow(footer: pq.FileMetaData, group: int, image: str) -> str | None:
    """The column of paths that a row group's images are read from; None where every row has its bytes."""
    kind = footer.schema.to_arrow_schema().field(image).type
    if is_text(kind):
        return image
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    if not is_text(kind.field("path").type):
        return None
    row_group = footer.row_group(group)
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        if column.path_in_schema == f"{image}.bytes":
            counts = column.statistics
            if counts is not None and counts.has_null_count and not counts.null_count:
                return None
    return f"{image}.path"


def _check_images(dataset: Dataset, schema: pa.Schema, image: str, path: str) -> None:
    kind = schema.field(image).type
    if not _holds_images(kind):
        raise ConfigError(
            f"dataset {dataset.name}: column {image!r} of {shown(path)} holds {kind}, not image bytes,"
            " struct<bytes, path> or paths.\n  Name another column: `options: {image: …}`."
        )


def _labels(dataset: Dataset) -> list[str]:
    """`options: {labels: […]}`, checked."""
    given = dataset.options.get("labels", ())
    fits = isinstance(given, list | tuple) and all(isinstance(each, str) for each in given)
    if not fits or len(set(given)) < len(given):
        raise ConfigError(
            f"dataset {dataset.name}: options.labels is {given!r}, not a list of different strings.\n"
            "  Write each string once, in label order, in quotes where YAML reads something else (yes, no, 1)."
        )
    return list(given)


def _column(
    dataset: Dataset, schema: pa.Schema, kind: str, usual: tuple[str, ...], path: str
) -> str:
    wanted = (dataset.options[kind],) if kind in dataset.options else usual
    for name in wanted:
        if schema.names.count(name) > 1:
            raise ConfigError(
                f"dataset {dataset.name}: {shown(path)} has {schema.names.count(name)} columns named {name!r}.\n"
                "  Rename one of them."
            )
        if name in schema.names:
            return name
    raise ConfigError(
        f"dataset {dataset.name}: {shown(path)} has no {kind} column (looked for {', '.join(map(str, wanted))};"
        f" there is: {', '.join(schema.names)}).\n  In the dataset's YAML write `options: {{{kind}: <its name>}}`."
    )


def _values(kind: pa.DataType) -> pa.DataType:
    """What a column's cells are: those of a dictionary for pandas' categories."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return _is_bytes(fields.get("bytes")) or is_text(fields.get("path"))
    return is_text(kind) or _is_bytes(kind)


def is_text(kind: pa.DataType | None) -> bool:
    """Whether a column of this type holds strings."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return kind is not None and any(test(kind) for test in tests)


def _is_bytes(kind: pa.DataType | None) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return kind is not None and any(test(kind) for test in tests)


def _why(kind: pa.DataType) -> str:
    if pa.types.is_null(kind):
        return " (it is empty: the split has no labels)"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return " (several labels an image cannot be scored)"
    return ""
