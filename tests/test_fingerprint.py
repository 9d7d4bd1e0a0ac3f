"""What an address is made of: every field of every config, and every definition that can change a number."""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pytest

import clipray
from clipray import catalog, fingerprint
from clipray.artefacts import cards
from clipray.artefacts import evaluations as evaluate
from clipray.config import Backbone, Campaign, Dataset, Fuser, Head, How, Strict
from clipray.reach import closure
from clipray.steps import campaign as run
from clipray.steps import evaluations
from clipray.steps.evaluate import plan
from tests.steps.worlds import World

FILES = {
    "__init__.py": "",
    "score.py": '''
        """A module."""

        import json
        from typing import TYPE_CHECKING
        from math import floor, sin as wave
        from clipray import maths
        from clipray.maths import twice

        if TYPE_CHECKING:
            from clipray.kinds import Box

        LIMITS = {"low": 1, "high": 2.5}
        LIMITS["more"] = 4
        LIMITS.update({key: LIMITS[key] + 0 for key in LIMITS})


        def score(x: int, box: "Box", by=3) -> float:
            """Say what it does."""
            from clipray.lazy import late

            # a comment
            shown = f"{x:>{by}} items"
            return late(x) + box.size(x) + wave(twice(x)) * LIMITS["low"] + maths.REGISTRY["a"](len(shown))


        def unused():
            return 1
    ''',
    "maths.py": '''
        from clipray.progress import bar


        def _half(x):
            return x / 2


        def twice(x):
            bar(x)
            return 2 * x


        REGISTRY = {"a": _half}


        def other(x):
            return x
    ''',
    "lazy.py": "import numpy\n\n\ndef late(x, scale=1.0):\n    return numpy.abs(x) * scale\n",
    "kinds.py": "class Box:\n    def size(self, x):\n        return x + 1\n",
    "progress.py": "def bar(x):\n    print(x)\n",
}  # fmt: skip


def package(root: Path, *edits: tuple[str, str, str]) -> Path:
    folder = root / "clipray"
    folder.mkdir(parents=True)
    texts = {name: textwrap.dedent(text) for name, text in FILES.items()}
    for name, before, after in edits:
        assert texts[name].count(before) == 1, before
        texts[name] = texts[name].replace(before, after)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def digest(root: Path, *edits: tuple[str, str, str]) -> str:
    return fingerprint.code("clipray.score:score", root=package(root, *edits))["digest"]


@pytest.mark.parametrize(
    "edit",
    [
        ("score.py", '"""A module."""', '"""Another text.\n\nOf two paragraphs."""'),
        ("score.py", '    """Say what it does."""\n', ""),
        ("score.py", "# a comment", "# other words"),
        ("score.py", '{"low": 1, "high": 2.5}', "{'low': 1,\n    'high': (2.5),\n}"),
        ("score.py", "import json\n", ""),
        ("score.py", "floor, sin as wave", "sin as wave"),
        (
            "score.py",
            "from clipray import maths\nfrom clipray.maths import twice",
            "from clipray.maths import twice\nfrom clipray import maths",
        ),
        ("score.py", "x: int, box", "x: float, box"),
        ("score.py", "-> float:", "-> int:"),
        ("score.py", "def unused():\n    return 1", "def unused():\n    return 2"),
        ("maths.py", "def other(x):\n    return x", "def other(x):\n    return -x"),
        ("progress.py", "print(x)", "print('at', x)"),
    ],
    ids=str,
)
def test_what_changes_no_number_changes_no_fingerprint(tmp_path, edit):
    assert digest(tmp_path / "a") == digest(tmp_path / "b", edit)


@pytest.mark.parametrize(
    "edit",
    [
        ("score.py", '"low": 1', '"low": 1.0'),
        ("score.py", '["more"] = 4', '["more"] = 5'),
        ("score.py", "LIMITS[key] + 0", "LIMITS[key] + 1"),
        ("score.py", "sin as wave", "cos as wave"),
        ("score.py", "by=3", "by=4"),
        ("score.py", ":>{by}} items", ":<{by}} items"),
        ("score.py", " items", " item"),
        ("score.py", "LIMITS = {", "print('at import')\nLIMITS = {"),
        ("score.py", "late(x) + box", "late(x) - box"),
        ("maths.py", "2 * x", "3 * x"),
        ("maths.py", "x / 2", "x // 2"),
        ("maths.py", '{"a": _half}', '{"a": _half, "b": other}'),
        ("lazy.py", "scale=1.0", "scale=1.5"),
        ("kinds.py", "x + 1", "x + 2"),
        ("__init__.py", "", "import os\nos.environ['A'] = '1'\n"),
    ],
    ids=str,
)
def test_whatever_can_change_a_number_changes_the_fingerprint(tmp_path, edit):
    if edit[1]:
        assert digest(tmp_path / "a") != digest(tmp_path / "b", edit)
        return
    folder = package(tmp_path / "b")
    (folder / edit[0]).write_text(edit[2])
    assert digest(tmp_path / "a") != fingerprint.code("clipray.score:score", root=folder)["digest"]


def test_the_versions_of_numeric_libraries_are_named():
    libraries = fingerprint.code(plan.evaluate)["libraries"]
    assert {"numpy", "scipy", "torch"} <= set(libraries)
    assert not {"ray", "pydantic", "pyarrow"} & set(libraries)
    assert "+" not in libraries["torch"]


def test_a_missing_entry_is_an_error(tmp_path):
    with pytest.raises(LookupError, match="there is no clipray"):
        fingerprint.code("clipray.score:nothing", root=package(tmp_path))


def test_a_zip_file_has_the_fingerprint_of_the_folder(tmp_path):
    source = Path(clipray.__file__).parent
    with zipfile.ZipFile(tmp_path / "shipped.zip", "w") as file:
        for path in source.rglob("*.py"):
            file.write(path, Path("clipray") / path.relative_to(source))
    entry = "clipray.steps.embed.decode:decode"
    program = (
        f"from clipray import fingerprint as f; print(f.__file__, f.code({entry!r})['digest'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "shipped.zip")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    place, found = done.stdout.split()
    assert "shipped.zip" in place
    assert found == fingerprint.code(entry)["digest"]


def test_every_function_that_an_evaluation_runs_is_in_its_fingerprint(tmp_path):
    """Python's own record of calls is the authority: what ran must have been found by reading."""
    from clipray.numerics.fusers import FUSERS
    from clipray.numerics.heads import HEADS
    from clipray.reach import HOW_MODULES
    from clipray.steps.evaluate import costs  # noqa: F401 - else its classes' bodies would count

    world = World(tmp_path)
    task = world.task(heads=tuple(HEADS), fusers=tuple(FUSERS)[1:], shots=(1, 2))
    task = dataclasses.replace(task, seeds=1, save_fusers=True)
    place = evaluate.address(world.store, task)
    called = set()

    def note(frame, event, argument):
        module = frame.f_globals.get("__name__", "")
        if event == "call" and module.startswith("clipray."):
            called.add((module, frame.f_code.co_qualname.partition(".")[0]))

    sys.setprofile(note)
    try:
        plan.evaluate(world.store, task, place)
    finally:
        sys.setprofile(None)
    reached = set(closure(("clipray.steps.evaluate.plan:evaluate",)).texts)
    how = (*HOW_MODULES, "clipray.fingerprint", "clipray.reach")  # these make addresses
    missed = {
        f"{module}:{name}"
        for module, name in called
        if name.isidentifier() and not any(module.startswith(one) for one in how)
    }
    missed = {name for name in missed - reached if "__create_fn__" not in name}  # of `dataclasses`
    assert not missed
    assert len(called) > 150


def test_values_have_one_form_or_none(tmp_path):
    @dataclasses.dataclass
    class Record:
        a: int
        b: int = dataclasses.field(default=0, metadata={"how": How("no number")})

    class Config(Strict):
        a: int = 1
        b: Annotated[int, How("no number")] = 2

    value = {"r": Record(1), "c": Config(), "p": Path("x"), "s": {"b", "a"}, 1: None}
    day = {"on": datetime.date(2020, 1, 2)}
    assert fingerprint.plain(value | day) == {
        "r": {"a": 1},
        "c": {"a": 1},
        "p": "x",
        "s": ["a", "b"],
        "1": None,
        "on": "2020-01-02",
    }
    assert json.loads(json.dumps(fingerprint.plain(value))) == fingerprint.plain(value)
    with pytest.raises(TypeError, match="cannot be part of an artefact's address"):
        fingerprint.fingerprint({"a": object()})
    with pytest.raises(TypeError, match="cannot be part"):
        fingerprint.fingerprint([len])


# Another value for each field whose value must be one of a few; any other field is changed by its type.
OTHER = {
    Dataset: {
        "format": "sklearn",
        "uri": "coloured-shapes",
        "classnames": tuple(f"colour {number}" for number in range(11)),
        "options": {"seed": 1},
    },
    Backbone: {
        "weights": "backbones/rn-48/model.safetensors",
        "config": "backbones/rn-48/clipray-rn-48.json",
        "like": "ViT-B-32/laion2b_s34b_b79k",
    },
    Campaign: {
        "datasets": ("textures",),
        "backbones": ("rn-32",),
        "heads": ("linear_probe",),
        "fusers": ("mean_logits",),
        "precision": "fp16",
        "limit": 20,
    },
    Fuser: {
        "fuser": "vote_top1",
        "settings": {"best": 2},
        "chosen": ({"dataset": "colours", "settings": {"best": 2}},),
    },
    Head: {
        "head": "tip_adapter_f",
        "settings": {"alpha": 2.0},
        "chosen": ({"dataset": "colours", "settings": {"alpha": 2.0}},),
    },
}


def other(value, name: str):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}-other"
    if isinstance(value, dict):
        return {**value, "other": 1}
    if isinstance(value, tuple | list):
        return (*value, other(value[-1], name) if value else 1)
    if value is None:
        return "other"
    if isinstance(value, Strict):
        first = next(iter(type(value).model_fields))
        return value.model_copy(update={first: other(getattr(value, first), first)})
    raise AssertionError(f"say in OTHER what another value of {name} is")


def changes(base) -> dict:
    """For each field of a config, the config with that field changed."""
    kind = type(base)
    found = {}
    for name in kind.model_fields:
        value = OTHER[kind][name] if name in OTHER[kind] else other(getattr(base, name), name)
        if name in ("chosen",):
            value = kind.model_validate({**base.model_dump(), name: value}).chosen
        found[name] = base.model_copy(update={name: value})
    return found


def how_fields(kind: type) -> set[str]:
    return {name for name, field in kind.model_fields.items() if fingerprint.is_how(field)}


BASE = Campaign(
    workspace="unset",
    datasets=("colours",),
    backbones=("rn-32", "rn-48"),
    precision="fp32",
    heads=("zero_shot", Head(name="tip", head="tip_adapter")),
    fusers=("log_avg", Fuser(name="vote", fuser="vote_top3")),
    shots=(1,),
    seeds=2,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A workspace of all campaigns, so that images are looked at once; an address never depends on it."""
    return tmp_path_factory.mktemp("shared")


def addresses(campaign: Campaign, workspace: Path, monkeypatch, replaced=None) -> set[str]:
    """Where a campaign would find everything that it needs, by the config alone.

    Args:
        replaced: an entry of the catalogue in place of the one of its kind.
    """
    if isinstance(replaced, Dataset):
        monkeypatch.setattr(catalog, "datasets", lambda names, root: [replaced])
    if isinstance(replaced, Backbone):
        kept = catalog.backbones(["rn-48"])
        monkeypatch.setattr(catalog, "backbones", lambda names, given=(): [replaced, *kept])
    campaign = campaign.model_copy(update={"workspace": str(workspace)})
    todo = run.plan(campaign)
    found = set()
    for spec in todo.specs:
        place = cards.address(todo.store, spec, campaign.precision)
        card = {"scale": 100.0, "bias": 0.0}
        todo.store.finish(place, cards.what(spec, campaign.precision), card=card)
        found.add(place)
    for work in todo.works.values():
        found |= {work.index.address, *work.addresses.values()}
    for task in evaluations.tasks(todo):
        found |= {*task.classifiers, evaluate.address(todo.store, task)}
    monkeypatch.undo()
    return found


def test_every_field_of_a_campaign_moves_an_address(shared, monkeypatch):
    told = {"name", "workspace", "data_root", "compute", "tracking", "regression", "notify"}
    assert how_fields(Campaign) == told
    before = addresses(BASE, shared, monkeypatch)
    for name, campaign in changes(BASE).items():
        after = addresses(campaign, shared, monkeypatch)
        assert (after == before) == (name in how_fields(Campaign)), name


@pytest.mark.parametrize("number", [0, 1])
def test_every_field_of_a_head_and_of_a_fuser_moves_an_address(shared, monkeypatch, number):
    key = ("heads", "fusers")[number]
    known, entry = getattr(BASE, key)
    before = addresses(BASE, shared, monkeypatch)
    for name, changed in changes(entry).items():
        campaign = BASE.model_copy(update={key: (known, changed)})
        assert addresses(campaign, shared, monkeypatch) != before, name


def test_every_field_of_a_dataset_moves_an_address(shared, monkeypatch):
    (base,) = catalog.datasets(["colours"], "")
    before = addresses(BASE, shared, monkeypatch)
    for name, dataset in changes(base).items():
        if name == "format":
            dataset = dataset.model_copy(update={"uri": "digits"})
        if name == "splits":
            dataset = base.model_copy(update={"splits": {"train": "test", "test": "train"}})
        after = addresses(BASE, shared, monkeypatch, dataset)
        assert (after == before) == (name in how_fields(Dataset)), name


def test_every_field_of_a_backbone_moves_an_address(shared, monkeypatch):
    base = catalog.backbones(["rn-32"])[0]
    before = addresses(BASE, shared, monkeypatch)
    asked = {"pretrained", "revision"}  # what the hub says of these is content: see test_hub
    for name, spec in changes(base).items():
        if name not in asked:
            after = addresses(BASE, shared, monkeypatch, spec)
            assert (after == before) == (name in how_fields(Backbone)), name


def test_threads_take_turns_reading_code(tmp_path, monkeypatch):
    """Python's parser fails where two threads parse at once, and many datasets are looked at in threads."""
    (tmp_path / "__init__.py").write_text("")
    for number in range(8):
        lines = [f"def f{line}(): return {line}" for line in range(500)]
        (tmp_path / f"m{number}.py").write_text("\n".join(lines))
    busy, most = [], []

    def watched(*given):
        busy.append(threading.get_ident())
        most.append(len(busy))
        try:
            return closure(*given)
        finally:
            busy.remove(threading.get_ident())

    monkeypatch.setattr(fingerprint, "closure", watched)
    with ThreadPoolExecutor(8) as threads:
        names = [f"clipray.m{number}" for number in range(8)]
        found = list(threads.map(lambda name: fingerprint.code(name, root=tmp_path), names))
    assert len({one["digest"] for one in found}) == 8
    assert max(most) == 1
