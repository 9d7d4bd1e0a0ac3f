"""What `jobs.predict` takes to label N images with several models, and what a `kill -9` leaves.

    python benchmarks/predict.py FOLDER --model full=MODEL --model cascade=MODEL --sizes 1000 10000 40000 --kill 10000

FOLDER has Parquet files with `image` and `caption`. A collection of each size is drawn from them; the label of an image
is the class that its caption names, if it is one of the model's (`--caption`). Each run is a job in a process of its
own, as a user starts it, with Ray and all. Memory is what processes hold for themselves (RssAnon), looked at every
second. `--kill` ends the driver of a run where half of the shards are there, gives the same command again, and
compares all rows with those of the undisturbed run. Prints one JSON object a run. Linux only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipray.artefacts import fused_model

FILE, GROUP = 10_000, 1_000  # rows of a file and of a row group


def collection(source: Path, root: Path, size: int, about: dict, caption: str) -> Path:
    """A data set of some images of the source, labelled where a caption names a class; its folder."""
    folder = root / f"images-{size}"
    if folder.exists():
        return folder
    number = {caption.format(c=name): n for n, name in enumerate(about["classnames"])}
    whole = pa.concat_tables([pq.read_table(path) for path in sorted(source.glob("*.parquet"))])
    rows = np.sort(np.random.default_rng(0).permutation(len(whole))[:size])
    table = whole.select(["image", "caption"]).take(rows)
    labels = [number.get(text) for text in table["caption"].to_pylist()]
    table = table.append_column("label", pa.array(labels, pa.int64()))
    folder.mkdir(parents=True)
    for part, start in enumerate(range(0, size, FILE)):
        path = folder / f"test-{part:03d}.parquet"
        pq.write_table(table.slice(start, FILE), path, row_group_size=GROUP)
    (folder / "classnames.txt").write_text("\n".join(about["classnames"]) + "\n")
    return folder


class Watch(threading.Thread):
    """Looks every second at a process and its descendants: peaks of what they hold for themselves, by kind."""

    def __init__(self, driver: int):
        super().__init__(daemon=True)
        self.driver, self.over = driver, threading.Event()
        self.peaks: Counter[str] = Counter()  # 10⁶ bytes
        self.seen: set[int] = set()

    def run(self) -> None:
        """Look until told that it is over."""
        while not self.over.wait(1.0):
            self.look()

    def look(self) -> None:
        """Look once."""
        status, workers = {}, []
        for path in Path("/proc").glob("[0-9]*/status"):
            try:
                lines = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
                status[int(lines["Pid"])] = lines
            except (OSError, ValueError):
                continue  # it has just ended
        own = {self.driver}
        for pid in sorted(status, key=lambda one: int(status[one]["PPid"])):
            if int(status[pid]["PPid"]) in own:
                own.add(pid)
        self.seen |= own
        for pid in own & status.keys():
            held = int(status[pid].get("RssAnon", "0").split()[0]) * 1024 / 1e6
            if pid == self.driver:
                self.peaks["driver"] = max(self.peaks["driver"], held)
            elif status[pid]["Name"].startswith("ray::"):
                workers.append(held)
        self.peaks["largest_worker"] = max([self.peaks["largest_worker"], *workers])
        self.peaks["all_workers"] = max(self.peaks["all_workers"], sum(workers))


def command(workspace: Path, model: str, images: Path) -> list[str]:
    """The command line of a job."""
    config = workspace / f"{images.name}.yaml"
    workspace.mkdir(parents=True, exist_ok=True)
    told = {"workspace": str(workspace), "model": model, "images": str(images)}
    config.write_text(yaml.safe_dump(told))
    return [sys.executable, "-m", "jobs.predict", str(config), "--quiet"]


def shards(workspace: Path) -> list[Path]:
    """The files of predictions that are there."""
    return sorted(workspace.glob("predictions/*/[0-9]*.parquet"))


def run(workspace: Path, model: str, images: Path) -> dict:
    """Run a job to its end; its figures."""
    start = time.time()
    job = subprocess.Popen(command(workspace, model, images), stdout=subprocess.PIPE, text=True)
    watch = Watch(job.pid)
    watch.start()
    printed, _ = job.communicate()
    watch.over.set()
    watch.join()
    assert job.returncode == 0, printed
    told = json.loads(printed.splitlines()[-1])
    times = [path.stat().st_mtime for path in shards(workspace)]
    kept = ("images", "labelled", "failed", "gflops_per_image", "scored", "accuracy")
    figures = {key: told[key] for key in kept if key in told}
    figures |= {"wall_s": time.time() - start, "first_shard_s": min(times) - start}
    figures["first_to_last_shard_s"] = max(times) - min(times)
    return figures | {f"{kind}_mb": round(peak) for kind, peak in watch.peaks.items()}


def killed(workspace: Path, model: str, images: Path, whole: int) -> dict:
    """Kill a job where half of its shards are there, and wait until what it had started is gone."""
    job = subprocess.Popen(command(workspace, model, images), stdout=subprocess.DEVNULL)
    watch = Watch(job.pid)
    while len(shards(workspace)) < whole // 2:
        assert job.poll() is None, "it ended before it could be killed"
        watch.look()
        time.sleep(0.2)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    start = time.time()
    while any(alive(pid) for pid in watch.seen):
        time.sleep(0.2)
    return {"shards_at_kill": len(shards(workspace)), "gone_after_s": time.time() - start}


def alive(pid: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def rows(workspace: Path) -> pa.Table:
    """All rows, by image."""
    return pa.concat_tables([pq.read_table(path) for path in shards(workspace)]).sort_by("image_id")


def compared(before: Path, after: Path) -> dict:
    """Whether two runs left the same rows, none twice."""
    first, second = rows(before), rows(after)
    once = len(second["image_id"].unique()) == len(second)
    files = [[path.name for path in shards(one)] for one in (before, after)]
    return {"rows": len(second), "each_once": once, "equal": first.equals(second)} | {
        "same_files": files[0] == files[1]
    }


def main() -> None:
    """Run each model at each size; kill one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--model", action="append", required=True, help="<name>=<folder>")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1_000, 10_000, 40_000])
    parser.add_argument("--kill", type=int, default=0, help="a size, of those run")
    parser.add_argument("--caption", default="a photo of a {c}", help="of an image of class {c}")
    parser.add_argument("--root", type=Path, default=Path("workspace/predict-benchmark"))
    given = parser.parse_args()
    models = dict(each.split("=", 1) for each in given.model)
    about = fused_model.read(next(iter(models.values()))).about
    for size in given.sizes:
        images = collection(given.source, given.root, size, about, given.caption)
        for name, model in models.items():
            print(json.dumps({"model": name} | run(given.root / f"{name}-{size}", model, images)))
            sys.stdout.flush()
    for name, model in models.items() if given.kill else ():
        images, whole = given.root / f"images-{given.kill}", given.root / f"{name}-{given.kill}"
        again = given.root / f"{name}-{given.kill}-killed"
        told = killed(again, model, images, len(shards(whole)))
        told["again_s"] = run(again, model, images)["wall_s"]
        print(json.dumps({"model": name, "killed": given.kill} | told | compared(whole, again)))


if __name__ == "__main__":
    main()
