"""Perturbed copies are parts of their own: what is asked for, what their addresses hold, what the worker gives."""

import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from clipray import images
from clipray.config import parse
from clipray.config.robustness import Robustness
from clipray.encoding import column
from clipray.errors import ConfigError
from clipray.perturbations import PERTURBATIONS, perturb
from clipray.sources import parquet
from clipray.steps import campaign as steps
from clipray.steps.embed.variants import decode_variants
from clipray.steps.robustness import plan
from tests.sources.made import bytes_read, picture


@pytest.fixture
def given(tmp_path):
    """Makes a campaign over a folder of nine images of 24 to 40 pixels, one of them broken, and its plan."""
    generator = np.random.default_rng(0)
    for label in ("ant", "bee", "cow"):
        folder = tmp_path / "zoo" / "test" / label
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = generator.integers(0, 256, (24 + i * 8, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    (tmp_path / "zoo" / "test" / "cow" / "2.png").write_bytes(b"no image")
    (tmp_path / "zoo" / "classnames.txt").write_text("ant\nbee\ncow\n")
    (tmp_path / "zoo" / "zeroshot_classification_templates.txt").write_text("a {c}\n")

    def make(**changes):
        values = {
            "workspace": str(tmp_path / "workspace"),
            "data_root": str(tmp_path),
            "datasets": ["zoo"],
            "backbones": ["vit-p6-36", "rn-32"],
            "precision": "fp32",
            "shots": [],
            "perturbations": ["rotation", "invert"],
            "severities": [1, 5],
            "tracking": {"enabled": False},
        }
        campaign = parse(Robustness, values | changes, "test")
        return steps.plan(campaign), campaign

    return make


def test_parts_are_what_is_asked_for(given):
    todo, campaign = given()
    parts = plan.plan(todo, campaign)
    said = [(part.dataset, part.perturbation, part.severity) for part in parts]
    assert said == [("zoo", "rotation", 1), ("zoo", "rotation", 5), ("zoo", "invert", 1)]
    places = [place for part in parts for place in part.work.addresses.values()]
    assert len(set(places)) == len(places) == 6
    assert not set(places) & set(todo.works["zoo", "test"].addresses.values())
    few = plan.plan(*given(sample=4))
    assert [len(part.work.index) for part in few] == [4, 4, 4]
    ids = set(parts[0].work.index.table(todo.store)["image_id"].to_pylist())
    assert set(few[0].work.index.table(todo.store)["image_id"].to_pylist()) < ids


def test_an_address_knows_its_perturbation_and_not_the_others(given, monkeypatch):
    before = [part.work.addresses for part in plan.plan(*given())]
    entry = PERTURBATIONS["rotation"]
    stronger = entry._replace(levels=(*entry.levels[:4], 60))
    monkeypatch.setitem(PERTURBATIONS, "rotation", stronger)
    monkeypatch.setitem(PERTURBATIONS, "new", entry)
    after = [part.work.addresses for part in plan.plan(*given())]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_an_unknown_perturbation_is_told_with_the_nearest():
    values = {"workspace": "w", "datasets": ["digits"], "backbones": ["shipped"]}
    campaign = parse(Robustness, values | {"perturbations": ["jpeg", "rotate"]}, "test")
    with pytest.raises(ConfigError, match=r"perturbations\.1.*rotat"):
        plan.check(campaign)
    for wrong in ({"severities": [0]}, {"severities": [6]}, {"severities": []}, {"sample": -1}):
        with pytest.raises(ConfigError):
            parse(Robustness, values | wrong, "test")


def test_a_worker_decodes_once_and_crops_every_variant(given, monkeypatch):
    todo, campaign = given()
    parts = plan.plan(todo, campaign)
    (row,) = plan.items(parts)
    groups = {"vit-p6-36": images.Preprocess((36, 36)), "rn-32": images.Preprocess((32, 32))}
    decoded = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda *a: decoded.append(1) or real(*a))
    table = pa.table({"task": pa.array([row["task"]], pa.large_binary())})
    found = list(decode_variants(table, todo.store, groups, 10**6))
    assert len(decoded) == 9, "each file once, for three variants and two backbones"
    table = parts[0].work.index.table(todo.store)
    assert len(found) == 3
    for made, (name, severity) in zip(
        found, [("rotation", 1), ("rotation", 5), ("invert", 1)], strict=True
    ):
        task = pickle.loads(made["task"][0].as_py())
        assert task["part"] == ("zoo", name, severity)
        errors = task["rows"]["error"].to_pylist()
        assert sum(error is not None for error in errors) == 1
        for backbone, group in groups.items():
            data = made[column(group)][0].as_py()
            crops = np.frombuffer(data, np.uint8).reshape(-1, *group.size, 3)
            assert len(crops) == 8, backbone
            good = [i for i, error in enumerate(errors) if error is None]
            key = table["key"][good[3]].as_py()
            image_id = table["image_id"][good[3]].as_py()
            with Image.open(f"{campaign.data_root}/zoo/test/{key}") as image:
                copy = perturb(np.array(image), image_id, name, severity)
            assert (crops[3] == images.crop(Image.fromarray(copy), group)).all()


@pytest.fixture
def many(given, tmp_path):
    """A plan over 500 images of 20 kB in one row group, one of them broken, and their bytes."""
    cells = [picture(number) + bytes(20_000) for number in range(500)]
    cells[70] = b"no image"
    table = pa.table({"image": cells, "label": [number % 2 for number in range(500)]})
    pq.write_table(table, tmp_path / "test.parquet", compression="none", use_dictionary=False)
    entry = {"name": "many", "format": "parquet", "uri": str(tmp_path), "splits": ["test"]}
    entry |= {"classnames": ["a", "b"], "templates": ["a {c}"]}
    (tmp_path / "many.yaml").write_text(yaml.safe_dump(entry))
    return *given(datasets=[str(tmp_path / "many.yaml")]), sum(map(len, cells))


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no /proc/self/io")
def test_a_row_group_is_read_once_for_all_its_shards_and_variants(many, monkeypatch):
    todo, campaign, size = many
    parts = plan.plan(todo, campaign)
    shards = [shard.name for shard in parts[0].work.shards()]
    assert len(shards) > 1
    # of the first shard only one variant is left to do, as after a run that was stopped
    for part in parts[1:]:
        for address in part.work.addresses.values():
            todo.store.write(f"{address}/{shards[0]}", b"")
    parts = plan.plan(todo, campaign)
    groups = {name: images.Preprocess((8, 8)) for name in ("vit-p6-36", "rn-32")}
    made, before = [], bytes_read()
    for row in plan.items(parts):
        monkeypatch.setattr(parquet, "_kept", {})  # each row may go to a worker of its own
        table = pa.table({"task": pa.array([row["task"]], pa.large_binary())})
        made += decode_variants(table, todo.store, groups, 10**6)
    assert bytes_read() - before <= 1.1 * size
    tasks = [pickle.loads(one["task"][0].as_py()) for one in made]
    wanted = [(shards[0], parts[0].name)]
    wanted += [(shard, part.name) for shard in shards[1:] for part in parts]
    assert [(task["shard"], task["part"]) for task in tasks] == wanted
    ids = parts[0].work.index.table(todo.store, ["image_id"])["image_id"].to_pylist()
    rows = pa.concat_tables(task["rows"] for task in tasks if task["part"] == parts[0].name)
    assert rows["image_id"].to_pylist() == ids
    assert [row for row, error in enumerate(rows["error"].to_pylist()) if error] == [70]


def test_no_worker_makes_too_many_copies_of_a_row_group_alone(many, monkeypatch):
    todo, campaign, _ = many
    parts = plan.plan(todo, campaign)
    assert len(list(plan.items(parts))) == 1
    assert (
        list(
            plan.items(
                [replace(part, work=part.work.without(("vit-p6-36", "rn-32"))) for part in parts]
            )
        )
        == []
    )
    shard = next(parts[0].work.shards()).rows
    for shards in (1, 3):
        monkeypatch.setattr(plan, "COPIES", shards * shard * len(parts))
        assert len(list(plan.items(parts))) == -(-500 // (shards * shard))


def copies(root, labels=("ant", "bee", "cow")):
    """Corrupted copies as ImageNet-C lays them out."""
    for corruption in ("fog", "snow"):
        for severity in (1, 2):
            for label in labels:
                folder = root / corruption / str(severity) / label
                folder.mkdir(parents=True)
                Image.new("RGB", (20, 20), (severity, len(label), 9)).save(folder / "a.png")
    (root / "README.txt").write_text("made by someone")


def test_copies_that_are_there_are_parts_too(given, tmp_path):
    copies(tmp_path / "zoo-c")
    todo, campaign = given(copies={"zoo": "zoo-c"})
    parts = plan.plan(todo, campaign)[3:]
    said = [(part.perturbation, part.severity, part.variant) for part in parts]
    assert said == [
        ("given-fog", 1, ("none", 0)),
        ("given-fog", 2, ("none", 0)),
        ("given-snow", 1, ("none", 0)),
        ("given-snow", 2, ("none", 0)),
    ]
    for part in parts:
        rows = part.work.index.table(todo.store)
        assert rows["label"].to_pylist() == [0, 1, 2]
        assert rows["key"].to_pylist() == ["ant/a.png", "bee/a.png", "cow/a.png"]


def test_copies_that_lack_a_class_or_are_laid_out_otherwise_are_refused(given, tmp_path):
    copies(tmp_path / "few", ("ant", "cow"))
    with pytest.raises(ConfigError, match=r"zoo has 3 classes, but .*fog/1 has 2 class folders"):
        plan.plan(*given(copies={"zoo": "few"}))
    with pytest.raises(ConfigError, match=r"holds no folders <corruption>/<severity>"):
        plan.plan(*given(copies={"zoo": "zoo"}))
    with pytest.raises(ConfigError, match=r"copies: .*zo"):
        plan.plan(*given(copies={"zo": "few"}))
