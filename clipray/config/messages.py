"""What pydantic finds wrong, in YAML's words: dotted paths, lists and mappings, known keys and the nearest one."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

MAPPING = "a mapping (`key: value` lines)"
WORDS = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": MAPPING,
    "mapping_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "none_required": "empty",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} at most",
}


def told(model: type[BaseModel], values: Any, error: ValidationError) -> list[str]:
    """A line for each thing that is wrong, indented; for an unknown key the known ones too.

    Args:
        values: what was checked, as YAML gave it.
    """
    found: dict[str, dict[str, Any]] = {}  # by path: what it must be, of all branches of a union
    for problem, path in _meant(error.errors(include_url=False), values):
        place = found.setdefault(".".join(map(str, path)), {"path": path, "problems": []})
        place["problems"].append(problem)
    lines = []
    for dotted, place in found.items():
        lines.append(f"  {dotted or '(whole file)'}: {_sentence(place['problems'])}")
        if any(problem["type"] == "extra_forbidden" for problem in place["problems"]):
            *parents, key = place["path"]
            known = list(_known_keys(model, parents))
            lines[-1] += nearest(str(key), known)
            lines.append(f"    known keys: {', '.join(known)}")
    return lines


def value_problem(error: ValidationError) -> str:
    """What is wrong with a single value, of whatever branch of its type."""
    problems = error.errors(include_url=False)
    outer = min(len(problem["loc"]) for problem in problems)
    return _sentence([problem for problem in problems if len(problem["loc"]) == outer])


def nearest(text: str, known: Iterable[str]) -> str:
    """ " Did you mean x?", where something known is like the text; else nothing."""
    by_folded = {name.casefold(): name for name in reversed(list(known))}
    close = difflib.get_close_matches(text.casefold(), by_folded, n=3, cutoff=0.6)
    return f" Did you mean {', '.join(by_folded[name] for name in close)}?" if close else ""


def _sentence(problems: list[dict]) -> str:
    """One sentence on one place."""
    first = problems[0]
    if first["type"] == "missing":
        return "is missing"
    if first["type"] == "extra_forbidden":
        return "there is no such key."
    wanted = [_wanted(problem) for problem in problems]
    if None in wanted:
        return first["msg"].removeprefix("Value error, ")
    words = " or ".join(dict.fromkeys(wanted))
    value, close = first["input"], ""
    if first["type"] == "literal_error" and isinstance(value, str):
        known = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        close = nearest(value, known)
    return f"must be {words}, not {_shown(value)}{_hint(problems)}{'.' if close else ''}{close}"


def _wanted(problem: Mapping[str, Any]) -> str | None:
    words = WORDS.get(problem["type"])
    return words.format(**problem.get("ctx", {})) if words else None


def _shown(value: Any) -> str:
    """A value as a person wrote it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    return repr(value)


def _hint(problems: list[dict]) -> str:
    value, kinds = problems[0]["input"], {problem["type"] for problem in problems}
    if "string_type" in kinds and isinstance(value, bool):
        return " (YAML reads yes, no, on and off so: put it in quotes)"
    if "string_type" in kinds and isinstance(value, int | float):
        return " (put it in quotes)"
    if isinstance(value, str) and kinds & {"int_type", "float_type", "bool_type"}:
        return " (without quotes)" if value[:1].isdigit() else ""
    if isinstance(value, str) and kinds & {"tuple_type", "list_type"}:
        return f": write [{value}]"
    return ""


class _Branch(NamedTuple):
    """One of a union's types, as pydantic names it in a problem's place."""

    name: str
    place: tuple  # where the union is
    value: Any  # what stands there

    @property
    def fits(self) -> bool:
        """Whether the value may have been meant for it: a mapping for a model, a list for a tuple."""
        listed = self.name.startswith(("tuple", "list"))
        if isinstance(self.value, dict):
            return not listed and self.name not in ("str", "int", "float", "bool", "none")
        return listed or not isinstance(self.value, list | tuple)


def _meant(problems: list, values: Any) -> list[tuple[dict, list]]:
    """The problems with their paths, without those of branches that a value was not meant for, if others are left."""
    placed = [(problem, *_path(problem, values)) for problem in problems]
    meant = {b.place for _, _, branches in placed for b in branches if b.fits}
    return [
        (problem, path)
        for problem, path, branches in placed
        if all(branch.fits or branch.place not in meant for branch in branches)
    ]


def _path(problem: Mapping[str, Any], values: Any) -> tuple[list, list[_Branch]]:
    """A problem's place without pydantic's names of a union's branches, and these."""
    path: list = []
    branches = []
    loc, now = problem["loc"], values
    absent = len(loc) - 1 if problem["type"] == "missing" else None
    for number, part in enumerate(loc):
        inside = isinstance(now, dict) and str(part) in map(str, now)
        inside |= isinstance(now, list | tuple) and isinstance(part, int) and part < len(now)
        if inside:
            now = now[part] if not isinstance(now, dict) or part in now else None
        elif number != absent:
            branches.append(_Branch(str(part), tuple(path), now))
            continue
        path.append(part)
    return path, branches


def _known_keys(annotation: Any, path: list) -> Iterator[str]:
    """The keys of the models at a path, as they are written in YAML."""
    for part in path:
        fields = [
            field.annotation
            for model in _models(annotation)
            for name, field in model.model_fields.items()
            if part in (name, field.alias)
        ]
        annotation = tuple(fields) or annotation
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            yield field.alias or name


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models within an annotation such as `tuple[str | Head, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for part in annotation if isinstance(annotation, tuple) else get_args(annotation):
        yield from _models(part)
