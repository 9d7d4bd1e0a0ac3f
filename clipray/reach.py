"""What a piece of code can reach: every definition that it uses, found by following names through imports.

Each definition has a canonical text. Comments, docstrings, the layout of the text, types of arguments and the order of
imports are not in it; everything else is.
"""

import ast
import importlib.resources
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

# Modules that are not followed, and why editing them changes no number of an artefact. An entry's own package is
# followed all the same.
HOW_MODULES = {
    "clipray.errors": "messages",
    "clipray.patience": "when requests are tried again",
    "clipray.progress": "prints",
    "clipray.secrets": "hides what no number depends on",
    "clipray.report": "shows numbers that are made already",
    "clipray.sources": "carries bytes and labels that the index has a hash of",
    "clipray.steps.cluster": "where work runs",
    "clipray.snapshot": "tells what the store tells",
    "clipray.store": "carries artefacts as they are",
    "clipray.tracking": "sends numbers that are made already",
}


class Closure(NamedTuple):
    """What some entries can reach: the canonical text of each definition by "module:name", and other libraries."""

    texts: dict[str, str]
    libraries: set[str]


class _Module(NamedTuple):
    """A module taken apart.

    Attributes:
        definitions: for each name that its top level defines, the statements that do.
        imports: for each name that is imported anywhere in it, the module and the name there ("": the module itself).
        rest: top-level statements that define nothing; they run whatever is used.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, list[tuple[str, str]]]
    rest: list[ast.stmt]


def closure(entries: tuple[str, ...], root: Any = None) -> Closure:
    """Follow names through imports, from some entries to all that they can reach."""
    root = importlib.resources.files("clipray") if root is None else root
    return _Walk(root, entries).run()


class _Walk:
    """One search through the package's modules."""

    def __init__(self, root: Any, entries: tuple[str, ...]):
        self.root = root
        self.entries = entries
        self.modules: dict[str, _Module | None] = {}
        self.found = Closure({}, set())
        own = [entry.partition(":")[0] for entry in entries]
        self.skipped = {
            how for how in HOW_MODULES if not any(_below(module, how) for module in own)
        }

    def run(self) -> Closure:
        for entry in self.entries:
            module, _, name = entry.partition(":")
            name = name.partition(".")[0]  # a method stands for its class
            parts = self._module(module)
            if parts is None or (name and name not in parts.definitions):
                raise LookupError(f"there is no {entry} to take a fingerprint of")
            self._follow(module, [name] if name else [])
        return self.found

    def _module(self, name: str) -> _Module | None:
        if name not in self.modules:
            text = self._text(name)
            self.modules[name] = None if text is None else _take_apart(text, name)
        return self.modules[name]

    def _text(self, module: str) -> str | None:
        package, *names = module.split(".")
        if package != "clipray":
            return None
        place = self.root
        for name in names[:-1]:
            place = place / name
        folder = place / names[-1] if names else place
        files = [folder / "__init__.py"]
        if names:
            files.append(place / f"{names[-1]}.py")
        for file in files:
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return "" if folder.is_dir() else None  # a folder of modules needs no `__init__.py`

    def _follow(self, module: str, chain: list[str]) -> None:
        """Take what a dotted name stands for: `module`, then the attributes in `chain`."""
        if module.partition(".")[0] != "clipray":
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names:
                self.found.libraries.add(top)
            return
        if any(_below(module, how) for how in self.skipped):
            return
        parts = self._module(module)
        if parts is None:
            raise LookupError(f"{module} is imported, but there is no such module to look into")
        self._run_top_level(module)
        if not chain:
            for name in parts.definitions:
                self._take(module, name, parts.definitions[name])
            return
        first, rest = chain[0], chain[1:]
        if first in parts.definitions:
            self._take(module, first, parts.definitions[first])
        elif self._module(f"{module}.{first}") is not None:
            self._follow(f"{module}.{first}", rest)
        elif first in parts.imports:
            self._imported(parts, first, rest)
        else:
            self._follow(module, [])  # made in a way that cannot be read: all of the module counts

    def _run_top_level(self, module: str) -> None:
        """Take the statements that run when a module is imported, those of the packages around it too."""
        names = module.split(".")
        for end in range(1, len(names) + 1):
            package = ".".join(names[:end])
            self._take(package, "", self._module(package).rest)

    def _imported(self, parts: _Module, alias: str, chain: list[str]) -> None:
        for module, name in parts.imports[alias]:
            self._follow(module, [name, *chain] if name else chain)

    def _take(self, module: str, name: str, statements: list[ast.stmt]) -> None:
        """Record a definition, and follow every name in it."""
        key = f"{module}:{name}"
        if key in self.found.texts or not statements:
            return
        parts = self.modules[module]
        self.found.texts[key] = ""  # it may lead back to itself
        bound = {}
        for statement in statements:
            for used, chain in _uses(statement):
                if used in parts.definitions:
                    self._take(module, used, parts.definitions[used])
                if used in parts.imports:
                    bound[used] = parts.imports[used]
                    self._imported(parts, used, chain)
        bodies = [canonical(statement) for statement in statements]
        self.found.texts[key] = json.dumps([bodies, sorted(bound.items())])


def _below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _take_apart(text: str, name: str) -> _Module:
    tree = ast.parse(text)
    imports: dict[str, list[tuple[str, str]]] = {}
    for node in ast.walk(tree):
        for alias, target in _bindings(node, name):
            if target not in imports.setdefault(alias, []):
                imports[alias].append(target)
    for targets in imports.values():
        targets.sort()
    definitions: dict[str, list[ast.stmt]] = {}
    rest = []
    for statement in tree.body:
        if _says_nothing(statement):
            continue
        names = set(_defined(statement))
        for defined in names:
            definitions.setdefault(defined, []).append(statement)
        if not names or names & set(imports):  # it may change what another module holds
            rest.append(statement)
    return _Module(definitions, imports, rest)


def _bindings(node: ast.AST, module: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The names that an import statement binds, and what each stands for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, (alias.name, "")) if alias.asname else (top, (top, ""))
    if isinstance(node, ast.ImportFrom):
        if node.level:
            raise LookupError(f"{module} has a relative import, which is not followed")
        for alias in node.names:
            yield alias.asname or alias.name, (node.module, alias.name)


def _defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a top-level statement defines or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
        return
    yield from _stored(statement)
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            base = node
            while isinstance(base, ast.Subscript | ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name):
                yield base.id


def _says_nothing(statement: ast.stmt) -> bool:
    """Tell whether a statement computes nothing: a text that stands alone, an import, a block for type checkers."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return isinstance(statement.value.value, str)
    if isinstance(statement, ast.If):
        return ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(statement, ast.Import | ast.ImportFrom)


def _uses(node: ast.AST, hidden: frozenset = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Every name in a piece of code, with the attributes that follow it; names in annotations written as text too.

    Args:
        hidden: names that stand for local variables there.
    """
    chain, base = [], node
    while isinstance(base, ast.Attribute):
        chain.insert(0, base.attr)
        base = base.value
    if isinstance(base, ast.Name):
        if base.id not in hidden and not isinstance(base.ctx, ast.Store):
            yield base.id, chain
        return
    for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
        if annotation is not None:
            yield from _uses_in_texts(annotation)
    inside = hidden
    if isinstance(base, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        inside = hidden | _local(base)
        outside = [*getattr(base, "decorator_list", []), base.args, getattr(base, "returns", None)]
    elif isinstance(base, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        inside = hidden | frozenset(
            name for part in base.generators for name in _stored(part.target)
        )
        outside = [base.generators[0].iter]
    else:
        outside = []
    for part in outside:
        yield from _uses(part, hidden) if part is not None else ()
    for child in ast.iter_child_nodes(base):
        if child not in outside:
            yield from _uses(child, inside)


def _local(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> frozenset:
    """The names of a function's arguments and local variables."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    body = function.body if isinstance(function.body, list) else [function.body]
    stored = {name for part in body for name in _stored(part)}
    shared = {
        name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names
    }
    return frozenset(names | (stored - shared))


def _stored(node: ast.AST) -> Iterator[str]:
    """The names that a piece of code assigns to in its own scope."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp)
    if not isinstance(node, (*scopes, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        for child in ast.iter_child_nodes(node):
            yield from _stored(child)


def _uses_in_texts(annotation: ast.AST) -> Iterator[tuple[str, list[str]]]:
    for node in ast.walk(annotation):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from _uses(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                continue


def canonical(node: Any) -> Any:
    """Turn a syntax tree into lists that are equal for equal computations, whatever Python parsed them.

    Left out: positions, comments, docstrings, imports (see `_Module.imports`) and the types of arguments and results.
    Fields that are empty are left out too, because newer Pythons have more of them.

    >>> [canonical(ast.parse(text)) for text in ("x = 1  # one", "x  =  (1)")][0] == canonical(ast.parse("x = 1"))
    True
    >>> canonical(ast.parse("x = 1")) == canonical(ast.parse("x = 1.0"))
    False
    """
    if isinstance(node, list):
        return [canonical(one) for one in _parts(node)]
    if not isinstance(node, ast.AST):
        return f"{type(node).__name__} {node!r}"
    left_out = {"kind", "type_comment", "ctx", "returns"}
    if isinstance(node, ast.arg):
        left_out.add("annotation")
    fields = {}
    for name, value in ast.iter_fields(node):
        if (
            name in left_out
            or (value is None and not isinstance(node, ast.Constant))
            or value == []
        ):
            continue
        if isinstance(node, ast.JoinedStr):
            value = _merged(value)
        fields[name] = canonical(value)
    return [type(node).__name__, fields]


def _parts(nodes: list) -> list:
    return [one for one in nodes if not (isinstance(one, ast.stmt) and _says_nothing(one))]


def _merged(parts: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, neighbouring pieces of text as one: Pythons cut them differently."""
    merged: list[ast.expr] = []
    for part in parts:
        text = isinstance(part, ast.Constant)
        if text and merged and isinstance(merged[-1], ast.Constant):
            merged[-1] = ast.Constant(merged[-1].value + part.value)
        elif not text or part.value:
            merged.append(part)
    return merged
