"""Texts without the secrets of the URIs in them: users, passwords, and the values behind a question mark.

Reports, manifests, logs, artefacts, messages and the line on stdout are read by more people than a
config is. An address without a secret comes out unchanged, so it can still be used.
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
_SHORTEST = 4  # a shorter password is no string to look for in a text: `db` stands in many words

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_URI = re.compile(rf"""\b{_SCHEME}(?:(?!{_SCHEME})[^\s"'<>`])+""")
_PAIR = re.compile(r"([^=&;?#]+)=([^&;#]*)")


def redacted(text: str, *known: str) -> str:
    """Hide the secrets of every URI in a text.

    Args:
        text: any text.
        known: URIs whose secrets are also hidden where they stand alone, as a library's error may quote them.

    >>> redacted("at https://me:pass@host/a?token=1&b=2#/runs/3, s3://bucket/a@b")
    'at https://***@host/a?token=***&b=***#/runs/3, s3://bucket/a@b'
    """
    for secret in sorted(set().union(*map(secrets, known)), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _URI.sub(lambda match: _hide(match.group()), text)


def clean(value: Any) -> Any:
    """Hide the secrets of every URI in what JSON can hold; keys too."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    return value


def secrets(uri: str) -> set[str]:
    """The secret parts of a URI, as they stand there and decoded.

    >>> sorted(secrets("postgresql://me:p%40ssword@host/db?sslkey=/k/y"))
    ['/k/y', 'me:p%40ssword', 'me:p@ssword', 'p%40ssword', 'p@ssword']
    """
    if "://" not in uri:
        return set()
    user, rest = _split(uri.partition("://")[2])
    found = {user, user.partition(":")[2]}
    if ":" not in user:
        found.add(user)
    _, _, query = rest.partition("?")
    found |= {value for _, value in _PAIR.findall(query)}
    found |= {unquote(secret) for secret in found}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _hide(uri: str) -> str:
    """A URI with `***` for its user and password and for each value in its query and fragment."""
    scheme, _, rest = uri.partition("://")
    user, rest = _split(rest)
    ends = [at for at in (rest.find("?"), rest.find("#")) if at >= 0]
    end = min(ends, default=len(rest))
    behind = _PAIR.sub(rf"\1={HIDDEN}", rest[end:])
    return f"{scheme}://{HIDDEN + '@' if user else ''}{rest[:end]}{behind}"


def _split(rest: str) -> tuple[str, str]:
    """(user and password, the rest) of what follows `://`.

    A password may hold a slash, a question mark or an at sign, although it should be encoded: where
    the part up to the first of them is neither a host nor a host and its port, it reaches to the last
    at sign.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at:
        return user, rest[len(user) + 1 :]
    _, colon, port = authority.rpartition(":")
    if colon and port and not port.isdigit() and not authority.endswith("]") and "@" in rest:
        user = rest.rpartition("@")[0]
        return user, rest[len(user) + 1 :]
    return "", rest
