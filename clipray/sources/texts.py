"""Class names and prompt templates as people keep them in files: one a line, or a JSON list.

What can be read in one way only is read; what can be read in two, or is no such list, is refused with the file's name.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from clipray.errors import ConfigError
from clipray.sources import pointers
from clipray.sources.storage import content, shown

_NUMBERED = re.compile(r"\s*(\d+)\s*[,;:\t|]\s*\S")
_HEADER = re.compile(r"\s*(id|idx|index|label|class|class_id|number)\s*[,;\t|]", re.IGNORECASE)
_PYTHON = re.compile(r"""\s*(lambda\b.*:|f?(?P<quote>["']).*(?P=quote)\s*,?\s*$)""")
_COMMA_LIST = re.compile(r"""\s*f?(?P<quote>["']).*(?P=quote)\s*,\s*$""")


def lines(uri: str) -> list[str] | None:
    """The lines of a text file without the empty ones; None where there is no such file."""
    text = _read(uri)
    return None if text is None else [line for line in _lines(text) if line]


def names(uri: str) -> list[str] | None:
    """The class names in a file, in label order; None where there is no such file.

    Raises:
        ConfigError: it is no UTF-8, or no list of one name a line.
    """
    text = _read(uri)
    if text is None:
        return None
    listed = _from_json(uri, text)
    if listed is None:
        listed = _without_gaps(uri, _lines(text))
        _refuse_tables(uri, listed)
    return [" ".join(name.split()) for name in listed]


def templates(uri: str) -> list[str] | None:
    """The prompts in a file; None where there is no such file.

    Raises:
        ConfigError: it is no UTF-8, or its lines are code.
    """
    text = _read(uri)
    if text is None:
        return None
    listed = _from_json(uri, text)
    if listed is not None:
        return listed
    listed = [line for line in _lines(text) if line]
    for line in listed:
        if _PYTHON.match(line):
            raise ConfigError(
                f"{shown(uri)}: the line {line!r} is Python code.\n  Write the prompt only, one a line, with {{c}}"
                " where the class name goes."
            )
    return listed


def _read(uri: str) -> str | None:
    try:
        data = content(uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except Exception as error:  # every storage has errors of its own; all of them mean this
        raise ConfigError(f"cannot read {shown(uri)}: {type(error).__name__}: {error}") from error
    pointers.refuse(uri, data)
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{shown(uri)} is not UTF-8: {data[max(0, error.start - 20) : error.start + 5]!r} in line {line}.\n"
            "  Save it as UTF-8, for example by `iconv -f latin1 -t utf-8`."
        ) from error
    if "\0" in text:
        raise ConfigError(f"{shown(uri)} is no text: it holds NUL bytes.\n  Save it as UTF-8.")
    return text


def _lines(text: str) -> list[str]:
    """Lines as editors count them: other separators of Unicode (NEL, U+2028, …) belong to a name."""
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text)]


def _without_gaps(uri: str, listed: Sequence[str]) -> list[str]:
    """Lines without empty ones, which may stand at the ends or after every name, but not in place of a name."""
    text = "\n".join(listed).strip("\n").split("\n")
    full = [line for line in text if line]
    spaced = len(text) == 2 * len(full) - 1 and all(text[::2])
    if len(text) == len(full) or spaced:
        return full
    gap = list(listed).index("", next(i for i, line in enumerate(listed) if line)) + 1
    raise ConfigError(
        f"{shown(uri)}: line {gap} is empty, so that it is not clear which class each name after it belongs to.\n"
        "  Write the missing name there, or remove the line."
    )


def _refuse_tables(uri: str, listed: Sequence[str]) -> None:
    """Refuse numbered names and code: taken as they stand, number and quotes would be part of each name."""
    body = listed[1:] if listed and _HEADER.match(listed[0]) else listed
    numbered = len(body) > 1 and all(_NUMBERED.match(line) for line in body)
    if numbered or (len(listed) > 1 and all(_COMMA_LIST.match(line) for line in listed)):
        what = "a number and a name a line" if numbered else "a list in a programming language"
        raise ConfigError(
            f"{shown(uri)} holds {what} ({listed[0]!r}).\n  Write the names only, one a line, in label order."
        )


def _from_json(uri: str, text: str) -> list[str] | None:
    """The strings of a JSON list, or of an object of numbers and names; None for a text that is no JSON."""
    start = text.lstrip()[:1]
    if not start or start not in "[{":
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    listed = _by_number(value) if isinstance(value, dict) else value
    if isinstance(listed, list) and listed and all(isinstance(each, str) for each in listed):
        return listed
    raise ConfigError(
        f"{shown(uri)}: its JSON is no list of texts.\n  Write one text a line, in label order, or a JSON list of them."
    )


def _by_number(value: dict[str, Any]) -> list[Any] | None:
    """An object of {"0": name, …} or {name: 0, …} as the names in the order of the numbers 0, 1, …"""
    if all(isinstance(number, int) for number in value.values()):
        value = {str(number): name for name, number in value.items()}
    wanted = [str(number) for number in range(len(value))]
    return [value[number] for number in wanted] if set(value) == set(wanted) else None
