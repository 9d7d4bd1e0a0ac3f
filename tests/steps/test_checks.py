"""What is wrong with a config is found in a moment, and without torch, data or Ray."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from clipray.config import Campaign, parse
from clipray.errors import ConfigError
from clipray.numerics import declared
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.heads import HEADS
from clipray.steps import checks
from clipray.steps.evaluate.rows import ON_TEST

ROOT = Path(__file__).resolve().parents[2]
THREE = {"workspace": "w", "datasets": ["digits"], "backbones": ["shipped"]}


def check(**changes) -> None:
    checks.check(parse(Campaign, THREE | changes, "here"))


@pytest.mark.parametrize(("apart", "real"), [(declared.fusers, FUSERS), (declared.heads, HEADS)])
def test_what_is_read_without_torch_is_what_torch_gives(apart, real):
    assert list(apart()) == list(real)
    for name, method in real.items():
        other = apart()[name]
        assert type(other.settings).__name__ == type(method.settings).__name__
        assert dataclasses.asdict(other.settings) == dataclasses.asdict(method.settings)
        assert str(get_type_hints(type(other.settings))) == str(
            get_type_hints(type(method.settings))
        )
        assert other.needs_labels == method.needs_labels


@pytest.mark.parametrize("changes", [{"hidden": 3}, {"weight_map": "exp"}, {"combine": "probs"}])
def test_settings_are_refused_as_torch_s_are(changes):
    try:
        expected = dataclasses.asdict(settings_of("nlc", changes))
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:20]):
            declared.settings_of(declared.fusers()["nlc"], changes)
    else:
        found = declared.settings_of(declared.fusers()["nlc"], changes)
        assert dataclasses.asdict(found) == expected


def test_neither_torch_nor_arrow_nor_ray_is_imported():
    code = (
        "import sys; from clipray.config import Campaign, parse; from clipray.steps import checks;"
        f"checks.check(parse(Campaign, {THREE!r}, 'here'));"
        "print(*{'torch', 'numpy', 'pyarrow', 'ray', 'pandas', 'fsspec'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("\n", "")


RESERVED = ["oracle", "Oracle", "single", "pair", "set", "all", "embeddings", "best_single_x"]
RESERVED += [ON_TEST, "best_single_on_support", "log_avg", "NLC"]


@pytest.mark.parametrize("name", RESERVED)
def test_reserved_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"fusers\.0\.name: .*(reserved|is the name of a method)"):
        check(fusers=[{"name": name, "fuser": "mean_logits"}])


def test_slashes_are_no_names():
    with pytest.raises(ConfigError, match=r"fusers\.0\.name: 'single/rn-32' cannot be a name"):
        check(fusers=[{"name": "single/rn-32", "fuser": "log_avg"}])


def test_heads_have_reserved_names_too():
    with pytest.raises(ConfigError, match=r"heads\.0\.name: the name 'embeddings' is reserved"):
        check(heads=[{"name": "embeddings", "head": "zero_shot"}])
    with pytest.raises(ConfigError, match=r"heads\.0\.name: 'zero_shot' is the name of a method"):
        check(heads=[{"name": "zero_shot", "head": "tip_adapter"}])


@pytest.mark.parametrize(
    ("one", "other"),
    [("mine", "Mine"), ("straße", "STRASSE"), ("\ufb01t", "fit"), ("हिन्दी", "ह\u0940न्द\u0940")],
)
def test_names_that_are_one_elsewhere_are_refused(one, other):
    """As a folder on a file system that folds case or composes, or under MLflow's `[\\w\\-. /:]`."""
    entries = [{"name": name, "fuser": "nlc"} for name in (one, other)]
    with pytest.raises(ConfigError, match=r"fusers: .* are one name"):
        check(fusers=entries)


def test_a_name_twice_and_the_reference_named():
    with pytest.raises(ConfigError, match="fusers: nlc named more than once"):
        check(fusers=["nlc", "nlc"])
    check(fusers=["best_single_on_support", {"name": "nlc", "fuser": "nlc", "settings": {}}])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"workspace": "s4://b/w"}, "workspace: s4://b/w: there is no protocol 's4'. .*s3"),
        ({"data_root": "s33://b"}, "data_root: .*no protocol 's33'"),
        ({"datasets": ["gcss://b/d"]}, r"datasets\.0: .*no protocol 'gcss'"),
        ({"workspace": r"C:\data\ws"}, "workspace: .* is a Windows path"),
        ({"workspace": "D:/ws"}, "workspace: .* is a Windows path"),
    ],
)
def test_storage_that_cannot_be_is_one_sentence(changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        check(**changes)
    assert len(str(error.value).splitlines()) == 1


def test_usual_places_pass():
    for workspace in ("w", "~/w", "/tmp/w", "file:///tmp/w", "s3://bucket/w", "./a:b"):
        check(workspace=workspace)
