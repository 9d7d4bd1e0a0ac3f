"""The report on a campaign's data: counts that were written, faults that were planted, and the jobs that print it."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from clipray import catalog
from clipray.config import Campaign
from clipray.steps.index.validate import rows, validate
from tests.sources.made import MAKERS, make_folder, make_wds, picture, write_tar

TEMPLATES = "zeroshot_classification_templates.txt"


def campaign(root, datasets, **more) -> Campaign:
    fixed = {"backbones": ["shipped"], "precision": "fp32", "heads": ["zero_shot"], "seeds": 1}
    return Campaign(
        workspace=str(root / "ws"), data_root=str(root), datasets=datasets, **fixed, **more
    )


def report(root, datasets, sample=0, **more) -> dict:
    given = campaign(root, datasets, **more)
    (found,) = validate(given, catalog.datasets(given.datasets, given.data_root), sample)
    assert len(list(rows(found))) == max(1, len(found["splits"]))
    return found


@pytest.mark.parametrize("layout", MAKERS)
def test_counts_labels_and_repeats_are_those_written(tmp_path, layout):
    samples = MAKERS[layout](tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    found = report(tmp_path, ["set"])
    assert (found["classes"], found["templates"], found["errors"]) == (3, 1, [])
    test = found["splits"]["test"]
    assert (test["images"], test["read"], test["corrupt"]) == (len(samples), len(samples), 0)
    labels = [label for _, label in samples.values()]
    assert test["label_range"] == [min(labels), max(labels)]
    assert test["per_class"] == [min(map(labels.count, range(3))), max(map(labels.count, range(3)))]
    assert test["sizes"] == [9, 9]
    # the folder's two splits are different pictures; the other layouts were written with the same ones
    assert found["repeats"]["count"] == (0 if layout == "folder" else len(samples))
    assert any("stand in train and in test" in text for text in found["warnings"]) == (
        layout != "folder"
    )


def test_corrupt_files_are_named_and_too_many_make_a_set_unusable(tmp_path):
    make_folder(tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    (tmp_path / "set" / "test" / "ant" / "2.png").write_bytes(b"")
    (tmp_path / "set" / "train" / "ant" / "2.png").write_bytes(picture(9)[:60])
    found = report(tmp_path, ["set"], compute={"error_budget": 2})
    assert found["errors"] == []
    assert "test split: ant/2.png: zero bytes" in found["warnings"]
    assert any(text.startswith("train split: ant/2.png:") for text in found["warnings"])
    strict = report(tmp_path, ["set"], compute={"error_budget": 0.1})
    assert strict["errors"] == [
        f"{split} split: 1 of 7 images cannot be read" for split in ("test", "train")
    ]


def test_labels_beyond_the_class_names_make_a_set_unusable(tmp_path):
    make_wds(tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    (tmp_path / "set" / "classnames.txt").write_text("one\ntwo\n")
    found = report(tmp_path, ["set"])
    assert (
        "test split: labels from 0 to 2, but 2 class names (0 to 1). Correct the labels, or complete `classnames`."
        in found["errors"]
    )


def test_what_is_left_out_or_no_sample_is_counted_and_a_set_of_pointers_is_told(tmp_path):
    make_folder(tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    for name in ("Thumbs.db", "2.json", "10.json"):
        (tmp_path / "set" / "test" / "ant" / name).write_bytes(b"x")
    found = report(tmp_path, ["set"], sample=2)
    counts = {"*.json": 2, ".*": 1, "Thumbs.db": 1, "*.txt": 1}
    assert found["splits"]["test"]["left_out"] == counts
    text = "test split: left out as no image: 2 *.json, 1 *.txt, 1 .*, 1 Thumbs.db"
    assert text in found["warnings"]
    assert found["errors"] == []
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n"
    for path in (tmp_path / "set" / "test").rglob("*.*"):
        path.write_bytes(pointer)
    (tmp_path / "set" / "test" / "cat" / "z").write_bytes(pointer)
    (text,) = report(tmp_path, ["set"])["errors"]
    assert text.startswith(
        "test split: no image of 7 can be used: Bee/b [1]?.png: a Git LFS pointer"
    )


def test_names_of_the_folders_in_another_order_make_a_set_unusable_and_others_are_shown(tmp_path):
    make_folder(tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    (tmp_path / "set" / "classnames.txt").write_text("ant\nbee\ncat\n")
    assert "in another order: Bee = ant, ant = bee" in report(tmp_path, ["set"])["errors"][0]
    (tmp_path / "set" / "classnames.txt").write_text("wasp\nant\nlion\n")
    found = report(tmp_path, ["set"])
    assert found["errors"] == []
    assert any(text.endswith("Bee = wasp, cat = lion") for text in found["warnings"])


def test_missing_splits_classes_and_shots_are_warnings(tmp_path):
    make_folder(tmp_path / "set")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    words = "of 3 classes some have fewer images than shots, and give what they have: 3 at 4 shots"
    assert f"train split: {words}" in report(tmp_path, ["set"], shots=[1, 4])["warnings"]
    partly = report(tmp_path, ["set"], sample=2, shots=[1, 4])["warnings"]
    assert any("whether each class has 4 images" in text for text in partly)
    shutil.rmtree(tmp_path / "set" / "test" / "ant")
    assert "test split: 1 of 3 classes have no image" in report(tmp_path, ["set"])["warnings"]
    shutil.rmtree(tmp_path / "set" / "train")
    assert (
        "no train split: label-free methods only"
        in report(tmp_path, ["set"], shots=[1])["warnings"]
    )


def test_a_sample_is_spread_and_says_that_it_is_one(tmp_path):
    for shard in range(4):
        pairs = [
            (f"{n}.{end}", data)
            for n in range(9)
            for end, data in (("png", picture(9 * shard + n)), ("cls", b"0"))
        ]
        write_tar(tmp_path / "set" / "test" / f"{shard}.tar", pairs)
    (tmp_path / "set" / "classnames.txt").write_text("one\n")
    (tmp_path / "set" / TEMPLATES).write_text("a {c}\n")
    some = report(tmp_path, ["set"], sample=8)["splits"]["test"]
    assert (some["images"], some["read"], some["whole"]) == (None, 8, False)
    exact = report(tmp_path, ["set"], sample=500)["splits"]["test"]
    assert (exact["images"], exact["read"], exact["whole"]) == (36, 36, True)
    assert "there is no such folder" in report(tmp_path, ["cars"])["errors"][0]
    drawn = report(tmp_path, ["colours"], sample=50)["splits"]["test"]
    assert (drawn["images"], drawn["read"], drawn["corrupt"]) == (500, 50, 0)


def job(name, *given) -> tuple[int, dict | None, str]:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *given], capture_output=True, text=True
    )
    last = done.stdout.rstrip().rpartition("\n")[2]
    return done.returncode, json.loads(last) if last.startswith("{") else None, done.stderr


def test_the_jobs_end_with_one_json_line_and_a_code(tmp_path):
    make_folder(tmp_path / "good")
    (tmp_path / "good" / TEMPLATES).write_text("a {c}\n")
    make_folder(tmp_path / "bad")
    path = tmp_path / "campaign.yaml"
    path.write_text(yaml.safe_dump(campaign(tmp_path, ["good"]).model_dump(mode="json")))
    code, result, _ = job("validate", str(path))
    assert (code, result["usable"], result["unusable"]) == (0, 1, [])
    code, result, _ = job("validate", str(path), "--set", "datasets=[good, bad]", "--sample", "3")
    assert (code, result["unusable"]) == (2, ["bad"])
    code, result, said = job("validate", str(path), "--set", "datsets=[good]")
    assert (code, result) == (2, None)
    assert "datsets" in said
    assert "Traceback" not in said
    code, result, _ = job("ls", str(path))
    assert (code, [d["format"] for d in result["datasets"]], len(result["backbones"])) == (
        0,
        ["folder"],
        5,
    )
    code, result, _ = job("ls")
    assert (code, len(result["groups"]["openai"])) == (0, 9)
