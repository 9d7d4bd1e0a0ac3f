"""Whether class names fit the classes that a layout names itself: its folders, or a Parquet file's metadata."""

import re
import unicodedata
from collections.abc import Sequence

SHOWN = 6  # pairs in a message


def bare(name: str) -> str:
    """A name without what people change when they tidy it: case, separators, a number in front.

    >>> bare("001.Black_footed-Albatross"), bare("black footed albatross"), bare("12")
    ('blackfootedalbatross', 'blackfootedalbatross', '12')
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = re.sub(r"^\d+[\s._-]+(?=\D)", "", text)
    return re.sub(r"[\s._-]+", "", text) or name


def order(known: Sequence[str]) -> list[str]:
    """Class folders in label order: as torchvision sorts them, but by number where all are numbers.

    >>> order(["10", "9", "1"]), order(["b", "B", "a"])
    (['1', '9', '10'], ['B', 'a', 'b'])
    """
    if all(re.fullmatch(r"[0-9]{1,18}", name) for name in known):
        return sorted(known, key=lambda name: (int(name), name))
    return sorted(known)


def swapped(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Pairs of a class and its name where the names are the classes' own in another order; empty elsewhere.

    One name that is another class's own may be chance. When most of the names that are some class's own stand at
    another one's place, they are in another order.
    """
    own = [bare(name) for name in known]
    given = [bare(name) for name in names]
    if len(set(own)) < len(own):  # "1_a" and "2_a": what was removed tells them apart
        own, given = list(known), list(names)
    there = set(own)
    right = sum(a == b for a, b in zip(own, given, strict=True))
    moved = [
        pair
        for a, b, pair in zip(own, given, pairs(known, names), strict=True)
        if a != b and b in there
    ]
    complete = sorted(own) == sorted(given)
    return moved if moved and (complete or len(moved) > max(right, len(known) // 4)) else []


def different(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Pairs of a class and its name that is another word."""
    every = zip(known, names, pairs(known, names), strict=True)
    return [pair for a, b, pair in every if bare(a) != bare(b)]


def alike(known: Sequence[str]) -> list[str]:
    """Pairs of classes whose names differ in nothing but case and separators."""
    first: dict[str, str] = {}
    found = []
    for name in known:
        key = re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
        if first.setdefault(key, name) != name:
            found.append(f"{first[key]!r} and {name!r}")
    return found


def pairs(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each class with its name."""
    return [f"{a} = {b}" for a, b in zip(known, names, strict=True)]


def some(texts: Sequence[str]) -> str:
    """The first few of many, in a line."""
    rest = len(texts) - SHOWN
    return ", ".join(texts[:SHOWN]) + (f", and {rest} more" if rest > 0 else "")
