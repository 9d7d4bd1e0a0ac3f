"""Who may import whom, and how long things may be, read from the syntax tree (imports inside functions count too)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE, FUNCTION, JOB = 400, 60, 100  # lines; a function's without its docstring

# place → (third parties, parts of clipray) it may import. The longest place that fits a module counts; a module without
# one fails, so that adding a layer is a decision. A package may always import itself.
MAY: dict[str, tuple[str, str]] = {
    "clipray": ("", ""),
    "clipray.errors": ("", ""),  # all may import it, and the next
    "clipray.shots": ("", ""),
    "clipray.secrets": ("", ""),
    "clipray.fingerprint": ("", "reach"),
    "clipray.reach": ("", ""),
    "clipray.config": ("yaml pydantic", "fingerprint"),
    "clipray.schema": ("pyarrow", ""),
    "clipray.progress": ("rich", "secrets"),
    "clipray.patience": ("s3fs botocore", "progress"),
    "clipray.catalog": ("", "config sources"),
    "clipray.sources": (
        "numpy torch PIL pyarrow fsspec sklearn matplotlib",
        "config schema patience",
    ),
    "clipray.images": ("numpy PIL", ""),
    "clipray.perturbations": ("numpy scipy PIL", ""),
    "clipray.contact_sheet": ("numpy PIL", "perturbations"),
    "clipray.backbones": (
        "numpy torch open_clip safetensors fsspec filelock huggingface_hub",
        "config images patience",
    ),
    "clipray.deadly": ("", "images"),
    "clipray.encoding": ("numpy", "images backbones"),
    "clipray.fusion": (
        "numpy torch",
        "artefacts backbones config fingerprint images numerics",
    ),
    "clipray.fused": (
        "numpy pandas torch PIL",
        "artefacts backbones encoding fusion sources tracking",
    ),
    "clipray.store": ("pyarrow fsspec", "fingerprint secrets patience"),
    "clipray.snapshot": ("", "store"),
    "clipray.steps.submit": ("ray", "config fingerprint progress secrets store"),
    "clipray.lock": ("", "progress store"),
    "clipray.numerics": ("numpy scipy torch", ""),
    "clipray.artefacts": (
        "numpy pyarrow fsspec safetensors",
        "backbones config encoding fingerprint schema store snapshot numerics sources",
    ),
    "clipray.steps": (
        "numpy pandas pyarrow ray torch yaml safetensors",
        "config fingerprint secrets schema catalog sources images perturbations contact_sheet backbones deadly "
        "encoding fused fusion store snapshot lock artefacts numerics progress tracking report",
    ),
    "clipray.steps.embed.variants": (
        "numpy pyarrow PIL",
        "encoding images sources artefacts perturbations store steps",
    ),
    "clipray.steps.checks": ("fsspec", "config numerics"),
    "clipray.steps.predict.serve": (
        "numpy ray starlette",
        "artefacts backbones encoding fusion",
    ),
    "clipray.steps.tune.space": ("optuna", "config numerics steps"),
    "clipray.steps.tune.studies": ("numpy optuna ray", "config steps"),
    "clipray.notebook": ("numpy pandas torch matplotlib", "numerics report store"),
    "clipray.tracking": ("mlflow fsspec filelock pandas", "config secrets store"),
    "clipray.report": (
        "numpy pandas pyarrow scipy matplotlib jinja2 markupsafe rich yaml",
        "schema store",
    ),
    "jobs": (
        "rich",
        "config secrets catalog steps store lock report backbones progress artefacts fusion",
    ),
}
ONE_DOOR = {
    "open_clip": "clipray.backbones",
    "mlflow": "clipray.tracking",
    "pydantic": "clipray.config",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_of(path): path
    for top in ("clipray", "jobs")
    for path in sorted((ROOT / top).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def place_of(module: str) -> str | None:
    fits = [
        place
        for place in MAY
        if module == place or (place != "clipray" and module.startswith(place + "."))
    ]
    return max(fits, key=len, default=None)


def imports(tree: ast.Module) -> set[str]:
    """The dotted names that a module imports anywhere; `from clipray import x` is clipray.x."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= (
                {f"clipray.{a.name}" for a in node.names}
                if node.module == "clipray"
                else {node.module}
            )
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports(module):
    place = place_of(module)
    assert place is not None, f"{module} has no place in the table of this test"
    third, ours = MAY[place]
    for name in imports(TREES[module]):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top in ("clipray", "jobs"):
            part = name if top == "jobs" else ".".join(name.split(".")[:2])
            allowed = {f"clipray.{one}" for one in ours.split()} | {
                place,
                "clipray",
                "clipray.errors",
                "clipray.shots",
            }
            own = part == place.split(".")[0] or (module, name) == ("jobs", "jobs.command")
            assert part in allowed or own, f"{module} may not import {name}"
        else:
            assert top in third.split(), f"{module} may not import {name}"
            door = ONE_DOOR.get(top, module)
            assert module == door or module.startswith(door + "."), (
                f"{door} is the only door to {top}"
            )


@pytest.mark.parametrize("module", MODULES)
def test_lengths(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= (JOB if module.startswith("jobs.") else FILE)
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            words = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            assert node.end_lineno - node.lineno + 1 - words <= FUNCTION, (
                f"{module}.{node.name} is too long"
            )


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("jobs")])
def test_jobs_define_no_class(module):
    assert not [node for node in ast.walk(TREES[module]) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_documented(module):
    tree = TREES[module]
    assert ast.get_docstring(tree), f"{module} says not what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name} has no docstring"


def test_no_drawers_for_anything():
    assert not [
        name for name in MODULES if {"utils", "core", "common", "helpers"} & set(name.split("."))
    ]


def test_importing_clipray_does_nothing():
    code = "import sys; before = set(sys.modules); import clipray; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["clipray"]
    assert done.stderr == ""


def drivers() -> list[str]:
    """Modules that plan, publish and tell what is to be done, and those that say what artefacts are."""
    named = {"campaign", "outlook", "checks", "tracked", "failures", "todo", "evaluations"}
    found = [f"clipray.steps.{name}" for name in sorted(named)]
    rooms = [name for name in MODULES if name.endswith(".plan") or ".publish." in name]
    artefacts = [name for name in MODULES if name.startswith("clipray.artefacts")]
    return [*found, *rooms, *artefacts, "clipray.steps.evaluate.teach"]


def test_driver_modules_load_without_torch():
    """In a process of its own: a plan is told, and a wrong name refused, before torch's five seconds."""
    names = drivers()
    assert "clipray.steps.evaluate.plan" in names
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names}]; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False"], "a driver module imports torch"


# Steps are rooms, what rooms share, and what calls rooms in turn. Rooms import no room, and nothing above them.
ROOMS = ("index", "embed", "evaluate", "tune", "predict", "pretrain", "publish")
ABOVE = (
    "campaign",
    "evaluations",
    "fitting",
    "campaign_ids",
    "labelling",
    "outlook",
    "robustness",
    "splits",
)
# room → what it imports all the same, and why
STILL = {
    "tune": ("campaign evaluations", "a search embeds by itself what it needs"),
}


def step_of(module: str) -> str:
    """The room or the file of `clipray.steps` that a module belongs to; empty for others."""
    names = module.split(".")
    return names[2] if names[:2] == ["clipray", "steps"] and len(names) > 2 else ""


def needed(module: str) -> set[str]:
    """All modules of the house that a module imports anywhere, and not their packages where these stand for them."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return (found & set(MODULES)) - {module}


@pytest.mark.parametrize("room", sorted({step_of(name) for name in MODULES} - {""}))
def test_rooms_import_no_rooms(room):
    if room in ABOVE:
        return
    closed = {*ROOMS, *ABOVE} - {room} - set(STILL.get(room, ("",))[0].split())
    for name in MODULES:
        if step_of(name) == room:
            wrong = sorted(one for one in needed(name) if step_of(one) in closed)
            assert not wrong, f"{name} may not import {wrong}"


def test_exceptions_are_needed():
    for room, (others, reason) in STILL.items():
        found = {
            step_of(other) for name in MODULES if step_of(name) == room for other in needed(name)
        }
        assert set(others.split()) <= found, f"{room} does not need them any more: {others}"
        assert reason


def test_no_circle_of_imports():
    needs = {name: needed(name) for name in MODULES}
    assert needs["clipray.steps.campaign"]
    while needs:
        free = [name for name, others in needs.items() if not others & set(needs)]
        assert free, f"these import each other: {sorted(needs)}"
        needs = {name: others for name, others in needs.items() if name not in free}


def test_artefacts_import_neither_torch_nor_ray():
    for name in MODULES:
        if name.startswith("clipray.artefacts"):
            assert not {one.partition(".")[0] for one in imports(TREES[name])} & {"torch", "ray"}
