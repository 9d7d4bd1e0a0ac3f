"""How the driver's time, memory and requests grow with images and with datasets.

    python benchmarks/scale.py                        all sizes, each in a process of its own
    python benchmarks/scale.py plan 100000            one of them
    python benchmarks/scale.py sets 100
    python benchmarks/scale.py s3 1000
    python benchmarks/scale.py evaluate 100000
    python benchmarks/scale.py report 1000
    python benchmarks/scale.py embed 10000 --shrink 7

`plan`: a test split of tiny "images" in Parquet files and nine backbones: the first plan, which makes the index, the
same once all is embedded (manifests are written, no model runs), and declaring it so; then the weight of the largest
task. `sets`: datasets of ten images and ten backbones, all embedded: a plan with nothing to do. Requests are files that
the store and the sources' storage are asked for. `s3`: the same with the workspace on an S3 server, which is another
process on this machine and takes its share of the cores; requests are those that S3 answers. `evaluate`: what
`evaluate.py` beside this file says of test images of three backbones and 1,000 classes. `report`: ranks and the page of
a campaign over that many datasets, of made-up scores as the tests of the report have them (178 rows a dataset).
`embed`: what `scale_embed.py` beside this file says of images that nine backbones embed on a made-up GPU.
"""

import json
import os
import pickle
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the tests make up

from clipray import schema, snapshot
from clipray.artefacts.index import Shard
from clipray.config import CONFIGS, Campaign
from clipray.progress import hush
from clipray.report import files
from clipray.sources import storage
from clipray.steps import campaign as run
from clipray.steps import campaign_ids
from clipray.steps.embed import plan as embed
from clipray.steps.publish.standings import standings
from clipray.steps.tally import Tally
from clipray.steps.todo import Plan
from clipray.store import Store
from tests.report import made_scores

FILE, GROUP = 50_000, 5_000  # rows of a file and of a row group
SIZES = (("plan", 10**4), ("plan", 10**5), ("plan", 10**6))
SETS = (("sets", 10), ("sets", 100), ("sets", 1000), ("s3", 10), ("s3", 100), ("s3", 1000))
TESTS = (("evaluate", 10**4), ("evaluate", 10**5))
REPORTS = (("report", 10), ("report", 100), ("report", 1000))
EMBEDDED = (("embed", 10**4, "--shrink", 7), ("embed", 10**5, "--shrink", 7))
# kinds that files beside this one measure, and what those are told behind the size
OTHERS = {"evaluate": ("evaluate.py", "3", "1000", "64"), "embed": ("scale_embed.py",)}
CALLS = ("read", "read_many", "write", "names", "exists")


def dataset(root: Path, name: str, images: int) -> str:
    """A dataset with a test split of tiny files that are no images; its YAML file."""
    (root / name).mkdir(parents=True)
    for number, first in enumerate(range(0, images, FILE)):
        rows = range(first, min(first + FILE, images))
        cells = [b"%s %d" % (name.encode(), row) for row in rows]
        table = pa.table({"image": cells, "label": [row % 10 for row in rows]})
        pq.write_table(table, root / name / f"test-{number:03d}.parquet", row_group_size=GROUP)
    entry = {"name": name, "format": "parquet", "uri": str(root / name), "splits": ["test"]}
    entry |= {"classnames": [f"class {n}" for n in range(10)], "templates": ["a {c}"]}
    (root / f"{name}.yaml").write_text(yaml.safe_dump(entry))
    return str(root / f"{name}.yaml")


def backbones(root: Path, count: int) -> list[str]:
    """Entries with one architecture and weights, under names of their own."""
    made = CONFIGS / "backbones" / "vit-p6-36"
    files = {"weights": str(made / "model.safetensors")}
    files["config"] = str(made / "clipray-vit-p6-36.json")
    paths = []
    for number in range(count):
        path = root / f"b{number}.yaml"
        entry = {"name": f"b{number}", "architecture": "clipray-vit-p6-36"}
        path.write_text(yaml.safe_dump(entry | files))
        paths.append(str(path))
    return paths


def count_requests(remote: bool) -> Counter:
    """Counts what storage is asked for from now on."""
    asked: Counter[str] = Counter()

    def counting(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments, **named):
            # S3's operation, or a call here: of `read_many` each file counts
            operation = arguments[1] if remote else name
            asked[operation] += len(arguments[1]) if name == "read_many" else 1
            return original(*arguments, **named)

        setattr(owner, name, call)

    if remote:
        from aiobotocore.client import AioBaseClient

        counting(AioBaseClient, "_make_api_call")
        return asked
    for name in CALLS:
        counting(Store, name)
    for name in ("_local_entries", "opened"):
        counting(storage, name)
    return asked


def timed(words: str, facts: dict, step: object) -> object:
    """Run a step, and record its seconds and the process's peak memory after it."""
    start = time.perf_counter()
    result = step()
    facts[f"{words}_s"] = round(time.perf_counter() - start, 2)
    facts[f"{words}_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return result


def declare(todo: Plan) -> None:
    """Declare all embedded, as the driver does when workers have told of their shards; ids are found by reading."""
    told = {}
    for place, work in todo.works.items():
        told[place] = dict.fromkeys(work.addresses, Tally(set(work.todo)))
    campaign_ids.found(todo, told)
    for place, work in todo.works.items():
        tally = Tally({shard.name for shard in work.shards()}, int(work.index.content, 16))
        told[place] = dict.fromkeys(work.addresses, tally)
    run._settle(todo, {}, told)
    snapshot.refresh(todo.store, [dataset.name for dataset in todo.datasets])


@contextmanager
def bucket() -> Iterator[str]:
    """Start an S3 server in a process of its own; the URI of a bucket on it."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "key"}
    os.environ |= {"AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as server:
        try:
            while True:
                with socket.socket() as door:
                    if door.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            s3fs.S3FileSystem().mkdir("scale")
            yield "s3://scale"
        finally:
            server.kill()


def measure(kind: str, count: int) -> dict:
    """The figures of one size."""
    hush()
    place = bucket() if kind == "s3" else nullcontext("")
    with tempfile.TemporaryDirectory() as folder, place as remote:
        root = Path(folder)
        images, sets, models = (count, 1, 9) if kind == "plan" else (10, count, 10)
        names = [dataset(root, f"set{number}", images) for number in range(sets)]
        campaign = Campaign(
            workspace=remote or str(root / "workspace"),
            datasets=names,
            backbones=backbones(root, models),
            precision="fp32",
            shots=(),
        )
        facts = {"kind": kind, "count": count}
        facts["start_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        todo = timed("first_plan", facts, lambda: run.plan(campaign, dry=True))
        tasks = [item["task"] for work in todo.works.values() for item in embed.items(work)]
        facts |= {"tasks": len(tasks), "largest_task_bytes": max(map(len, tasks))}
        shards = [shard for task in tasks for shard in pickle.loads(task)["shards"]]
        facts["images_told"] = sum(Shard(*shard).rows for *shard, _ in shards)
        timed("declare", facts, lambda: declare(todo))
        asked = count_requests(bool(remote))
        again = timed("plan_again", facts, lambda: run.plan(campaign, dry=True))
        timed("finish_again", facts, lambda: run._settle(again, {}, {}))
        assert again.images == 0
        facts["requests_per_dataset"] = round(sum(asked.values()) / sets, 2)
        facts["requests"] = dict(asked)
    return facts


def report(sets: int) -> dict:
    """The figures of a report over some datasets."""
    own = made_scores.campaign(1)
    names = [[f"set{number}"] * len(own) for number in range(sets)]
    scores = pa.concat_tables(own.set_column(0, "dataset", [name]) for name in names)
    facts = {"kind": "report", "count": sets, "rows": len(scores)}
    with tempfile.TemporaryDirectory() as folder:
        ranked = timed("standings", facts, lambda: standings(scores))
        none, store = schema.FAILURES.empty_table(), Store(folder)
        about = {"name": "scale"}
        made = timed("page", facts, lambda: files.write(store, "x", scores, none, about, ranked))
        facts["page_mb"] = round(Path(made["report"]).stat().st_size / 1e6, 2)
    return facts


def main() -> None:
    """Measure one size here, or each in a process of its own."""
    if sys.argv[1:2] and sys.argv[1] in OTHERS:
        _, kind, size, *more = sys.argv
        file, *own = OTHERS[kind]
        command = [sys.executable, Path(__file__).parent / file, size, *own, *more]
        subprocess.run(command, check=True)
        return
    if sys.argv[1:2] == ["report"]:
        print(json.dumps(report(int(sys.argv[2]))))
        return
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
        return
    for size in (*SIZES, *SETS, *TESTS, *REPORTS, *EMBEDDED):
        command = [sys.executable, __file__, *map(str, size)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
