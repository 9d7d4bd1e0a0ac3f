"""How many labelled images of each class a method learns from: a number, or all that there are."""

ALL = 2**30  # what `all` is in tables: more images than any class has, and it fits 32 bits


def read(value: object) -> object:
    """Read what a config says: the word `all`, or a number, which is not looked at."""
    return ALL if value == "all" else value


def named(shots: int) -> int | str:
    """Write a number of shots for people.

    >>> named(4), named(ALL)
    (4, 'all')
    """
    return "all" if shots == ALL else int(shots)


def words(shots: int) -> str:
    """Write a number of shots in words.

    >>> [words(shots) for shots in (0, 1, 4, ALL)]
    ['no labels', '1 shot', '4 shots', 'all labels']
    """
    if shots == 0:
        return "no labels"
    if shots == ALL:
        return "all labels"
    return f"{shots} shot{'s' if shots > 1 else ''}"
