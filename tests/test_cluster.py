"""Jobs in a cluster: submitted to one that asks for a token, found, refused; and workers that are killed under them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from clipray import backbones, sources
from clipray.artefacts import embeddings
from clipray.config import Backbone, Compute, Pool
from clipray.errors import ConfigError, ErrorBudget, StoreError
from clipray.images import Preprocess
from clipray.steps import campaign as run
from clipray.steps import campaign_ids, cluster, failures
from clipray.steps.embed import encode
from clipray.steps.embed import plan as embed
from clipray.steps.tally import Tally
from tests.heads import HEAD_PORTS, end, free_ports, plain_environment, processes, started

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head node of its own, with a token: (environment of a client who knows it, address of its dashboard)."""
    folder = tmp_path_factory.mktemp("ray")
    short = Path("/tmp") / f"clipray-{os.getpid()}"  # Ray's sockets allow no long paths
    ports = dict(zip(HEAD_PORTS, free_ports(len(HEAD_PORTS)), strict=True))
    (folder / "token").write_text(TOKEN)
    environment = plain_environment(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(folder / "token"),
        HOME=str(folder),
        RAY_TMPDIR=str(
            short
        ),  # and no --temp-dir: who looks for a running cluster reads the variable only
        PATH=f"{BIN}:{os.environ['PATH']}",  # a submitted `python` is the one that the nodes find first
    )
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--dashboard-host=127.0.0.1",
    ]
    command += ["--object-store-memory=200000000", "--disable-usage-stats"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    process = None
    try:
        process = started(command, environment, folder)
        yield (
            environment | {"RAY_GCS": f"127.0.0.1:{ports['port']}"},
            f"http://127.0.0.1:{ports['dashboard-port']}",
        )
    finally:
        end(short)
        if process is not None:
            process.wait()
        subprocess.run(["rm", "-rf", str(short)], check=False)


def submit(head: tuple, *command: str) -> subprocess.CompletedProcess:
    """`ray job submit --working-dir .` in the repository's root; its output is the job's log, to the end."""
    environment, dashboard = head
    return subprocess.run(
        [
            BIN / "ray",
            "job",
            "submit",
            "--address",
            dashboard,
            "--working-dir",
            ".",
            "--",
            *command,
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_the_demo_runs_as_a_submitted_job(head, tmp_path):
    """The log holds the job's JSON line, and its workspace lies where it was told to."""
    command = [
        "python",
        "-m",
        "jobs.run",
        "configs/demo.yaml",
        "--limit",
        "40",
        "--set",
        f"workspace={tmp_path}/ws",
    ]
    for text in ("datasets=[digits]", "backbones=[vit-p6-36, vit-p8-40]", "shots=[1]", "seeds=1"):
        command += ["--set", text]
    done = submit(head, *command)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
    result = json.loads(line)
    assert result["workspace"] == f"{tmp_path}/ws"
    assert (
        result["headline"]["images"] == 40 + 30
    )  # of the train split, one shot and two spare ones a class
    assert result["headline"]["failed_images"] == 0
    assert Path(result["report"]).is_file()
    assert Path(result["scores"]).is_file()
    shards = sorted((tmp_path / "ws" / "embeddings").rglob("0*.parquet"))
    assert len(shards) == 4


PROBE = """
import ray, clipray
from clipray.config import Compute
from clipray.steps.cluster import connect
connect(Compute(), verbose=False)
here = ray.remote(num_cpus=0.1)(lambda: __import__("clipray").__file__)
print("PROBE", ray.get_runtime_context().gcs_address, clipray.__file__, ray.get(here.remote()), sep="|")
"""


def probed(output: str) -> list[str]:
    line = next(
        line for line in output.splitlines() if line.startswith("PROBE|")
    )  # Ray tells a failed job's log twice
    return line.split("|")[1:]


def port_of(address: str) -> str:
    return address.rpartition(":")[2]


def test_driver_and_workers_of_a_submitted_job_run_the_code_that_was_sent(head):
    """Even where another copy is installed, as it is here; a relative workspace is refused before anything is done."""
    code = PROBE + (
        "import runpy, sys\n"
        "sys.argv = ['jobs.run', 'configs/demo.yaml']\n"
        "runpy.run_module('jobs.run', run_name='__main__')\n"
    )
    done = submit(head, "python", "-c", code)
    gcs, driver, worker = probed(done.stdout)
    assert port_of(gcs) == port_of(head[0]["RAY_GCS"])
    assert driver == worker
    assert "working_dir_files/_ray_pkg_" in driver
    assert done.returncode != 0
    assert "workspace: workspace/demo is relative" in done.stdout


@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_without_the_right_token_nothing_is_accepted(head, token, tmp_path):
    environment, dashboard = head
    stranger = {key: value for key, value in environment.items() if not key.startswith("RAY_")}
    stranger |= {"HOME": str(tmp_path)} | (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    )
    command = [
        BIN / "ray",
        "job",
        "submit",
        "--address",
        dashboard,
        "--no-wait",
        "--",
        "echo",
        "in",
    ]
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert any(
        word in done.stdout + done.stderr for word in ("401", "403", "Unauthorized", "Forbidden")
    )
    assert "submitted successfully" not in done.stdout + done.stderr
    stranger["RAY_ADDRESS"] = environment["RAY_GCS"]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env=stranger,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert "ConfigError: cannot join the Ray cluster" in done.stderr, done.stderr[-3000:]
    assert "PROBE|" not in done.stdout


def test_a_job_finds_the_cluster_that_runs_on_its_machine(head):
    """No address given and none in the environment: the cluster that `ray start` has left on record is joined."""
    environment, _ = head
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert port_of(probed(done.stdout)[0]) == port_of(environment["RAY_GCS"])


def test_where_there_is_no_cluster_a_job_starts_its_own(tmp_path):
    short = Path("/tmp") / f"clipray-none-{os.getpid()}"
    environment = plain_environment(RAY_TMPDIR=str(short), HOME=str(tmp_path))
    code = PROBE + "print('NODE', ray._private.worker._global_node.is_head())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "NODE True" in done.stdout
        assert probed(done.stdout)[1].startswith(str(ROOT))
    finally:
        subprocess.run(["rm", "-rf", str(short)], check=False)


def test_only_a_submitted_job_needs_a_lasting_place(monkeypatch):
    monkeypatch.delenv(cluster.SUBMITTED, raising=False)
    cluster.check_lasting(workspace="workspace/demo")
    monkeypatch.setenv(cluster.SUBMITTED, "{}")
    cluster.check_lasting(workspace="/mnt/shared/demo", output="s3://bucket/x")
    with pytest.raises(ConfigError, match="output: backbones/x is relative"):
        cluster.check_lasting(workspace="/mnt/shared/demo", output="backbones/x")


# Workers that die. Ray's restarts, our bounds and the store are what is tested, so the encoder is a cheap one.


class Cheap:
    """Means of blocks of pixels: an encoder that needs no open_clip."""

    preprocess = Preprocess((8, 8), "bicubic", "shortest", 0)
    dim = 4

    def images(self, crops_NHWC: np.ndarray, batch_size: int) -> np.ndarray:
        return crops_NHWC.reshape(len(crops_NHWC), 4, -1).mean(-1).astype(np.float32)


def work(campaign, monkeypatch, deadly: bool, **changes):
    """The plan of a run whose actors are slow, or die on the second shard; what embed.run takes."""
    monkeypatch.setattr(backbones, "origin", lambda spec: {"architecture": spec.name})
    parent = encode.Embedder

    class Slow(parent):
        def load(self, device, compiled):
            return Cheap()

        def __call__(self, table):
            import pickle
            import time

            time.sleep(0.5)
            if deadly and pickle.loads(table["task"][0].as_py())["shard"] == "000000256.parquet":
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(table)

    Cheap.__module__ = Slow.__module__ = "__main__"  # sent by value: workers cannot import a test
    monkeypatch.setattr(encode, "Embedder", Slow)
    given = campaign(compute={"max_retries": 2, **changes})
    todo = run.plan(given)
    card = {"preprocess": list(Cheap.preprocess), "seconds_per_image": 0.1, "memory_mb": 1.0}
    pools = {"vit-p6-36": embed.Pool(size=1, num_cpus=0.5)}
    specs = [Backbone(name="vit-p6-36", architecture="x", pretrained="y")]
    works = list(todo.works.values())
    return todo, embed.run(todo.store, works, specs, given, {"vit-p6-36": card}, pools, "cpu")


def embedders() -> list[int]:
    """The actor processes below this process: those of its own Ray."""
    parents, names = {}, {}
    for pid in processes():
        with contextlib.suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = Path(f"/proc/{pid}/cmdline").read_text()

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid, name in names.items() if "MapWorker" in name and ours(pid)]


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(campaign, monkeypatch, local_ray):
    todo, running = work(campaign, monkeypatch, deadly=False)
    done, killed = [next(running)], embedders()
    assert killed, "no actor was found to kill"
    written = sum(
        len(todo.store.names(place)) for w in todo.works.values() for place in w.addresses.values()
    )
    assert written < sum(len(plan.todo) for plan in todo.works.values()), (
        "too late to show anything"
    )
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    done += list(running)
    shards = {(one["split"], one["shard"]) for one in done}
    assert len(done) == len(shards)
    identify(todo)
    for (_, split), plan in todo.works.items():
        assert sum(one["images"] for one in done if one["split"] == split) == len(plan.index)
        assert failures.finish(todo.store, plan, 0, {}) == []
        table = embeddings.read(todo.store, plan.addresses["vit-p6-36"])
        assert table["image_id"].to_pylist() == sorted(
            plan.index.table(todo.store)["image_id"].to_pylist()
        )
        assert table["error"].null_count == len(table)


def test_a_shard_that_kills_every_worker_ends_the_run(campaign, monkeypatch, local_ray):
    todo, running = work(campaign, monkeypatch, deadly=True, max_retries=1)
    start = time.monotonic()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Ray's own, whichever it is: `lost` must know it
        list(running)
    words = cluster.lost(caught.value)
    assert words is not None, repr(caught.value)
    assert "the same command continues" in words
    assert time.monotonic() - start < 120
    assert all(
        todo.store.manifest(place) is None
        for w in todo.works.values()
        for place in w.addresses.values()
    )


DEADLY = """
import os, signal, zlib
from PIL import Image
if not hasattr(Image, "harmless"):
    Image.harmless = Image.open
    def opened(file, *args, **kwargs):
        if zlib.crc32(file.getvalue()) % 101 == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.harmless(file, *args, **kwargs)
    Image.open = opened
"""


def test_images_that_kill_their_decoder_become_rows_with_an_error(
    campaign, monkeypatch, local_ray, tmp_path
):
    """Some images end every process that opens them, in workers and in children alike; all others are embedded."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    code, folder = DEADLY, str(tmp_path)

    def decode(*args, **kwargs):
        import sys

        from clipray.steps.embed import decode as room

        sys.path.insert(0, folder)  # children import what is there
        exec(code, {})
        try:
            yield from room.decode(*args, **kwargs)
        finally:
            sys.path.remove(folder)
            from PIL import Image

            Image.open = Image.harmless  # other tests have this worker after this one
            del Image.harmless

    decode.__module__ = "__main__"  # sent by value: workers cannot import a test
    monkeypatch.setattr(embed, "decode", decode)
    todo, running = work(campaign, monkeypatch, deadly=False)
    list(running)
    identify(todo)
    plan = todo.works["digits", "test"]
    index = plan.index.table(todo.store)
    failures.finish(todo.store, plan, 0.5, {})
    table = embeddings.read(todo.store, plan.addresses["vit-p6-36"])
    assert table["image_id"].to_pylist() == sorted(index["image_id"].to_pylist())
    bytes_of = dict(zip(index["image_id"].to_pylist(), contents(todo, plan), strict=True))
    deadly = {name for name, data in bytes_of.items() if zlib.crc32(data) % 101 == 5}
    assert deadly, "no image is deadly: the test shows nothing"
    rows = dict(zip(table["image_id"].to_pylist(), table["error"].to_pylist(), strict=True))
    assert {name for name, error in rows.items() if error} == deadly
    assert {rows[name] for name in deadly} == {"decoding it ends the process (SIGKILL)"}


def identify(todo) -> None:
    """Give the images that have been embedded their ids, as the campaign does."""
    every = {
        place: {name: Tally(set(plan.todo)) for name in plan.addresses}
        for place, plan in todo.works.items()
    }
    campaign_ids.found(todo, every)


def contents(todo, plan) -> list[bytes]:
    """The bytes of a split's images, in the order of its index."""
    from clipray.artefacts.index import read

    found = []
    for shard in plan.shards():
        rows, chunks = read(todo.store, plan.index.place, *shard[1:])
        found += zip(rows["image_id"].to_pylist(), sources.contents(chunks, rows), strict=True)
    data = dict(found)
    return [data[name] for name in plan.index.table(todo.store)["image_id"].to_pylist()]


def test_a_task_knows_that_workers_died_under_it(local_ray):
    def work() -> int:
        import os
        import signal

        from clipray.steps import cluster

        if cluster.attempt() < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return cluster.attempt()

    work.__module__ = "__main__"  # sent by value: workers cannot import a test
    assert list(cluster.tasks(work, [()], 1, 0, 2)) == [(0, 2)]
    assert cluster.attempt() == 0


def test_restarts_bound_an_actor_and_not_the_tries_of_its_tasks():
    """Ray tries a task at once on a node that is gone: two tries are over long before it notices."""
    options = cluster.actors(Pool(size=2), Compute(max_retries=3), memory=0)
    assert (options["max_restarts"], options["max_task_retries"]) == (3, -1)


def test_other_errors_are_not_taken_for_lost_workers():
    assert cluster.lost(ValueError("no")) is None


def test_what_reaches_weights_is_handed_on_to_workers_once():
    """Workers of a cluster do not inherit it; Ray refuses a variable that a submitted job has got already."""
    environment = {"HF_HOME": "/hf", "HF_TOKEN": "t", "AWS_REGION": "x", "PATH": "/bin"}
    wanted = {"HF_HOME": "/hf", "HF_TOKEN": "t", "AWS_REGION": "x"}
    assert cluster.handed_on(environment) == wanted
    job = {"runtime_env": {"env_vars": {"HF_TOKEN": "t"}}}
    environment[cluster.SUBMITTED] = json.dumps(job)
    assert cluster.handed_on(environment) == {"HF_HOME": "/hf", "AWS_REGION": "x"}


def test_what_a_worker_raised_is_told_as_it_was_raised(local_ray):
    """Ours comes out of Ray's wrapping with its own words and exit code; one task's error ends no other task."""

    def work(number: int) -> int:
        from clipray.errors import ErrorBudget

        if number == 1:
            raise ErrorBudget("pets: too many")
        if number == 2:
            raise ValueError("a fault")
        return number

    work.__module__ = "__main__"  # sent by value: workers cannot import a test
    done = {
        n: (result, error)
        for n, result, error in cluster.attempts(work, [(n,) for n in range(4)], 1, 0, 0)
    }
    assert [done[n][0] for n in range(4)] == [0, None, None, 3]
    told = cluster.known(done[1][1])
    assert (type(told), str(told), told.exit_code) == (ErrorBudget, "pets: too many", 3)
    assert cluster.known(done[2][1]) is None
    assert cluster.reason(done[1][1]) == "pets: too many"
    assert cluster.reason(done[2][1]) == "ValueError: a fault"
    with pytest.raises(ErrorBudget, match=r"^pets: too many$"):
        list(cluster.tasks(work, [(1,)], 1, 0, 0))


@pytest.mark.parametrize("pool", [False, True], ids=["tasks", "actors"])
def test_what_a_worker_of_ray_data_raised_is_told_as_it_was_raised(local_ray, pool):
    """A full disk, found by a worker, is one sentence with its remedy, without Ray's advice on retries."""
    import ray.data

    class Work:
        def __call__(self, batch: dict) -> dict:
            from clipray.errors import StoreError

            raise StoreError("/ws cannot be written (No space left):\n  make room there")

    Work.__module__ = "__main__"  # sent by value: workers cannot import a test
    cluster.connect(Compute(), verbose=False)
    how = {"compute": ray.data.ActorPoolStrategy(size=1)} if pool else {}
    dataset = ray.data.range(1).map_batches(Work if pool else Work(), **how)
    with pytest.raises(Exception, match="cannot be written") as caught:
        dataset.take_all()
    told = cluster.known(caught.value)
    assert type(told) is StoreError
    assert str(told) == "/ws cannot be written (No space left):\n  make room there"


def test_a_full_disk_ends_every_task(local_ray):
    def work() -> None:
        from clipray.errors import StoreError

        raise StoreError("the disk is full")

    work.__module__ = "__main__"
    with pytest.raises(StoreError, match=r"^the disk is full$"):
        list(cluster.attempts(work, [()], 1, 0, 0))


def test_cuda_where_nothing_has_a_gpu_is_told_at_once(local_ray):
    with pytest.raises(ConfigError, match=r"compute.device: cuda: no GPU is in the cluster.*=auto"):
        cluster.device(Compute(device="cuda"), local_ray.cluster_resources())
    assert cluster.device(Compute(device="cuda"), {"GPU": 1.0}) == "cuda"
    assert cluster.device(Compute(), {"CPU": 2.0}) == "cpu"


def test_a_running_cluster_answers_the_probe(local_ray):
    cluster.probe(local_ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize("kind", ["closed", "silent", "http", "nonsense"])
def test_a_dead_address_is_told_within_seconds(kind, tmp_path):
    """No server, one that hangs, one of something else, and no address at all."""
    (port,) = free_ports(1)
    address = "nowhere" if kind == "nonsense" else f"127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        if kind == "silent":
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        if kind == "http":
            server = subprocess.Popen(
                [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
                cwd=tmp_path,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
            wait_for(port)
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"compute\.address=local") as caught:
            cluster.probe(address)
        assert address in str(caught.value)
        assert time.monotonic() - start < 2 * cluster.PROBE_SECONDS


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("variables", "code", "words"),
    [
        ({"RAY_ADDRESS": "127.0.0.1:1"}, 2, "no Ray cluster answers at 127.0.0.1:1"),
        ({"RAY_TMPDIR": "/proc/nothing"}, 1, "Ray does not start on this machine"),
    ],
)
def test_a_job_tells_that_there_is_no_ray_without_a_traceback(variables, code, words, tmp_path):
    command = [sys.executable, "-m", "jobs.embed", "configs/demo.yaml", "--set", "limit=4"]
    command += ["--set", f"workspace={tmp_path}/ws", "--set", "datasets=[digits]"]
    command += ["--set", "backbones=[vit-p6-36]"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=plain_environment(HOME=str(tmp_path), **variables),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert f"error: {words}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
