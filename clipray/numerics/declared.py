"""The registries of fusers and heads, read without torch: their names, settings and flags, in a moment.

Importing torch takes five seconds, and a wrong name should be told in less than two. So the modules of `numerics` are
run a second time, apart from `sys.modules`, with a stand-in for every numeric library: functions are defined and never
called, settings and registries are made as they always are. Nothing is written down twice, and a new fuser stays one
file and one line in its registry.
"""

import builtins
import functools
import importlib.machinery
import importlib.util
import types
from collections.abc import Mapping
from typing import Any

PACKAGE = "clipray.numerics"
LIBRARIES = ("torch", "numpy", "scipy")


class _StandIn(types.ModuleType):
    """A library, or anything that it holds: has every attribute, can be called, subscripted and inherited from."""

    def __getattr__(self, name: str) -> "_StandIn":
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> "_StandIn":
        return self

    def __getitem__(self, key: Any) -> "_StandIn":
        return self

    def __or__(self, other: Any) -> "_StandIn":
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()


@functools.cache
def fusers() -> Mapping[str, Any]:
    """Return `fusers.FUSERS`, in which `fit` and `apply` cannot be called."""
    return _module(f"{PACKAGE}.fusers").FUSERS


@functools.cache
def heads() -> Mapping[str, Any]:
    """Return `heads.HEADS`, in which `fit` and `apply` cannot be called."""
    return _module(f"{PACKAGE}.heads").HEADS


def settings_of(method: Any, changes: Mapping[str, Any]) -> Any:
    """Return the settings of an entry of a registry, the given ones changed.

    Raises:
        TypeError: no such setting. ValueError: the settings refuse such a value.
    """
    return _module(f"{PACKAGE}.contracts").changed(method.settings, changes)


@functools.cache
def _module(name: str) -> types.ModuleType:
    """Run a module of `numerics` without the numeric libraries."""
    spec = _spec(name)
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    exec(spec.loader.get_code(name), module.__dict__)
    return module


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Find a module of `numerics` without running the packages above it."""
    if name == PACKAGE:
        return importlib.util.find_spec(name)
    above = _spec(name.rpartition(".")[0])
    folders = above.submodule_search_locations if above else None
    return importlib.machinery.PathFinder.find_spec(name, folders) if folders else None


def _import(name: str, where=None, local=None, wanted=(), level: int = 0) -> Any:
    """Import for such a module: return what its `import` statement gets."""
    if name.partition(".")[0] in LIBRARIES:
        return _StandIn(name if wanted else name.partition(".")[0])
    if name == PACKAGE or name.startswith(f"{PACKAGE}."):
        parts = {part: _spec(f"{name}.{part}") for part in wanted}
        if not any(parts.values()):
            return _module(name)
        inside = {part: _module(spec.name) for part, spec in parts.items() if spec}
        own = {} if len(inside) == len(parts) else vars(_module(name))
        return types.SimpleNamespace(**{**own, **inside})
    return builtins.__import__(name, where, local, wanted, level)
