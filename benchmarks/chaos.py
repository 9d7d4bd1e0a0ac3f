"""Break things under a campaign on a cluster of several nodes, and compare what it leaves with an undisturbed run.

    python benchmarks/chaos.py                        every fault, one after the other: about a minute each
    python benchmarks/chaos.py worker-embed s3-down   some of them; --list names all
    python benchmarks/chaos.py --soak 30              campaigns for 30 minutes; something dies each minute

A head and two nodes with one CPU each on this machine (`ray.cluster_utils.Cluster`), small image sets that need no
download, two of the shipped backbones, fp32. Each fault has a fresh workspace; where the job ended before its time, the
same command runs again. Prints a Markdown table: how often something broke, the exit codes of all runs of the command,
seconds, and rows that are lost, double or different.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chaos_rig as rig
from chaos_soak import soak
from chaos_trials import JOBS, MARK, Bench, Trial, compared, picture, rows

INJECTED = f"""
import os, signal
from PIL import Image
real = Image.open
def deadly(file, *args, **kwargs):
    if hasattr(file, "getvalue") and {MARK!r} in file.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return real(file, *args, **kwargs)
Image.open = deadly
"""


# Each fault takes the bench and returns the trial that it disturbed, ended.


def worker_killed(bench: Bench, job: str, title: str) -> Trial:
    ready = ["embeddings", "support_sets"] if title == "evaluate" else []
    trial = bench.prepared(job, *ready) if job in ("run", "embed") else bench.trial(job)
    trial.begin()
    if job == "embed":
        trial.until(trial.shards())
    trial.strike(title)
    trial.end()
    return trial


def node_swapped(bench: Bench, job: str, when: Callable[[Trial], Callable]) -> Trial:
    trial = bench.prepared("embed") if job == "embed" else bench.trial(job)
    trial.begin()
    trial.until(when(trial))
    bench.nodes.remove()
    bench.nodes.add()
    trial.times = 1
    trial.end()
    return trial


def node_gone(bench: Bench) -> Trial:
    """A node goes in the middle, and none comes in its place: what is left has to do all."""
    trial = bench.prepared("embed")
    trial.begin()
    trial.until(trial.busy("MapWorker"))
    bench.nodes.remove()
    trial.times = 1
    trial.end()
    bench.nodes.add()
    return trial


def driver_killed(bench: Bench, job: str, when: Callable[[Trial], Callable]) -> Trial:
    trial = bench.prepared() if job == "run" else bench.trial(job)
    trial.begin()
    trial.until(when(trial))
    trial.kill()
    trial.times = 1
    trial.end()
    return trial


def head_restarted(bench: Bench) -> Trial:
    trial = bench.prepared("embed")
    trial.begin()
    trial.until(trial.shards())
    bench.nodes.end()
    trial.times = 1
    trial.end()
    bench.nodes.start()
    return trial


def s3(bench: Bench, disturb: Callable[[rig.Proxy, Trial], None]) -> Trial:
    with rig.bucket() as proxy:
        trial = bench.trial("embed", f"s3://bucket/ws{bench.made}")
        trial.environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}", **rig.KEYS}
        trial.begin()
        disturb(proxy, trial)
        trial.end()
        proxy.delay, proxy.every = 0.0, 0
        trial.again()
        copied = bench.folder / f"copied{bench.made}"
        subprocess.run(
            [sys.executable, "-c", COPY, trial.workspace, str(copied)],
            env=rig.surroundings(bench.folder / "ray") | trial.environment,
            check=True,
        )
        trial.workspace = str(copied)
    return trial


COPY = "import fsspec, sys; fsspec.filesystem('s3').get(sys.argv[1] + '/', sys.argv[2], recursive=True)"


def s3_down(proxy: rig.Proxy, trial: Trial) -> None:
    trial.until(lambda: sum("/embeddings/" in path for path in proxy.written) >= 1)
    proxy.down()
    time.sleep(20)
    proxy.up()
    trial.times = 1


def s3_slow(proxy: rig.Proxy, trial: Trial) -> None:
    proxy.delay = 0.5
    trial.process.wait()
    trial.times = proxy.requests


def s3_throttled(proxy: rig.Proxy, trial: Trial) -> None:
    proxy.every = 3
    trial.process.wait()
    trial.times = proxy.refused


def disk_full(bench: Bench) -> Trial:
    whole = Path(bench.undisturbed("run").workspace)
    size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
    place = bench.folder / "disk"
    kept = bench.folder / f"kept{bench.made}"
    with rig.small_disk(place, max(64, size // 3)) as resize:
        trial = bench.trial("run", str(place / "ws"))
        trial.begin()
        trial.end()
        trial.times = 1
        resize(40 * size + 100_000)
        trial.again()
        shutil.copytree(trial.workspace, kept)
    trial.workspace = str(kept)
    return trial


def mlflow(bench: Bench, up_at_first: bool) -> Trial:
    tracker = rig.Tracker(bench.folder / "mlflow")
    try:
        if up_at_first:
            tracker.start()
        trial = bench.prepared(tracking={"uri": tracker.uri, "experiment": "chaos"})
        trial.environment = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        trial.begin()
        if up_at_first:
            trial.until(trial.shards())
            tracker.kill()
        trial.times = 1
        trial.end()
        tracker.start()
        trial.again()
    finally:
        tracker.kill()
    return trial


def deadly_image(bench: Bench) -> Trial:
    """One image of 60 ends whatever process reads it: it becomes an error row, and the others are kept."""
    root = bench.folder / "pictures"
    for number in range(60):
        split = "test" if number % 2 else "train"
        place = root / split / f"kind{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(picture(number, MARK if number == 31 else b""))
    (root / "zeroshot_classification_templates.txt").write_text("a thing of {c}\n")
    changes = {"datasets": [str(root)]}
    whole = bench.trial("embed", **changes)
    whole.begin()
    if whole.end():
        raise RuntimeError(whole.log.read_text()[-1500:])
    bench.nodes.end()
    inject = bench.folder / "inject"
    inject.mkdir(exist_ok=True)
    (inject / "sitecustomize.py").write_text(INJECTED)
    bench.nodes.start(PYTHONPATH=f"{inject}:{os.environ['PYTHONPATH']}")
    trial = bench.trial("embed", **changes)
    trial.begin()
    trial.times = 1
    trial.end()
    bench.nodes.end()
    bench.nodes.start()
    bench.whole["deadly-image"] = whole
    return trial


def memory_short(bench: Bench) -> Trial:
    """Another process takes the memory, so that Ray ends workers, for 15 s."""
    meminfo = dict(
        line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    total, free = (int(meminfo[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    room = 4 * 2**20
    bench.nodes.end()
    bench.nodes.start(
        RAY_memory_usage_threshold=f"{(total - free + room) / total:.4f}",
        RAY_memory_monitor_refresh_ms="100",
    )
    trial = bench.prepared("embed", compute={"max_retries": 5})
    trial.begin()
    trial.until(trial.shards())
    code = f"import time; b = bytearray({room + 2**20} * 1024); b[::4096] = b'x' * len(b[::4096]); time.sleep(15)"
    subprocess.run([sys.executable, "-c", code], check=True)
    trial.times = 1
    trial.end()
    bench.nodes.end()
    bench.nodes.start()
    return trial


def one_node(bench: Bench) -> Trial:
    """No fault: the same search on one node, where the undisturbed one had three."""
    bench.nodes.end()
    others, bench.nodes.others = bench.nodes.others, 0
    bench.nodes.cpus *= 2  # all pools need more than one
    bench.nodes.start()
    trial = bench.trial("tune")
    trial.begin()
    trial.end()
    bench.nodes.end()
    bench.nodes.others = others
    bench.nodes.cpus //= 2
    bench.nodes.start()
    return trial


FAULTS: dict[str, tuple[str, str, Callable[[Bench], Trial]]] = {
    "worker-embed": (
        "embedding workers killed",
        "embed",
        lambda b: worker_killed(b, "embed", "MapWorker"),
    ),
    "worker-evaluate": (
        "evaluating workers killed",
        "run",
        lambda b: worker_killed(b, "run", "evaluate"),
    ),
    "node": (
        "a node removed, another one added",
        "embed",
        lambda b: node_swapped(b, "embed", lambda t: t.shards()),
    ),
    "node-gone": ("a node removed, and no other added", "embed", node_gone),
    "driver": (
        "driver killed -9",
        "run",
        lambda b: driver_killed(b, "run", lambda t: t.shards()),
    ),
    "head": ("head and all nodes gone, a new cluster", "embed", head_restarted),
    "s3-down": ("S3 refuses connections for 20 s", "embed", lambda b: s3(b, s3_down)),
    "s3-slow": ("S3 answers 0.5 s later, each request", "embed", lambda b: s3(b, s3_slow)),
    "s3-throttled": (
        "S3 says 503 SlowDown to two of three",
        "embed",
        lambda b: s3(b, s3_throttled),
    ),
    "disk": ("the workspace's disk is full", "run", disk_full),
    "mlflow-start": ("MLflow down from the start", "run", lambda b: mlflow(b, False)),
    "mlflow-middle": ("MLflow goes down in the middle", "run", lambda b: mlflow(b, True)),
    "deadly-image": ("an image that kills its decoder", "deadly-image", deadly_image),
    "memory": ("memory runs short, Ray ends workers", "embed", memory_short),
    "tune-worker": ("workers killed", "tune", lambda b: worker_killed(b, "tune", "Trial")),
    "tune-driver": (
        "driver killed -9",
        "tune",
        lambda b: driver_killed(b, "tune", lambda t: t.busy("Trial")),
    ),
    "tune-node": (
        "a node removed, another one added",
        "tune",
        lambda b: node_swapped(b, "tune", lambda t: t.busy("Trial")),
    ),
    "tune-one-node": ("nothing: one node in place of three", "tune", one_node),
    "predict-worker": (
        "workers killed",
        "predict",
        lambda b: worker_killed(b, "predict", "MapWorker"),
    ),
    "predict-driver": (
        "driver killed -9",
        "predict",
        lambda b: driver_killed(b, "predict", lambda t: t.busy("MapWorker")),
    ),
    "predict-node": (
        "a node removed, another one added",
        "predict",
        lambda b: node_swapped(b, "predict", lambda t: t.busy("MapWorker")),
    ),
    "pretrain-worker": (
        "training worker killed",
        "pretrain",
        lambda b: pretrain(b, lambda t: t.strike("RayTrainWorker")),
    ),
    "pretrain-driver": ("driver killed -9", "pretrain", lambda b: pretrain(b, Trial.kill)),
    "pretrain-node": (
        "a node removed, another one added",
        "pretrain",
        lambda b: node_swapped(b, "pretrain", Trial.first_epoch),
    ),
}


def pretrain(bench: Bench, strike: Callable[[Trial], object]) -> Trial:
    trial = bench.trial("pretrain")
    trial.begin()
    trial.until(trial.first_epoch())
    strike(trial)
    trial.times = 1
    trial.end()
    return trial


def check(bench: Bench, name: str) -> str:
    """Do one fault; its row of the table."""
    words, job, fault = FAULTS[name]
    usual = bench.undisturbed(job).seconds if job in JOBS else None
    trial = fault(bench)
    trial.again()
    whole = bench.undisturbed(job) if job in JOBS else bench.whole[job]
    lost, double, other = compared(job, trial, whole)
    codes = ", ".join(map(str, trial.codes))
    told = "; ".join(dict.fromkeys(trial.said))
    print(f"  {name}: {told}", file=sys.stderr, flush=True)
    usual = usual or whole.seconds
    return (
        f"| `{name}` | {trial.job} | {words} | {trial.times} | {codes} | {trial.seconds:.0f} "
        f"({usual:.0f}) | {lost} / {double} | {other} of {sum(rows(trial.job, whole.workspace)[0].values())} |"
    )


HEADER = (
    "| fault | job | what breaks | times | exit codes | seconds (undisturbed) | rows lost / double |"
    " rows that differ |\n"
    "|---|---|---|---:|---|---:|---:|---:|"
)


@contextlib.contextmanager
def bench(kept: str | None) -> Iterator[Bench]:
    """The cluster in a temporary folder with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    (folder / "ray").mkdir()
    os.environ.update(rig.surroundings(folder / "ray"))
    nodes = rig.Nodes(folder / "ray")
    try:
        nodes.start()
        place = Path(kept or folder / "undisturbed")
        place.mkdir(parents=True, exist_ok=True)
        yield Bench(folder, nodes, place)
    finally:
        nodes.end()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Do the faults that the command line names, or a soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("faults", nargs="*", help="names of faults; all where none is given")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="then soak; alone where no fault is named"
    )
    parser.add_argument(
        "--undisturbed",
        metavar="FOLDER",
        help="keep undisturbed runs there, and take those that are",
    )
    given = parser.parse_args()
    if unknown := set(given.faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; --list names all")
    if given.list:
        print("\n".join(FAULTS))
        return
    with bench(given.undisturbed) as made:
        names = given.faults or ([] if given.soak else FAULTS)
        print(HEADER, flush=True)
        for name in names:
            try:
                print(check(made, name), flush=True)
            except Exception as error:  # the other faults are still to be looked at
                print(f"| `{name}` | FAILED {type(error).__name__}: {error} |", flush=True)
        if given.soak:
            soak(made, given.soak)


if __name__ == "__main__":
    main()
