"""A campaign in MLflow's own eyes, when MLflow is not there, and after its workspace has moved."""

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import yaml

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("local_ray")
SECRET = "s3cr3t-pass"


def finish(small) -> dict:
    from clipray.steps import campaign as run
    from clipray.steps import evaluations
    from clipray.steps.publish import publish

    todo = run.plan(small)
    run.prepare(todo)
    run.embed_images(todo)
    return publish.publish(todo, evaluations.evaluate_datasets(todo))


def track(monkeypatch, capsys, *arguments: str) -> tuple[int, dict]:
    monkeypatch.setattr(sys, "argv", ["jobs.track", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("jobs.track", run_name="__main__")
    out = capsys.readouterr().out
    return left.value.code or 0, json.loads(out.splitlines()[-1]) if out else {}


def test_a_campaign_without_its_server(campaign, tmp_path, monkeypatch, capsys):
    changes = {"limit": 40, "backbones": ["vit-p6-36", "vit-p8-40"]}
    gone = {"uri": f"http://me:{SECRET}@127.0.0.1:9", "experiment": "mine"}
    result = finish(campaign(**changes, tracking=gone))
    for key in ("scores", "report", "markdown"):
        assert Path(result[key]).stat().st_size > 0
    assert "connection refused" in result["mlflow"]["error"]
    assert "jobs.track" in result["mlflow"]["send"]
    work = tmp_path / "workspace"
    written = b"".join(path.read_bytes() for path in work.rglob("*") if path.is_file())
    assert SECRET not in f"{result}{written}"

    # what was kept is sent without the config, the data or Ray, also from another place
    moved = tmp_path / "moved"
    work.rename(moved)
    assert track(monkeypatch, capsys, str(moved), "other")[0] == 2
    assert track(monkeypatch, capsys, str(moved), "small")[0] == 2  # the secret is missing
    uri = "tracking.uri=http://127.0.0.1:9"
    code, told = track(monkeypatch, capsys, str(moved), "--set", uri)
    assert (code, told["records"][0]["name"]) == (4, "small")
    code, told = track(monkeypatch, capsys, str(moved), "small", "--set", "tracking.uri=")
    assert code == 0
    (sent,) = told["records"]
    door = mlflow.MlflowClient(tracking_uri=f"sqlite:///{moved}/mlflow.db")
    check_runs(door, sent["run_id"])
    assert not work.exists()

    # the same campaign in the moved workspace has nothing to do, and says where things are now
    there = campaign(**changes, workspace=str(moved), tracking={"experiment": "mine"})
    again = finish(there)
    assert (again["changed"], again["mlflow"]["run_id"]) == (False, sent["run_id"])
    assert str(work) not in json.dumps(again)
    assert os.path.isfile(again["report"])


def check_runs(door, run_id: str) -> None:
    parent = door.get_run(run_id)
    experiment = parent.info.experiment_id
    runs = {run.info.run_name: run for run in door.search_runs([experiment])}
    kinds = {name: run.data.tags["clipray.kind"] for name, run in runs.items()}
    assert kinds["small"] == "campaign"
    assert kinds["digits"] == "dataset"
    assert kinds["zero_shot:log_avg"] == "method"
    tags = parent.data.tags
    assert "| method |" in tags["mlflow.note.content"]
    assert tags["mlflow.source.name"] == "python -m jobs.run"
    assert parent.info.start_time < parent.info.end_time
    fused = runs[
        "zero_shot:c_log_avg@1" if "zero_shot:c_log_avg@1" in runs else "zero_shot:log_avg"
    ]
    assert fused.data.metrics["top1"] == fused.data.metrics["top1/digits"]
    assert {"nll", "ece_width"} <= set(fused.data.metrics)
    assert fused.data.params["method"] in ("log_avg", "c_log_avg")
    digits = runs["digits"].data.metrics
    assert "oracle_top1" in digits
    assert "complementarity" in digits
    assert not [name for name in digits if "pair" in name]
    place = door.download_artifacts(run_id, "config.yaml")
    assert yaml.safe_load(Path(place).read_text())["backbones"] == ["vit-p6-36", "vit-p8-40"]
