"""MLflow's own client and file formats are the authority: everything is read back through them."""

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from clipray import tracking
from clipray.config import Tracking, names
from clipray.errors import ConfigError
from clipray.store import Store
from clipray.tracking import Input, Metric, Record, runs
from tests.s3 import served

mlflow = pytest.importorskip("mlflow")


def client(made: dict):
    return mlflow.MlflowClient(tracking_uri=made["tracking_uri"])


def children(made: dict) -> dict:
    """By name, the runs below a campaign's run."""
    door = client(made)
    experiment = door.get_experiment_by_name(made["experiment"]).experiment_id
    wanted = f"tags.`mlflow.parentRunId` = '{made['run_id']}'"
    return {run.info.run_name: run for run in door.search_runs([experiment], wanted)}


def records(tmp_path: Path, top1: float = 0.5) -> dict:
    scores = tmp_path / "scores.parquet"
    scores.write_bytes(b"some bytes")
    child = Record(
        params={"head": "zero_shot", "backbones": ["a", "b"]},
        metrics=[Metric("nlc/top1", top1, shots) for shots in (1, 4)]
        + [Metric("oracle/top1", math.nan), Metric("none", None)],
        inputs=[Input("digits", "0123abcd", str(tmp_path), "test", {"images": 360})],
        artifacts={"scores/digits.parquet": str(scores), "note.txt": b"hello"},
        tags={"device": "cpu"},
        note="# Digits",
        started=1_000_000_000.0,
        ended=1_000_000_100.0,
    )
    return {
        "parent": Record(params={"seeds": 5}),
        "children": {"digits": child, "shapes": Record(status="FAILED")},
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
    assert "error" not in made
    door = client(made)
    experiment = door.get_experiment_by_name("mine")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert len(door.search_runs([experiment.experiment_id])) == 3
    parent = door.get_run(made["run_id"])
    assert parent.info.run_name == "first"
    assert parent.data.params == {"seeds": "5"}
    assert parent.info.status == "FINISHED"
    below = children(made)
    assert set(below) == {"digits", "shapes"}
    assert below["shapes"].info.status == "FAILED"
    digits = below["digits"]
    assert digits.data.params == {"head": "zero_shot", "backbones": '["a", "b"]'}
    assert digits.data.tags["device"] == "cpu"
    assert digits.data.tags["mlflow.note.content"] == "# Digits"
    assert (digits.info.start_time, digits.info.end_time) == (10**12, 10**12 + 100_000)
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


def test_changed_results_continue_the_runs_and_repeat_no_point(tmp_path, workspace, monkeypatch):
    first = tracking.record("first", *workspace, **records(tmp_path))
    changed = records(tmp_path)
    more = [*changed["children"]["digits"].metrics, Metric("nlc/top1", 0.75, 16)]
    inputs = changed["children"]["digits"].inputs
    changed["children"]["digits"] = Record(changed["children"]["digits"].params, more, inputs)
    with monkeypatch.context() as patch:  # it would be one call for each name
        patch.delattr(mlflow.MlflowClient, "get_metric_history")
        second = tracking.record("first", *workspace, **changed)
    assert second["run_id"] == first["run_id"]
    door, digits = client(second), children(second)["digits"]
    history = door.get_metric_history(digits.info.run_id, "nlc/top1")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (4, 0.5), (16, 0.75)]
    assert len(door.get_metric_history(digits.info.run_id, "oracle/top1")) == 1
    assert len(digits.inputs.dataset_inputs) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Record({"seeds": 5}), Record({"seeds": 6})),
        (Record(metrics=[Metric("a", 1.0), Metric("b", 1.0)]), Record(metrics=[Metric("a", 1.0)])),
    ],
    ids=["another param", "a metric that is gone"],
)
def test_what_mlflow_cannot_change_supersedes_the_run(workspace, before, after):
    first = tracking.record("first", *workspace, before, {"kid": Record({"a": 1})})
    second = tracking.record("first", *workspace, after, {"kid": Record({"a": 1})})
    assert second["run_id"] != first["run_id"]
    old, new = (client(first).get_run(made["run_id"]) for made in (first, second))
    assert old.data.tags["clipray.superseded_by"] == second["run_id"]
    assert set(new.data.metrics) == {metric.name for metric in after.metrics}
    assert set(children(second)) == {"kid"}


def test_a_run_that_is_no_longer_stated_says_so(workspace):
    first = tracking.record("first", *workspace, Record(), {"a": Record(), "b": Record()})
    second = tracking.record("first", *workspace, Record(), {"a": Record()})
    below = children(second)
    assert below["b"].data.tags["clipray.superseded_by"] == first["run_id"]
    assert "clipray.superseded_by" not in below["a"].data.tags


def test_runs_deleted_by_hand_are_made_anew_when_asked(workspace):
    given = Record({"seeds": 5}, [Metric("gain", 1.0)])
    first = tracking.record("first", *workspace, given, {"a": Record()})
    client(first).delete_run(first["run_id"])
    second = tracking.send("first", *workspace, verify=True)
    assert second["run_id"] != first["run_id"]
    assert client(second).get_run(second["run_id"]).data.metrics == {"gain": 1.0}
    assert set(children(second)) == {"a"}
    assert not tracking.send("first", *workspace, verify=True)["written"]


def test_a_database_that_was_left_behind_is_made_anew(tmp_path, workspace):
    first = tracking.record("first", *workspace, Record({"seeds": 5}))
    other = tmp_path / "other"
    shutil.copytree(workspace[0], other, ignore=shutil.ignore_patterns(tracking.DATABASE))
    second = tracking.record("first", str(other), workspace[1], Record({"seeds": 5}))
    assert second["written"]
    assert second["run_id"] != first["run_id"]


def test_many_and_long_values_arrive_whole(tmp_path, workspace):
    long = "x" * 7000
    params = {f"p{i}": i for i in range(250)} | {"long": long}
    note = "| a | line |\n" * 1000
    points = [Metric(f"m{i}", i) for i in range(2500)]
    made = tracking.record("big", *workspace, Record(params, points, note=note))
    door = client(made)
    run = door.get_run(made["run_id"])
    assert len(run.data.params) == 251
    assert len(run.data.metrics) == 2500
    assert run.data.params["long"].startswith(
        "7000 characters, whole in the artifact params/long.txt"
    )
    text = run.data.tags["mlflow.note.content"]
    assert 7000 < len(text) <= 8000
    assert text.startswith("| a | line |\n| a")
    assert text.endswith("line |\n\n… the whole is in the artifacts.")
    copy = door.download_artifacts(made["run_id"], "params/long.txt", str(tmp_path))
    assert Path(copy).read_text() == long


def test_two_metrics_of_one_name_are_told(workspace):
    given = Record(metrics=[Metric("a@b", 1.0), Metric("a#b", 2.0)])
    made = tracking.record("first", *workspace, given)
    assert "two metrics are named a_b at step 0" in made["error"]


@pytest.mark.parametrize("pair", [["a@b", "a#b"], ["cars", "Cars"], ["नि", "नी"]])
def test_names_that_mlflow_would_merge(pair):
    with pytest.raises(ConfigError, match="one name"):
        names.refuse_merged(pair, "datasets")


@pytest.mark.parametrize("name", ["x" * 240, "a//b", "../x", " "])
def test_names_that_mlflow_would_refuse(name):
    with pytest.raises(ValueError, match="name"):
        names.check(name)


def test_names_that_pass_are_kept_apart_by_mlflow(workspace):
    given = ["cars", "Bäume", "花", "a.b-c_d", "x" * 200, "a b", "ViT-B/32"]
    names.refuse_merged(given, "datasets")
    made = tracking.record("n", *workspace, Record(metrics=[Metric(f"top1/{n}", 1) for n in given]))
    assert len(client(made).get_run(made["run_id"]).data.metrics) == len(given)


def test_another_database_by_config_keeps_artifacts_beside_it(tmp_path, workspace):
    (tmp_path / "db").mkdir()
    uri = f"sqlite:///{tmp_path}/db/other.db"
    (tmp_path / "db" / "other.db").write_bytes(Path(workspace[0], tracking.DATABASE).read_bytes())
    given = Record({"seeds": 5}, artifacts={"a.txt": b"a"})
    made = tracking.record("first", workspace[0], Tracking(uri=uri, experiment="new"), given)
    assert made["tracking_uri"] == uri
    run = client(made).get_run(made["run_id"])
    assert run.data.params == {"seeds": "5"}
    assert run.info.artifact_uri.startswith((tmp_path / "db").as_uri())


def test_disabled_keeps_what_was_to_be_sent(tmp_path):
    work = str(tmp_path / "work")
    made = tracking.record("first", work, Tracking(enabled=False), Record({"seeds": 5}))
    assert made["run_id"] is None
    assert [path.name for path in Path(work).rglob("*") if path.is_file()] == ["record.json"]
    sent = tracking.send("first", work, Tracking())
    assert client(sent).get_run(sent["run_id"]).data.params == {"seeds": "5"}


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


@pytest.mark.parametrize("experiment", ["mine", "Default"])
@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_workspace_elsewhere_writes_below_itself(tmp_path, database, way, experiment):
    old, new = tmp_path / "old", tmp_path / "new place"
    old.mkdir()
    (old / tracking.DATABASE).write_bytes(database)
    (old / "a.txt").write_bytes(b"a")
    wanted = Tracking(experiment=experiment)

    def given(workspace: Path, **metrics: float) -> dict:
        points = [Metric(*item) for item in metrics.items()]
        return {"parent": Record({"p": 1}, points, artifacts={"a.txt": f"{workspace}/a.txt"})}

    first = tracking.record("c", str(old), wanted, **given(old, gain=1.0))
    if way == "moved":
        old.rename(new)
    else:
        shutil.copytree(old, new)
    left = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} if old.exists() else None
    again = tracking.record("c", str(new), wanted, **given(new, gain=1.0))
    assert (again["written"], again["run_id"]) == (False, first["run_id"])
    assert str(new) in again["tracking_uri"]
    door = client(again)
    assert Path(door.download_artifacts(first["run_id"], "a.txt")).read_bytes() == b"a"
    assert door.get_run(first["run_id"]).info.artifact_uri.startswith(new.as_uri())
    more = tracking.record("c", str(new), wanted, **given(new, gain=1.0, loss=2.0))
    assert (more["written"], more["run_id"]) == (True, first["run_id"])
    other = tracking.record("d", str(new), wanted, Record(artifacts={"b.txt": b"b"}))
    assert (new / "mlflow-artifacts" / other["run_id"] / "artifacts" / "b.txt").is_file()
    if way == "moved":
        assert not old.exists()
    else:
        assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == left


def test_two_processes_lose_nothing(tmp_path):
    """On a new workspace, so that they race for the database and the experiment too."""
    code = (
        "from clipray import tracking; from clipray.config import Tracking; import sys, json;"
        "R, M = tracking.Record, tracking.Metric;"
        "kids = {f'k{i}': R({'i': i}, [M('m', i)]) for i in range(30)};"
        "print(json.dumps(tracking.record(sys.argv[2], sys.argv[1], Tracking(), R({'p': 1}), kids)))"
    )
    names = ["one", "two", "same", "same"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    made = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert err == ""
        made.append(json.loads(out))
    assert all("error" not in one for one in made)
    assert made[2]["run_id"] == made[3]["run_id"]
    assert sum(one["written"] for one in made) == 3
    for one in made:
        assert set(children(one)) == {f"k{i}" for i in range(30)}
    assert len(client(made[0]).search_runs(["1"])) == 3 * 31


# -- what fails


def change_schema(file: Path, revision: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def older() -> str:
    folder = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return min(folder.glob("*.py")).name.partition("_")[0]


def broken(work: Path, how: str) -> str:
    """Make a workspace's database unusable; the tracking.uri to give."""
    file = work / tracking.DATABASE
    if how == "newer":
        change_schema(file, "ffffffffffff")
    elif how == "older":
        change_schema(file, older())
    elif how == "no database":
        file.write_bytes(b"no database at all" * 100)
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "below a file":
        (work / "file").write_text("")
        return f"sqlite:///{work}/file/x.db"
    elif how == "no server":
        return "http://me:s3cr3t-pass@127.0.0.1:9"
    elif how == "no postgres":
        return "postgresql://me:s3cr3t-pass@127.0.0.1:9/db"
    elif how == "no such host":
        return "http://no-such-host.invalid:5000"
    elif how == "unknown scheme":
        return "ftp://me:s3cr3t-pass@127.0.0.1/x"
    elif how == "a hidden secret":
        return "https://***@host"
    return ""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("newer", "newer than MLflow"),
        ("older", "mlflow db upgrade"),
        ("no database", "not a database"),
        ("a folder", "unable to open"),
        ("below a file", "tracking.enabled=false"),
        ("no server", "connection refused"),
        ("no postgres", "connection refused"),
        ("no such host", "no-such-host"),
        ("unknown scheme", "tracking.enabled=false"),
        ("a hidden secret", "MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_what_cannot_be_written_is_told_at_the_start_and_keeps_results_later(workspace, how, words):
    work = Path(workspace[0])
    uri = broken(work, how)
    environment = dict(os.environ)
    begun = time.monotonic()
    with pytest.raises(ConfigError) as told:
        tracking.check("c", str(work), Tracking(uri=uri))
    assert words in str(told.value)
    assert told.value.exit_code == 2
    made = tracking.record("c", str(work), Tracking(uri=uri), Record({"p": 1}))
    assert time.monotonic() - begun < 20
    assert os.environ == environment
    assert made["error"]
    assert made["send"].startswith(f"python -m jobs.track {work} c")
    written = b"".join(p.read_bytes() for p in work.rglob("*.json"))
    assert "s3cr3t" not in f"{told.value}{made}{written}"
    sent = tracking.send("c", str(work), Tracking(uri=f"sqlite:///{work}/good.db"))
    assert client(sent).get_run(sent["run_id"]).data.params == {"p": "1"}


def test_a_good_place_passes_the_check(tmp_path, workspace):
    tracking.check("c", *workspace)
    tracking.check("c", str(tmp_path / "none"), Tracking(enabled=False, uri="http://127.0.0.1:9"))
    assert not (tmp_path / "none").exists()


def test_a_database_that_is_yet_to_be_made_is_checked_without_loading_mlflow(tmp_path):
    code = (
        "import sys; from clipray import tracking; from clipray.config import Tracking\n"
        f"tracking.check('c', {str(tmp_path)!r}, Tracking()); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    made = tracking.record("c", str(tmp_path), Tracking(), Record({"p": 1}))
    assert client(made).get_run(made["run_id"]).data.params == {"p": "1"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_database_that_may_not_be_written(workspace):
    Path(workspace[0], tracking.DATABASE).chmod(0o400)
    with pytest.raises(ConfigError, match="readonly"):
        tracking.check("c", *workspace)


@pytest.mark.parametrize("name", ["", " ", "x" * 501])
def test_experiments_that_mlflow_refuses(workspace, name):
    with pytest.raises(ConfigError, match=r"tracking\.experiment"):
        tracking.check("c", workspace[0], Tracking(experiment=name))


class Server:
    """An MLflow server on this machine, that can be killed and started again."""

    def __init__(self, folder: Path):
        with closing(socket.socket()) as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.process = folder, None

    def start(self) -> None:
        options = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        options += ["--artifacts-destination", f"{self.folder}/files", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(1500):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path, database):
    (tmp_path / "server.db").write_bytes(database)
    made = Server(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_a_server_that_dies_in_the_middle(tmp_path, server, monkeypatch):
    monkeypatch.setattr(runs, "SAVE", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    secret = f"http://me:s3cr3t-pass@127.0.0.1:{server.port}"
    wanted, work = Tracking(uri=secret, experiment="served"), str(tmp_path / "work")
    kids = {
        f"k{i}": Record({"i": i}, [Metric("m", i)], artifacts={"a.txt": b"a"}) for i in range(12)
    }
    tracking.check("c", work, wanted)
    sent = Path(work, "tracking", "c", "sent.json")

    def kill_soon() -> None:
        while not sent.exists() or sent.read_text().count("run_id") < 5:
            time.sleep(0.01)
        server.kill()

    killer = threading.Thread(target=kill_soon)
    killer.start()
    made = tracking.record("c", work, wanted, Record({"p": 1}), kids)
    killer.join()
    assert "s3cr3t" not in str(made)
    assert made["tracking_uri"] == f"http://***@127.0.0.1:{server.port}"
    assert "MLflow has not all of c" in made["error"]
    assert "tracking.uri=URI" in made["send"]
    with pytest.raises(ConfigError, match="connection refused"):
        tracking.check("c", work, wanted)
    server.start()
    again = tracking.send("c", work, wanted, verify=True)
    assert "error" not in again
    assert again["open"].endswith(f"/runs/{again['run_id']} in a browser")
    written = b"".join(p.read_bytes() for p in Path(work).rglob("*") if p.is_file())
    assert b"s3cr3t" not in written
    door = mlflow.MlflowClient(tracking_uri=server.uri)
    found = door.search_runs([door.get_experiment_by_name("served").experiment_id])
    assert len(found) in (13, 14)  # one may have been made when the answer was lost
    whole = [run for run in found if run.info.status == "FINISHED"]
    assert {run.info.run_name for run in whole} == {"c", *kids}
    assert all(run.data.metrics for run in whole if run.info.run_name != "c")
    copy = door.download_artifacts(whole[0].info.run_id, "a.txt", str(tmp_path))
    assert Path(copy).read_bytes() == b"a"
    assert not tracking.send("c", work, wanted, verify=True)["written"]


def test_a_workspace_at_s3(tmp_path, database):
    with served("bucket"):
        import boto3

        s3 = boto3.client("s3")
        work, wanted = "s3://bucket/work", Tracking(experiment="mine")
        for name in ("first", "second"):  # each has a database: one would overwrite the other's
            key = f"work/tracking/{name}/mlflow.db"
            s3.put_object(Bucket="bucket", Key=key, Body=database)
        scores = Record({"seeds": 5}, artifacts={"scores.parquet": b"some bytes"})
        made = {name: tracking.record(name, work, wanted, scores) for name in ("first", "second")}
        assert not tracking.record("first", work, wanted, scores)["written"]
        for name, one in made.items():
            assert one["tracking_uri"] == f"{work}/tracking/{name}/mlflow.db"
            copy = tmp_path / f"{name}.db"
            s3.download_file("bucket", f"work/tracking/{name}/mlflow.db", str(copy))
            door = mlflow.MlflowClient(tracking_uri=f"sqlite:///{copy}")
            run = door.get_run(one["run_id"])
            assert run.data.params == {"seeds": "5"}
            key = run.info.artifact_uri.removeprefix("s3://bucket/") + "/scores.parquet"
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == b"some bytes"
        assert tracking.names(Store(work)) == ["first", "second"]
        together = Tracking(uri=f"sqlite:///{tmp_path}/all.db")
        for name in tracking.names(Store(work)):
            one = tracking.send(name, work, together)
        assert len(client(one).search_runs(["1"])) == 2
