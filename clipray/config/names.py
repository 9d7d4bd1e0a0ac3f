"""Names that people give: one pattern for all, the reserved ones, and names that are one name elsewhere.

A name becomes a folder, an MLflow metric and a row of a table. Two names that any of these would merge are refused at
the start, for afterwards nothing could tell their numbers apart.
"""

import re
import unicodedata
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from clipray.errors import ConfigError

LONGEST = 100  # characters; a metric's name in MLflow holds two names and has at most 250
BYTES = 200  # in UTF-8; a file's name has at most 255, and a fingerprint stands behind it
# what methods that are no entry of a config are called in the scores
RESERVED = ("all", "alone", "alone_on_test", "embeddings", "oracle", "pair", "set", "single")
RESERVED_START = "best_single"


def check(text: str) -> str:
    """The name in Unicode's composed form (NFC); `ValueError` where it is none.

    >>> check("nlc-16"), check("花_2"), check("cafe\\u0301") == "caf\\u00e9"
    ('nlc-16', '花_2', True)
    """
    name = unicodedata.normalize("NFC", text)
    rules = (
        "a name has letters (of any script), digits, `.`, `_` and `-`, and begins with none of `.-`"
    )
    if not name or not all(_fits(sign) for sign in name) or name[0] in ".-" or _is_mark(name[0]):
        raise ValueError(f"{text!r} cannot be a name: {rules}")
    if len(name) > LONGEST or len(name.encode()) > BYTES:
        raise ValueError(
            f"{text[:20]!r}… is too long for a name: at most {LONGEST} characters, {BYTES} bytes"
        )
    return name


Name = Annotated[str, AfterValidator(check)]


def plain(text: str, otherwise: str) -> str:
    """A name made of any text, such as a file's or folder's name.

    >>> plain("my set (2)", "dataset"), plain("...", "dataset")
    ('my-set-2', 'dataset')
    """
    composed = unicodedata.normalize("NFC", text)
    spaced = "".join(sign if _fits(sign) else " " for sign in composed)
    return "-".join(spaced.split()).strip("-.")[:LONGEST] or otherwise


def key(name: str) -> str:
    """What is left of a name where it is stored least exactly: file systems that fold case, MLflow's characters.

    >>> key("NLC") == key("nlc"), key("a-b") == key("a_b")
    (True, False)
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[^\w\-. /:]", "_", folded)


def refuse_merged(names: Iterable[str], where: str) -> None:
    """`ConfigError` where two names are one, or would be one as a folder or in MLflow."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(key(name))
        if other == name:
            raise ConfigError(f"{where}: {name} named more than once")
        if other is not None:
            raise ConfigError(
                f"{where}: {other!r} and {name!r} are one name to file systems or to MLflow; rename one of them"
            )
        seen[key(name)] = name


def refuse_reserved(name: str, where: str) -> None:
    """`ConfigError` for the name of a method that would be read as a bound, a reference or a measure."""
    folded = key(name)
    if folded in RESERVED or folded.startswith(RESERVED_START):
        raise ConfigError(
            f"{where}: the name {name!r} is reserved, for scores of that name stand beside all methods; "
            "give it another `name`"
        )


def _fits(sign: str) -> bool:
    return sign in "._-" or unicodedata.category(sign)[0] in "LMN"


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign)[0] == "M"
