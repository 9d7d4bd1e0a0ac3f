"""Configs are strict, and their errors say what to change."""

import re
from pathlib import Path

import pytest
import yaml

from clipray.config import (
    CONFIGS,
    NO_NUMBER,
    Backbone,
    Campaign,
    Dataset,
    fingerprint,
    load,
    names,
    parse,
    read_yaml,
)
from clipray.config.predict import Fit, Predict
from clipray.config.pretrain import Pretrain
from clipray.config.robustness import Robustness
from clipray.config.search import Tune
from clipray.errors import ConfigError
from clipray.shots import ALL

GOOD = {
    "workspace": "w",
    "datasets": ["digits"],
    "backbones": ["shipped"],
    "precision": "fp32",
    "heads": ["zero_shot"],
    "seeds": 1,
    "fusers": ["nlc"],
}


def written(path: Path, values: dict) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_file_and_what_is_set_over_it(tmp_path):
    path = written(tmp_path / "c.yaml", GOOD)
    sets = ["compute.batch_size=7", "shots=[1, 2]", "datasets=[a, b]", "compute.pools.rn-32.size=2"]
    campaign = load(Campaign, path, sets)
    assert campaign.compute.batch_size == 7
    assert campaign.shots == (1, 2)
    assert campaign.datasets == ("a", "b")
    every = load(Campaign, path, ["shots=[4, all]"])
    assert every.shots == (4, ALL)
    assert every.model_dump(mode="json")["shots"] == [4, "all"]
    assert campaign.compute.pools["rn-32"].size == 2


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            ["computee=1"],
            [
                "computee: there is no such key. Did you mean compute?",
                "known keys: name, workspace",
            ],
        ),
        (
            ["compute.batchsize=1"],
            ["compute.batchsize: there is no such key. Did you mean batch_size?", "keys: address"],
        ),
        (["compute.pools.a.sise=1"], ["compute.pools.a.sise: there is no", "mean size?"]),
        (["held_out=0.1", "shots=[1, 4]"], ["`held_out: 0.1` needs 2 shots or more"]),
        (["precision=fp61"], ["must be 'fp32', 'fp16' or 'bf16', not 'fp61'. Did you mean fp16"]),
        (["workspace=5"], ["workspace: must be text, not 5 (put it in quotes)"]),
        (["workspace=no"], ["workspace: must be text, not false (YAML reads yes, no"]),
        (["workspace=~"], ["workspace: must be text, not empty"]),
        (["seeds=true"], ["seeds: must be a whole number, not true"]),
        (["seeds='3'"], ["seeds: must be a whole number, not '3' (without quotes)"]),
        (
            ["datasets=digits"],
            ["datasets: must be a list, such as [a, b], not 'digits'", "[digits]"],
        ),
        (["compute=[1]"], ["compute: must be a mapping (`key: value` lines), not a list"]),
        (["shots=[0]"], ["shots.0: must be at least 1, not 0"]),
        (["shots=[4, -1]"], ["shots.1: must be at least 1, not -1"]),
        (["shots=[1, 4, 1]"], ["shots: 1 stands twice"]),
        (["shots=[all, 4, all]"], ["shots: all stands twice"]),
        (["shots=[any]"], ["shots.0: must be a whole number, not 'any'"]),
        (["fusers=[5]"], ["fusers.0: must be text or a mapping"]),
        (["fusers=[[nlc], [ot]]"], ["fusers.0: must be text or a mapping", "fusers.1: must be"]),
        (["fusers=nlc"], ["fusers: must be a list, such as [a, b], not 'nlc': write [nlc]"]),
        (
            ["fusers=[{name: n, fuser: nlc, settings: [1]}]"],
            ["fusers.0.settings: must be a mapping"],
        ),
        (["fusers=[{name: n, fuser: 3}, ot]"], ["fusers.0.fuser: must be text, not 3"]),
        (["compute="], ["compute: must be a mapping (`key: value` lines), not empty"]),
        (["compute.error_budget=.nan"], ["compute.error_budget: must be a finite number, not nan"]),
        (["workspace=''"], ["workspace: must be text that is not empty, not ''"]),
        (["fusers=[{fuser: nlc}]"], ["fusers.0.name: is missing"]),
        (
            ["fusers=[nlc, {name: n, fuser: nlc, setings: {}}]"],
            ["fusers.1.setings: there is no such key. Did you mean settings?", "name, settings"],
        ),
        (["fusers=[{name: a/b, fuser: nlc}]"], ["fusers.0.name: 'a/b' cannot be a name"]),
        (["fusers.0.name=n"], ["--set fusers.0.name=n", "0 holds a value, not keys"]),
        (["searches.0.name=n"], ["the file has no list searches; set it whole"]),
        (["heads.1=x"], ["'1' names no entry of a list of 1"]),
        (["heads.first=x"], ["'first' names no entry of a list of 1"]),
        (["a..b=1"], ["--set a..b=1: write it as key.subkey=value"]),
        (["seeds=none"], ["seeds: must be a whole number, not 'none'"]),
        (["seeds=0"], ["seeds: must be at least 1, not 0"]),
        (["precision=fp8"], ["precision", "'fp32', 'fp16' or 'bf16'"]),
        (["datasets=[]"], ["datasets: must be a list of 1 or more, not an empty list"]),
        (["workspace"], ["--set workspace: write it as key.subkey=value"]),
        (["datasets='[digits"], ["--set datasets='[digits: '[digits is not YAML"]),
        (["workspace.deep=1"], ["workspace holds a value, not keys"]),
    ],
)
def test_what_is_wrong_is_named_by_its_dotted_path(tmp_path, sets, words):
    with pytest.raises(ConfigError) as error:
        load(Campaign, written(tmp_path / "c.yaml", GOOD), sets)
    assert all(word in str(error.value) for word in words), str(error.value)


def told(key: str, value) -> list[str]:
    """What is said of a campaign with this value at this key; nothing where it can be."""
    try:
        parse(Campaign, GOOD | {key: value}, "here")
    except ConfigError as error:
        return str(error).splitlines()[1:] or ["nothing is told"]
    return []


@pytest.mark.parametrize("key", Campaign.model_fields)
def test_no_word_of_pydantic_s_reaches_a_person(key):
    """Whatever stands there: every problem is told, in YAML's words and with its path alone."""
    wrong = [None, True, 3, 2.5, "text", [], ["a"], [3], [[]], {}, {"a": 1}, {"name": 3}, [{}]]
    lines = [line for value in wrong for line in told(key, value)]
    assert lines
    for line in lines:
        assert re.match(rf"  ({key}[.:]|  known keys: )", line)
        assert not re.search(r"Input|valid|tuple|dict|None|True|False|Fuser|Head", line)


def test_a_dataset_s_unions_are_told_too():
    for value in (3, {0: "cat"}, [1]):
        with pytest.raises(ConfigError, match=r"classnames(\.0)?: must be .*text") as error:
            parse(Dataset, {"name": "x", "format": "folder", "classnames": value}, "here")
        assert "tuple" not in str(error.value)


def test_a_missing_key_and_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"workspace: is missing"):
        parse(Campaign, {k: v for k, v in GOOD.items() if k != "workspace"}, "here")
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml"):
        load(Campaign, tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold `key: value` lines"):
        load(Campaign, tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(Campaign, tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "c.yaml is empty"),
        (b"# only a comment\n", "c.yaml is empty"),
        ("name: bücher\n".encode("latin-1"), "c.yaml is not UTF-8: byte 0xfc in line 1"),
        ("workspace: w\nname: x\n".encode("utf-16"), "c.yaml is not UTF-8"),
        (b"workspace: w\ncompute:\n\tbatch_size: 1\n", "line 3, column 1: a tab cannot indent"),
        (b"workspace: a\nseeds: 1\nworkspace: b\n", "'workspace' stands twice, in lines 1 and 3"),
        (b"compute: {batch_size: 1, batch_size: 2}\n", "'batch_size' stands twice"),
        (b"a: &x [*x]\n", "is not YAML"),
        (b"a: !!python/object:os.system {}\n", "is not YAML"),
        (b"just text\n", "must hold `key: value` lines"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_line(tmp_path, content, words):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load(Campaign, tmp_path / "c.yaml")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_yaml_is_read_as_people_mean_it(tmp_path):
    """A BOM, numbers such as 1e-3 (YAML 1.2's, text in 1.1), dates as text, and merged mappings."""
    text = "\ufeffa: 1e-3\nb: -2.5E4\nc: 2020-01-02\nd: &d {x: 1}\ne: {<<: *d, x: 2}\nf: e3\n"
    (tmp_path / "c.yaml").write_text(text)
    read = read_yaml(tmp_path / "c.yaml")
    assert read == {
        "a": 0.001,
        "b": -25000.0,
        "c": "2020-01-02",
        "d": {"x": 1},
        "e": {"x": 2},
        "f": "e3",
    }


def test_a_missing_file_is_told_with_those_like_it(tmp_path):
    written(tmp_path / "mine.yaml", GOOD)
    with pytest.raises(ConfigError, match=r"Did you mean .*mine\.yaml\?"):
        load(Campaign, tmp_path / "mien.yaml")
    with pytest.raises(ConfigError, match=r"Did you mean .*configs/demo\.yaml\?"):
        load(Campaign, "demo.yml")


def test_three_keys_are_a_campaign_and_what_was_left_open_is_known(tmp_path):
    three = {key: GOOD[key] for key in ("workspace", "datasets", "backbones")}
    found = load(Campaign, written(tmp_path / "my pets.yaml", three))
    assert found.name == "my-pets"  # two configs of a workspace keep two reports
    assert found.defaults() == {
        "precision": "fp32",
        "shots": [1, 4, 16],
        "seeds": 5,
        "folds": 5,
        "max_pixels": 100_000_000,
        "heads": ["zero_shot"],
        "fusers": ["log_avg", "c_log_avg", "nlc", "guarded"],
    }
    whole = found.model_dump(mode="json")
    assert parse(Campaign, whole, "written out").defaults() == {}
    searches = [{"name": "s", "fuser": "nlc", "space": {"rate": {"uniform": [0.1, 1]}}}]
    search = load(Tune, written(tmp_path / "pets.yaml", three | {"searches": searches}))
    assert search.name == "pets-tune"
    assert search.samples > 0
    assert {"selection", "metric", "sampler", "samples"} <= set(search.defaults())


def test_every_default_is_listed_in_the_plan_or_declared_to_change_no_number():
    for model in (Campaign, Tune):
        three = {key: GOOD[key] for key in ("workspace", "datasets", "backbones")}
        searches = [{"name": "s", "fuser": "nlc", "space": {"rate": {"uniform": [0.1, 1]}}}]
        found = parse(model, three | ({"searches": searches} if model is Tune else {}), "here")
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        assert set(found.defaults()) == set(model.model_fields) - required - NO_NUMBER


@pytest.mark.parametrize("name", ["nlc-16", "a.b_c", "花", "हिन्दी", "Ёлка2", "_x", "0", "a" * 100])
def test_names_of_any_script(name):
    assert names.check(name) == name


UNNAMEABLE = ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "a:b", "a@1", "a\n", "a\0", "a*"]
UNNAMEABLE += ["\u0301a", "a" * 101, "花" * 70, "😀", "\u202eabc"]


@pytest.mark.parametrize("name", UNNAMEABLE)
def test_what_cannot_be_a_name(name):
    with pytest.raises(ValueError, match="name"):
        names.check(name)


def test_names_are_composed():
    """macOS decomposes what a keyboard composes: one name."""
    spelled = parse(Dataset, {"name": "cafe\u0301", "format": "folder"}, "here")
    assert spelled.name == "caf\u00e9"


def test_configs_cannot_change():
    campaign = parse(Campaign, GOOD, "here")
    with pytest.raises(ValueError, match="frozen"):
        campaign.seeds = 2


def test_a_backbone_has_one_origin():
    with pytest.raises(ConfigError, match="exactly one of `pretrained`"):
        parse(Backbone, {"name": "x", "architecture": "RN50"}, "here")


def test_splits_are_names_or_a_mapping():
    listed = parse(Dataset, {"name": "x", "format": "folder", "splits": ["test"]}, "here")
    mapped = parse(
        Dataset, {"name": "x", "format": "folder", "splits": {"train": "a", "test": "b"}}, "here"
    )
    assert listed.splits == {"test": "test"}
    assert mapped.splits == {"train": "a", "test": "b"}
    with pytest.raises(ConfigError, match="splits are 'test' and"):
        parse(Dataset, {"name": "x", "format": "folder", "splits": ["train"]}, "here")


def test_every_field_is_in_the_fingerprint():
    """Whatever is changed in a WHAT, its address changes; the order of keys does not matter."""
    base = parse(Dataset, {"name": "x", "format": "folder"}, "here")
    seen = {fingerprint(base)}
    for changes in (
        {"uri": "a"},
        {"format": "wds"},
        {"classnames": ("a",)},
        {"templates": ("{c}",)},
        {"options": {"a": 1}},
    ):
        seen.add(fingerprint(base.model_copy(update=changes)))
    assert len(seen) == 6
    assert fingerprint({"a": 1, "b": [2, 3]}) == fingerprint({"b": [2, 3], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in ("", "paper/", "pretrain/")
        for path in sorted(CONFIGS.glob(f"{folder}*.yaml"))
    ],
    ids=lambda path: path.name,
)
def test_shipped_configs_are_valid_and_open_with_their_command(path):
    text = path.read_text()
    assert text.startswith("#")
    if path.name == "backbones.yaml":
        return
    assert "python -m jobs." in text.split("\n\n")[0]
    kinds = {"fit": Fit, "cascade": Fit, "predict": Predict, "robustness": Robustness}
    kind = Pretrain if path.parent.name == "pretrain" else kinds.get(path.stem, Campaign)
    load(kind, path)
