"""What a campaign may name: shipped entries, files, folders, patterns, groups; and what it is told otherwise."""

import json

import pytest
import yaml

from clipray import catalog, sources
from clipray.backbones import local_path
from clipray.config import CONFIGS
from clipray.errors import ConfigError
from tests.sources.made import MAKERS, make_folder, make_parquet, make_wds

PAPER = (
    "vtab-caltech101 cars vtab-cifar10 vtab-cifar100 vtab-clevr_count_all country211 cub vtab-dtd vtab-eurosat"
    " fgvc_aircraft vtab-flowers food101 gtsrb imagenet1k mnist vtab-pcam vtab-pets renderedsst2 vtab-resisc45 stl10"
    " sun397"
)


def test_every_shipped_dataset_reads_and_opens_with_a_comment():
    names = catalog.dataset_names()
    found = catalog.datasets(names)
    assert [dataset.name for dataset in found] == names
    assert all(path.read_text().startswith("# ") for path in (CONFIGS / "datasets").glob("*.yaml"))
    assert set(PAPER.split()) <= set(names)
    drawn = [dataset for dataset in found if dataset.format in ("drawn", "sklearn")]
    assert len(drawn) >= 6
    for dataset in drawn:
        assert sources.templates(dataset, "")
        for split in dataset.splits:
            assert 300 <= sum(chunk.count for chunk in sources.listing(dataset, split, "")) <= 600


def test_every_backbone_is_one_that_open_clip_knows_with_the_tags_own_activation():
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    names, groups = catalog.backbone_names()
    assert len(groups["shipped"]) == 5
    assert len(groups["openai"]) == 9
    for backbone in catalog.backbones(names):
        if backbone.pretrained:
            tag = get_pretrained_cfg(backbone.architecture, backbone.pretrained)
            assert tag, backbone
            config = open_clip.get_model_config(backbone.architecture)
            assert config.get("quick_gelu", False) == tag.get("quick_gelu", False), backbone
        else:
            assert json.loads(local_path(backbone.config).read_text())["embed_dim"]


def test_groups_stand_for_their_members_each_once():
    names = [
        backbone.name
        for backbone in catalog.backbones(["rn-48", "shipped", "openai-rn50", "rn-48"])
    ]
    assert names == ["rn-48", "rn-32", "vit-p8-40", "vit-p6-36", "convnext-48", "openai-rn50"]


def test_unknown_names_are_answered_with_close_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'vit-p8-04' is unknown. Did you mean vit-p8-40"):
        catalog.backbones(["vit-p8-04"])
    with pytest.raises(ConfigError, match=r"'texture' is unknown. Did you mean textures"):
        catalog.datasets(["texture"])
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"holds no train/test split in a known layout \(there is: images\)"
    ):
        catalog.datasets(["set"], str(tmp_path))
    with pytest.raises(ConfigError, match="no folder that fits"):
        catalog.datasets(["none/*"], str(tmp_path))


@pytest.mark.parametrize("layout", MAKERS)
def test_a_folder_is_recognised_by_its_files(tmp_path, layout):
    MAKERS[layout](tmp_path / "my sets" / "one two")
    (dataset,) = catalog.datasets(["my sets/one two"], str(tmp_path))
    assert (dataset.name, dataset.format, dataset.uri) == ("one-two", layout, "my sets/one two")
    assert dataset.splits == {"train": "train", "test": "test"}
    assert sources.listing(dataset, "test", str(tmp_path))
    (same,) = catalog.datasets([str(tmp_path / "my sets" / "one two")])
    assert sources.listing(same, "test", "")


def test_a_folder_has_the_splits_that_are_there(tmp_path):
    make_folder(tmp_path / "a")
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "val")
    assert catalog.detect("a", str(tmp_path)).splits == {"train": "train", "test": "val"}
    make_parquet(tmp_path / "b")
    (tmp_path / "b" / "train-00000-of-00001.parquet").unlink()
    assert catalog.detect("b", str(tmp_path)).splits == {"test": "test"}
    make_wds(tmp_path / "c" / "data")
    assert catalog.detect("c", str(tmp_path)) is None
    assert catalog.detect("nowhere", str(tmp_path)) is None


def test_patterns_name_many_folders_in_sorted_order(tmp_path):
    for layout, make in MAKERS.items():
        make(tmp_path / "sets" / layout)
    (tmp_path / "sets" / "notes").mkdir()
    found = catalog.datasets(["sets/*"], str(tmp_path))
    assert [(dataset.name, dataset.uri) for dataset in found] == [
        (n, f"sets/{n}") for n in ("folder", "parquet", "wds")
    ]
    assert [d.uri for d in catalog.datasets(["*/[fw]*"], str(tmp_path))] == [
        "sets/folder",
        "sets/wds",
    ]
    assert [d.uri for d in catalog.datasets([f"{tmp_path}/sets/w*"])] == [f"{tmp_path}/sets/wds"]
    assert catalog.datasets(["sets/wds", "sets/*", "sets/wds"], str(tmp_path))[0].name == "wds"


def test_two_sets_of_one_name_are_refused(tmp_path):
    make_folder(tmp_path / "a" / "cars")
    with pytest.raises(ConfigError, match=r"two datasets are named 'cars' \(wds/cars and a/cars\)"):
        catalog.datasets(["cars", "a/cars"], str(tmp_path))


def test_a_yaml_file_is_named_by_its_path(tmp_path, monkeypatch):
    entry = {
        "name": "mine",
        "format": "folder",
        "uri": "pictures",
        "splits": {"test": "validation"},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(entry))
    for text, root in ((str(tmp_path / "mine.yaml"), ""), ("mine.yaml", str(tmp_path))):
        (dataset,) = catalog.datasets([text], root)
        assert dataset.splits == {"test": "validation"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(entry | {"url": "x"}))
    with pytest.raises(ConfigError, match=r"url: .*\n.*known keys: name, format, uri, splits"):
        catalog.datasets([str(tmp_path / "mine.yaml")])
    with pytest.raises(ConfigError, match="cannot read"):
        catalog.datasets(["nowhere.yaml"], str(tmp_path))
