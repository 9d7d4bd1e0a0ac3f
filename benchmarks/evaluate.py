"""What the evaluation of one large data set takes: peak memory of its task, and time.

    python benchmarks/evaluate.py 50000 9 1000 512              images, backbones, classes, dimensions
    python benchmarks/evaluate.py 5000 5 20000 64 --shots 0
    python benchmarks/evaluate.py 50000 9 1000 512 --device cuda    heads and fusers are applied on a GPU

Images lie around their class's text vector, so that text is right of many and `guarded` learns from the batch. One
part after another is scored as a worker scores it, in a process of its own: without labels, and with one image a class.
"""

import argparse
import json
import multiprocessing
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipray import schema
from clipray.artefacts.evaluations import Task
from clipray.config import Fuser, Head
from clipray.store import Store

FUSERS = ("log_avg", "c_log_avg", "nlc", "guarded")


class Peak(threading.Thread):
    """The most memory that this process has held, looked at often: bytes of its own, without those of mapped files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            told = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(re.search(r"RssAnon:\s+(\d+)", told)[1]) * 1024)
            time.sleep(0.01)


def matrix(values: np.ndarray, precision: str) -> pa.Array:
    """A column of vectors."""
    flat = pa.array(values.astype({"fp16": np.float16, "fp32": np.float32}[precision]).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def problem(
    root: str, images: int, backbones: int, classes: int, dim: int, train: int, precision: str
) -> None:
    """Write embeddings and class vectors: each image a unit class vector and as much noise.

    Args:
        train: images of the train split, one for each of the first classes.
    """
    store, rng = Store(root), np.random.default_rng(0)
    for m in range(backbones):
        text_CD = rng.standard_normal((classes, dim), np.float32)
        text_CD /= np.linalg.norm(text_CD, axis=1, keepdims=True)
        table = pa.table({"name": ["x"] * classes, "weight": matrix(text_CD, "fp32")})
        store.write_table(f"c-m{m}/classifier.parquet", table)
        store.finish(f"c-m{m}", {})
        for split, count in (("test", images), ("train", train)):
            labels = np.arange(count) % classes
            x_ND = rng.standard_normal((count, dim), np.float32) / dim**0.5 + text_CD[labels]
            ids = [f"{split}{i:07d}" for i in range(count)]
            columns = [ids, pa.array(labels), matrix(x_ND, precision), pa.nulls(count, pa.string())]
            table = pa.table(columns, schema=schema.embeddings(dim, precision))
            store.write_table(f"e-{split}-m{m}/all.parquet", table)
            store.finish(f"e-{split}-m{m}", {}, shards=["all.parquet"])


def asked(images: int, backbones: int, alone: bool = True) -> Task:
    """What an evaluation is asked of them."""
    names = tuple(f"m{m}" for m in range(backbones))
    return Task(
        dataset="made",
        backbones=names,
        classifiers=tuple(f"c-{name}" for name in names),
        scales=((30.0, 0.0),) * backbones,
        embeddings={s: tuple(f"e-{s}-{name}" for name in names) for s in ("test", "train")},
        expected=images,
        heads=(Head(name="zero_shot", head="zero_shot"),),
        fusers=tuple(Fuser(name=name, fuser=name) for name in FUSERS),
        shots=(1,),
        seeds=1,
        folds=5,
        alone=alone,
    )


def measure(
    root: str, size: tuple[int, ...], shots: tuple[int, ...], alone: bool, device: str
) -> dict:
    """Score the parts of some numbers of shots; seconds, peak memory, and what each asked for."""
    from clipray.steps.evaluate import parts, score

    images, backbones, classes, dim = size
    task, store = asked(images, backbones, alone), Store(root)
    facts = {"images": images, "backbones": backbones, "classes": classes, "dim": dim}
    facts["device"] = device
    peak = Peak()
    peak.start()
    for k in shots:
        used = time.process_time()
        part, start = parts.Part("zero_shot", (k,)), time.perf_counter()
        _, tables = score.score_part(store, task, "e", part, device)
        rows = tables["scores.parquet"].to_pandas()
        top1 = rows[rows["metric"] == "top1"].set_index("method")["value"].round(4)
        facts[f"shots_{k}"] = {
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(time.process_time() - used, 1),
            "peak_mb": round(peak.most / 1e6),
            "asked_mb": round(parts.memory(task, part, classes, [dim] * backbones) / 1e6),
            "top1": {name: top1[name] for name in FUSERS if name in top1},
        }
    return facts


def main() -> None:
    """Make a problem in one process and measure in another, so that making it counts for nothing."""
    parser = argparse.ArgumentParser()
    for name in ("images", "backbones", "classes", "dim"):
        parser.add_argument(name, type=int)
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--train", type=int, help="images of the train split; one a class where left out"
    )
    parser.add_argument("--no-alone", action="store_true", help="no fuser on one backbone")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp16", choices=["fp16", "fp32"])
    told = parser.parse_args()
    size = (told.images, told.backbones, told.classes, told.dim)
    train = told.classes if told.train is None else told.train
    own = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as root:
        maker = own.Process(target=problem, args=(root, *size, train, told.precision))
        maker.start()
        maker.join()
        with own.Pool(1) as pool:
            how = tuple(told.shots), not told.no_alone, told.device
            print(json.dumps(pool.apply(measure, (root, size, *how))))


if __name__ == "__main__":
    main()
