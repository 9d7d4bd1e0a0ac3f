"""Configs are strict, and their errors say what to change."""

from pathlib import Path

import pytest
import yaml

from clipray.config import CONFIGS, Backbone, Campaign, Dataset, Pretrain, fingerprint, load, parse
from clipray.errors import ConfigError

GOOD = {
    "workspace": "w",
    "datasets": ["digits"],
    "backbones": ["shipped"],
    "precision": "fp32",
    "heads": ["zero_shot"],
    "seeds": 1,
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
    assert campaign.compute.pools["rn-32"].size == 2


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["computee=1"], ["computee", "known keys: name, workspace, data_root"]),
        (["compute.batchsize=1"], ["compute.batchsize", "known keys: address, batch_size"]),
        (["seeds=none"], ["seeds", "valid integer"]),
        (["seeds=0"], ["seeds", "greater than or equal to 1"]),
        (["precision=fp8"], ["precision", "'fp32', 'fp16' or 'bf16'"]),
        (["datasets=[]"], ["datasets", "at least 1 item"]),
        (["workspace"], ["--set workspace: write it as key.subkey=value"]),
        (["datasets='[digits"], ["--set datasets='[digits: '[digits is not YAML"]),
        (["workspace.deep=1"], ["workspace holds a value, not keys"]),
    ],
)
def test_what_is_wrong_is_named_by_its_dotted_path(tmp_path, sets, words):
    with pytest.raises(ConfigError) as error:
        load(Campaign, written(tmp_path / "c.yaml", GOOD), sets)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_key_and_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"precision: Field required"):
        parse(Campaign, {k: v for k, v in GOOD.items() if k != "precision"}, "here")
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.yaml"):
        load(Campaign, tmp_path / "nowhere.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold `key: value` lines"):
        load(Campaign, tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(Campaign, tmp_path / "broken.yaml")


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
    sorted(CONFIGS.glob("*.yaml")) + sorted(CONFIGS.glob("pretrain/*.yaml")),
    ids=lambda path: path.name,
)
def test_shipped_configs_are_valid_and_open_with_their_command(path):
    text = path.read_text()
    assert text.startswith("#")
    if path.name == "backbones.yaml":
        return
    assert "python -m jobs." in text.split("\n\n")[0]
    load(Pretrain if path.parent.name == "pretrain" else Campaign, path)
