"""The jobs that `chaos.py` disturbs, the runs that nothing disturbs, and what is compared of the two."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import chaos_rig as rig
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

COMMON = {
    "datasets": ["digits", "colours"],
    "backbones": ["vit-p6-36", "vit-p8-40"],
    "precision": "fp32",
    "shots": [1, 4],
    "seeds": 2,
}
JOBS = {
    "run": COMMON | {"fusers": ["log_avg", "c_log_avg", "nlc"], "alone": False},
    "tune": COMMON
    | {
        "searches": [
            {
                "name": "prior",
                "fuser": "nlc_prior",
                "space": {"reach": {"uniform": [0.5, 4.0]}, "rate": {"loguniform": [0.01, 0.5]}},
            }
        ],
        "samples": 12,
    },
    "predict": {"images": "digits", "split": "test"},
    "pretrain": {
        "architecture": "backbones/vit-p8-40/clipray-vit-p8-40.json",
        "epochs": 4,
        "batch_size": 64,
        "lr": 0.001,
        "weight_decay": 0.05,
        "warmup_steps": 2,
        "precision": "fp32",
        "shift": 1,
        "jitter": 0.1,
        "held_out": 0.1,
    },
}
MARK = b"this image ends its reader"
JOBS["embed"] = JOBS["run"]
ROWS = {  # of each job: files below the workspace, what tells rows apart, and what two equal runs may differ in
    "run": {
        "embeddings/**/*.parquet": (["image_id"], []),
        "reports/chaos/scores.parquet": (None, []),
    },
    "embed": {"embeddings/**/*.parquet": (["image_id"], [])},
    "tune": {"tuning/**/fits-*.parquet": (["key", "progress"], ["seconds"])},
    "predict": {"predictions/**/*.parquet": (["image_id"], [])},
}
TIMED = ("latency_ms",)  # metrics that are measured anew where the backbones' cards are
AGAIN = 4  # runs of the same command, at most


@dataclass
class Trial:
    """One job in a workspace of its own, run as often as it takes."""

    bench: "Bench"
    job: str
    workspace: str
    values: dict
    environment: dict[str, str] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    times: int = 0  # that something broke
    seconds: float = 0.0
    process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Start the command."""
        folder = self.bench.folder / "configs"
        folder.mkdir(exist_ok=True)
        config = folder / f"{self.workspace.strip('/').replace('/', '-').replace(':', '')}.yaml"
        config.write_text(yaml.safe_dump({"workspace": self.workspace, **self.values}))
        self.log = config.with_suffix(f".{len(self.codes)}.log")
        command = [sys.executable, "-m", f"jobs.{self.job}", str(config)]
        environment = rig.surroundings(self.bench.folder / "ray") | self.environment
        environment["RAY_ADDRESS"] = self.bench.nodes.address
        self.start = time.monotonic()
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdout=sink,
                stderr=sink,
                cwd=rig.ROOT,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], object], limit: float = 400) -> None:
        """Wait for a moment to break something at.

        Raises:
            RuntimeError: the job ended before.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the moment never came: {self.log.read_text()[-1500:]}")
            time.sleep(0.02)

    def end(self, limit: float = 500) -> int:
        """Wait for the command's end; its exit code, or -1 where it hung and was ended."""
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -1
            self.said.append("HUNG")
        self.codes.append(code)
        self.seconds += time.monotonic() - self.start
        told = rig.words(self.log.read_text())
        self.said += [told] if told else []
        return code

    def kill(self) -> None:
        """End the command as `kill -9` does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def again(self) -> None:
        """The same command, until it is done."""
        while self.codes[-1] and len(self.codes) < AGAIN:
            self.begin()
            self.end()

    def shards(self, count: int = 1) -> Callable[[], bool]:
        """Whether that many shards of embeddings are there."""
        return lambda: len(list(Path(self.workspace).glob("embeddings/**/*.parquet"))) >= count

    def first_epoch(self) -> Callable[[], bool]:
        """Whether a training has told of its first epoch."""
        return lambda: "epoch 1/" in self.log.read_text()

    def busy(self, title: str) -> Callable[[], list[int]]:
        """The processes that work on what Ray calls `title`."""
        return lambda: rig.workers(self.bench.folder / "ray", f"ray::{title}")

    def strike(self, title: str, most: int = 8) -> None:
        """Kill the processes that work on `title`, as soon as there is one."""
        self.until(self.busy(title))
        for pid in self.busy(title)()[:most]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                self.times += 1


@dataclass
class Bench:
    """The cluster, and the undisturbed runs by job."""

    folder: Path
    nodes: rig.Nodes
    kept: Path  # where undisturbed runs stay for the next call
    whole: dict[str, Trial] = field(default_factory=dict)
    made: int = 0

    def trial(self, job: str, workspace: str = "", **changes) -> Trial:
        """A job in a fresh workspace."""
        self.made += 1
        workspace = workspace or str(self.folder / f"ws{self.made}")
        values = JOBS[job] | {"name": "chaos"} | changes
        if job != "predict":
            values = {"tracking": {"enabled": False}} | values
        if job == "predict":
            values["model"] = self.model()
        if job == "pretrain":
            values |= {"corpus": self.corpus(), "output": f"{workspace}/model.safetensors"}
        return Trial(self, job, workspace, values)

    def prepared(self, job: str = "run", *more: str, **changes) -> Trial:
        """A job in a workspace that has its index and class vectors already, and `more` folders.

        So what is disturbed is the work on images, and a fault costs half the time.
        """
        trial = self.trial(job, **changes)
        for name in ("index", "classifiers", "backbones", *more):
            shutil.copytree(
                Path(self.undisturbed(job).workspace, name), Path(trial.workspace, name)
            )
        return trial

    def undisturbed(self, job: str) -> Trial:
        """The job's run that nothing disturbs."""
        job = "run" if job == "embed" else job
        told = self.kept / f"{job}.json"
        if job not in self.whole and told.exists():
            trial = self.trial(job, str(self.kept / job))
            trial.seconds = json.loads(told.read_text())["seconds"]
            self.whole[job] = trial
        if job not in self.whole:
            trial = self.trial(job, str(self.kept / job))
            trial.begin()
            if trial.end():
                raise RuntimeError(trial.log.read_text()[-3000:])
            self.whole[job] = trial
            told.write_text(json.dumps({"seconds": trial.seconds}))
        return self.whole[job]

    def model(self) -> str:
        """A fused model for `predict`, kept like an undisturbed run: the address of predictions holds its digest."""
        told = self.kept / "fit.json"
        if not told.exists():
            values = {"dataset": "digits", "fuser": "c_log_avg", "shots": 4, "name": "chaos"}
            values |= {"backbones": COMMON["backbones"]}
            trial = Trial(self, "fit", str(self.kept / "fit"), values)
            trial.begin()
            if trial.end():
                raise RuntimeError(trial.log.read_text()[-3000:])
            told.write_text(trial.log.read_text().splitlines()[-1])
        return json.loads(told.read_text())["model"]

    def corpus(self) -> str:
        """Captioned images for `pretrain`: blobs of noise in three colours."""
        path = self.folder / "corpus.parquet"
        rows = [
            {"image": {"bytes": picture(n), "path": None}, "caption": f"a thing of kind {n % 3}"}
            for n in range(640)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
        return str(path)


def picture(number: int, mark: bytes = b"") -> bytes:
    """A small PNG whose colour tells its class, with a mark in its text where one is given."""
    import numpy as np
    from PIL import Image, PngImagePlugin

    colour = np.eye(3)[number % 3] * 160 + 40
    noise = np.random.default_rng(number).normal(0, 30, (24, 24, 3))
    told = PngImagePlugin.PngInfo()
    if mark:
        told.add_text("comment", mark.decode())
    sink = io.BytesIO()
    image = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))
    image.save(sink, "PNG", pnginfo=told)
    return sink.getvalue()


# What is compared


def rows(job: str, workspace: str) -> tuple[Counter, dict]:
    """How often each row is in a workspace, and what is in it."""
    seen: Counter = Counter()
    values = {}
    root = Path(workspace)
    if job == "pretrain":
        weights = (root / "model.safetensors").read_bytes()
        return Counter({"weights": 1}), {"weights": hashlib.sha256(weights).hexdigest()}
    for pattern, (names, free) in ROWS[job].items():
        for path in root.glob(pattern):
            table = pq.read_table(path).drop_columns(free)
            place = path.parent.relative_to(root).as_posix()
            keys = names or [n for n in table.column_names if not n.startswith(("value", "ci_"))]
            for row in table.to_pylist():
                if row.get("metric") in TIMED:
                    continue
                key = (place, *(row[name] for name in keys))
                seen[key] += 1
                values[key] = repr(row)
    return seen, values


def compared(job: str, trial: Trial, whole: Trial) -> tuple[int, int, int]:
    """Rows that are lost, that are double, and that differ."""
    kind = "embed" if job == "deadly-image" else job
    (seen, values), (wanted, expected) = rows(kind, trial.workspace), rows(kind, whole.workspace)
    lost = sum(key not in seen for key in wanted)
    double = sum(count - 1 for count in seen.values()) + sum(key not in wanted for key in seen)
    other = sum(values[key] != expected[key] for key in wanted if key in values)
    return lost, double, other
