"""A campaign of five datasets of which some are broken: the others are finished, and what failed is said."""

import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from clipray.config import CONFIGS
from clipray.store import Store

pytestmark = pytest.mark.usefixtures("local_ray")
GOOD = ["digits", "glyph-digits", "colours", "coloured-shapes"]
SHIPPED = ["vit-p6-36", "vit-p8-40"]


def call(monkeypatch, capsys, job: str, *arguments: str) -> tuple[int, dict | None, str]:
    """Run a job in this process: its exit code, the JSON of its last line, what it said."""
    monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return left.value.code or 0, json.loads(out.splitlines()[-1]) if out else None, err


def config(root, **changes) -> str:
    values = {"name": "five", "workspace": str(root / "work"), "data_root": str(root)}
    values |= {"datasets": GOOD, "backbones": SHIPPED, "precision": "fp32", "limit": 40}
    values |= {"fusers": ["log_avg", "c_log_avg"], "shots": [1], "seeds": 1}
    values |= {"tracking": {"enabled": False}}
    (root / "five.yaml").write_text(yaml.safe_dump(values | changes))
    return str(root / "five.yaml")


def folder(root, corrupt: int) -> None:
    """Twelve images a split, of two classes; some of the test split are none."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number in range(12):
            place = root / split / ("cat", "dog")[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(place)
            if split == "test" and number < corrupt:
                place.write_bytes(b"no image")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}")


def nan_backbone(root, key: str, name: str) -> str:
    """A shipped backbone, one of its tensors not finite; its YAML file."""
    made = CONFIGS / "backbones" / "rn-32"
    tensors = load_file(made / "model.safetensors")
    (own,) = [each for each in tensors if each.endswith(key)]
    tensors[own] = tensors[own] * float("nan")
    save_file(tensors, root / f"{name}.safetensors")
    entry = {"name": name, "architecture": "clipray-rn-32"}
    entry |= {"weights": str(root / f"{name}.safetensors")}
    entry |= {"config": str(made / "clipray-rn-32.json")}
    (root / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    return str(root / f"{name}.yaml")


def failed(result: dict) -> set[tuple]:
    return {(row["step"], row["dataset"], row["backbone"]) for row in result["failed"]}


def _places_of(err: str, backbone: str) -> set[str]:
    """Where a job says that a backbone failed; splits of other sizes have other numbers, and a line of their own."""
    lines = re.findall(rf"failed  {backbone} on (.*?): ", err)
    return {place for line in lines for place in line.split(", ")}


def test_three_broken_backbones_and_one_broken_dataset_of_five(monkeypatch, capsys, tmp_path):
    folder(tmp_path / "torn", corrupt=6)
    blind = nan_backbone(tmp_path, "visual.layer4.0.downsample.1.weight", "blind")
    mute = nan_backbone(tmp_path, "text_projection", "mute")
    gone = nan_backbone(tmp_path, "text_projection", "gone")
    (tmp_path / "gone.safetensors").write_bytes(b"no weights")
    five = config(tmp_path, datasets=[*GOOD, "torn"], backbones=[*SHIPPED, blind, mute, gone])
    wanted = {("load", None, "gone"), ("read", "torn", None)}
    wanted |= {("text", dataset, "mute") for dataset in [*GOOD, "torn"]}
    wanted |= {("embed", dataset, "blind") for dataset in [*GOOD, "torn"]}

    # jobs.evaluate neither embeds nor tries again: what the run could not embed is known by then
    told = None
    for job in ("run", "evaluate"):
        before = told
        code, told, err = call(monkeypatch, capsys, job, five)
        assert code == 3, err
        assert set(told["outcomes"]) == set(GOOD)
        assert failed(told) == wanted
        assert "failed  torn/test: 6 of 12 images cannot be read, more than the error budget" in err
        assert "mute on digits, glyph-digits, colours, coloured-shapes, torn: " in err
        assert "failed  gone on every dataset: it cannot be loaded: " in err
        assert {f"digits/{split}" for split in ("train", "test")} <= _places_of(err, "blind")
        assert before is None or before["outcomes"] == told["outcomes"]
    scores = Store(told["workspace"]).read_table("reports/five/scores.parquet").to_pandas()
    single = {name for name in scores["method"] if name.startswith("single/")}
    assert single == {f"single/{name}" for name in SHIPPED}


def test_datasets_whose_evaluation_raises(monkeypatch, capsys, tmp_path):
    five = config(tmp_path, backbones=["vit-p6-36"], datasets=GOOD[:3])
    assert call(monkeypatch, capsys, "embed", five)[0] == 0
    shards = {}
    for name in GOOD[:2]:
        (place,) = (tmp_path / "work/embeddings" / name / "test").iterdir()
        (shards[name],) = place.glob("*.parquet")
    torn, lost = (shards[name] for name in GOOD[:2])
    torn.write_bytes(torn.read_bytes()[:1000])
    lost.unlink()

    for job in ("evaluate", "run"):
        code, told, err = call(monkeypatch, capsys, job, five)
        assert (code, set(told["outcomes"])) == (3, {"colours"})
        assert failed(told) == {("evaluate", name, None) for name in GOOD[:2]}
        for row in told["failed"]:
            shard = shards[row["dataset"]]
            assert f"{shard} is not " in row["error"]
            assert f"remove the folder {shard.parent}, and run again" in row["error"]
            assert f"failed  {row['dataset']}: {row['error']}" in err

    for shard in shards.values():  # the remedy is one
        shutil.rmtree(shard.parent)
    code, told, _ = call(monkeypatch, capsys, "run", five)
    assert (code, told["failed"], set(told["outcomes"])) == (0, [], set(GOOD[:3]))


def test_where_all_fails_the_last_line_still_says_what(monkeypatch, capsys, tmp_path):
    mute = nan_backbone(tmp_path, "text_projection", "mute")
    code, told, err = call(
        monkeypatch, capsys, "run", config(tmp_path, datasets=["digits"], backbones=[mute])
    )
    assert code == 3
    assert told["outcomes"] == {}
    assert failed(told) == {("text", "digits", "mute"), ("embed", "digits", None)}
    assert "error: no dataset could be evaluated.\n  mute on digits: the embeddings of its" in err
    # nobody would have looked at its images
    assert not list((tmp_path / "work").glob("embeddings/**/*.parquet"))
