"""MLflow's own client and file formats are the authority: everything is read back through them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from clipray import tracking
from clipray.config import Tracking
from clipray.tracking import Input, Metric, Record

mlflow = pytest.importorskip("mlflow")


def client(made: dict):
    return mlflow.MlflowClient(tracking_uri=made["tracking_uri"])


def records(tmp_path: Path, top1: float = 0.5) -> dict:
    scores = tmp_path / "scores.parquet"
    scores.write_bytes(b"some bytes")
    child = Record(
        params={"head": "zero_shot", "backbones": ["a", "b"]},
        metrics=[Metric("nlc/top1", top1, shots) for shots in (1, 4)]
        + [Metric("oracle/top1", math.nan)],
        inputs=[Input("digits", "0123abcd", str(tmp_path), "test", {"images": 360})],
        artifacts={"scores/digits.parquet": str(scores), "note.txt": b"hello"},
        tags={"device": "cpu"},
    )
    return {
        "parent": Record(params={"seeds": 5}),
        "children": {"digits": child, "shapes": Record()},
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An empty database, made once: MLflow's migrations take seconds."""
    place = tmp_path_factory.mktemp("empty")
    made = tracking.record("x", str(place), Tracking(), Record())
    mlflow.MlflowClient(tracking_uri=made["tracking_uri"]).delete_run(made["run_id"])
    return (place / tracking.DATABASE).read_bytes()


@pytest.fixture
def workspace(tmp_path, database):
    """A workspace whose tracking is an sqlite file of its own with an experiment of its own."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / tracking.DATABASE).write_bytes(database)
    return str(tmp_path / "work"), Tracking(experiment="mine")


def test_one_parent_and_a_child_per_dataset(tmp_path, workspace):
    made = tracking.record("first", *workspace, **records(tmp_path))
    assert made["experiment"] == "mine"
    assert made["written"]
    door = client(made)
    runs = door.search_runs([door.get_experiment_by_name("mine").experiment_id])
    parent = door.get_run(made["run_id"])
    assert parent.info.run_name == "first"
    assert parent.data.params == {"seeds": "5"}
    assert parent.info.status == "FINISHED"
    children = {
        run.info.run_name: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == made["run_id"]
    }
    assert set(children) == {"digits", "shapes"}
    assert len(runs) == 3
    digits = children["digits"]
    assert digits.data.params == {"head": "zero_shot", "backbones": '["a", "b"]'}
    assert digits.data.tags["device"] == "cpu"
    history = door.get_metric_history(digits.info.run_id, "nlc/top1")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (4, 0.5)]
    (used,) = digits.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source_type) == (
        "digits",
        "0123abcd",
        "local",
    )
    assert json.loads(used.dataset.source) == {"uri": str(tmp_path)}
    assert used.tags[0].value == "test"
    copy = Path(door.download_artifacts(digits.info.run_id, "scores/digits.parquet", str(tmp_path)))
    assert copy.read_bytes() == b"some bytes"
    assert digits.info.artifact_uri.startswith(Path(workspace[0]).as_uri())


def test_the_same_again_changes_nothing(tmp_path, workspace):
    first = tracking.record("first", *workspace, **records(tmp_path))
    before = Path(workspace[0], tracking.DATABASE).read_bytes()
    again = tracking.record("first", *workspace, **records(tmp_path))
    assert again == {**first, "written": False}
    assert Path(workspace[0], tracking.DATABASE).read_bytes() == before


def test_changed_results_continue_the_runs_and_repeat_no_point(tmp_path, workspace):
    first = tracking.record("first", *workspace, **records(tmp_path), status="RUNNING")
    assert client(first).get_run(first["run_id"]).info.status == "RUNNING"
    changed = records(tmp_path)
    more = [*changed["children"]["digits"].metrics, Metric("nlc/top1", 0.75, 16)]
    changed["children"]["digits"] = Record(changed["children"]["digits"].params, more)
    second = tracking.record("first", *workspace, **changed)
    assert second["run_id"] == first["run_id"]
    door = client(second)
    (digits,) = door.search_runs(
        [door.get_experiment_by_name("mine").experiment_id], "run_name = 'digits'"
    )
    history = door.get_metric_history(digits.info.run_id, "nlc/top1")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (4, 0.5), (16, 0.75)]
    assert len(door.get_metric_history(digits.info.run_id, "oracle/top1")) == 1
    assert len(digits.inputs.dataset_inputs) == 1
    assert digits.info.status == "FINISHED"


def test_changed_params_supersede_the_run(workspace):
    first = tracking.record("first", *workspace, Record({"seeds": 5}))
    second = tracking.record("first", *workspace, Record({"seeds": 6}))
    assert second["run_id"] != first["run_id"]
    old = client(first).get_run(first["run_id"])
    assert old.data.params == {"seeds": "5"}
    assert old.data.tags["clipray.superseded_by"] == second["run_id"]


def test_runs_deleted_by_hand_are_made_anew(workspace):
    first = tracking.record("first", *workspace, Record({"seeds": 5}))
    client(first).delete_run(first["run_id"])
    second = tracking.record("first", *workspace, Record({"seeds": 5}, [Metric("gain", 1.0)]))
    assert second["run_id"] != first["run_id"]
    assert client(second).get_run(second["run_id"]).data.metrics == {"gain": 1.0}


def test_many_and_long_values_arrive_whole(tmp_path, workspace):
    long = "x" * 7000
    params = {f"p{i}": i for i in range(250)} | {"long": long}
    made = tracking.record(
        "big", *workspace, Record(params, [Metric(f"m{i}", i) for i in range(2500)])
    )
    door = client(made)
    run = door.get_run(made["run_id"])
    assert len(run.data.params) == 251
    assert len(run.data.metrics) == 2500
    assert run.data.params["long"].startswith(
        "7000 characters, whole in the artifact params/long.txt"
    )
    assert (
        Path(door.download_artifacts(made["run_id"], "params/long.txt", str(tmp_path))).read_text()
        == long
    )


def test_two_metrics_of_one_name_are_refused(workspace):
    with pytest.raises(ValueError, match="two metrics are named a_b at step 0"):
        tracking.record(
            "first", *workspace, Record(metrics=[Metric("a@b", 1.0), Metric("a#b", 2.0)])
        )


def test_another_database_by_config(tmp_path, workspace):
    uri = f"sqlite:///{tmp_path}/other.db"
    (tmp_path / "other.db").write_bytes(Path(workspace[0], tracking.DATABASE).read_bytes())
    made = tracking.record("first", workspace[0], Tracking(uri=uri), Record({"seeds": 5}))
    assert made["tracking_uri"] == uri
    assert client(made).get_run(made["run_id"]).data.params == {"seeds": "5"}


def test_disabled_leaves_no_trace(tmp_path):
    made = tracking.record("first", str(tmp_path / "none"), Tracking(enabled=False), Record())
    assert made["run_id"] is None
    assert not (tmp_path / "none").exists()


def test_mlflow_says_nothing_even_on_a_new_database(tmp_path):
    code = (
        "from clipray import tracking; from clipray.config import Tracking; import sys, json;"
        "made = tracking.record('a', sys.argv[1], Tracking(), tracking.Record({'p': 1}));"
        "print(json.dumps(made))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert (
        json.loads(done.stdout)["open"]
        == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    )


def test_a_workspace_at_s3(tmp_path, database, monkeypatch):
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="work/mlflow.db", Body=database)
        scores = Record({"seeds": 5}, artifacts={"scores.parquet": b"some bytes"})
        made = tracking.record("first", "s3://bucket/work", Tracking(experiment="mine"), scores)
        assert made["tracking_uri"] == "s3://bucket/work/mlflow.db"
        assert not tracking.record(
            "first", "s3://bucket/work", Tracking(experiment="mine"), scores
        )["written"]
        s3.download_file("bucket", "work/mlflow.db", str(tmp_path / "copy.db"))
        run = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/copy.db").get_run(
            made["run_id"]
        )
        assert run.data.params == {"seeds": "5"}
        key = run.info.artifact_uri.removeprefix("s3://bucket/") + "/scores.parquet"
        assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == b"some bytes"
    finally:
        server.stop()
