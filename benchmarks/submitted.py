"""Submit the demo to a cluster of three nodes, with S3 in and out: `jobs.submit`, and what lies in the bucket then.

    python benchmarks/submitted.py

A head with a dashboard and two nodes, one CPU each, and an S3 server, all on this machine. The images are
scikit-learn's digits as PNG files in a bucket, the workspace is in the same bucket. The nodes know no key of S3 and
nothing of this checkout: both come with the submission. Prints the command, its exit code, seconds, the last lines of
its log, and the objects of each folder.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import boto3
import chaos_rig as rig
from sklearn.datasets import load_digits

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
IMAGES = 600  # of 1,797
CHANGES = (
    "workspace=s3://bucket/demo",
    "datasets=[s3://bucket/digits, colours]",
    "shots=[1, 4]",
    "tracking.enabled=false",
)


def digits(folder: Path) -> None:
    """Write scikit-learn's digits as <split>/<word>/<number>.png, every other one for the test."""
    from PIL import Image

    bunch = load_digits()
    for number, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        if number == IMAGES:
            break
        place = folder / ("test" if number % 2 else "train") / WORDS[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).save(place / f"{number}.png")
    templates = folder / "zeroshot_classification_templates.txt"
    templates.write_text("a photo of the number {c}\n")


def upload(folder: Path, door) -> None:
    """Put a folder's files below `digits/` of the bucket."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            door.upload_file(str(path), "bucket", f"digits/{path.relative_to(folder)}")


def folders(door) -> dict[str, tuple[int, int]]:
    """Objects and bytes by the first two parts of their keys."""
    count, size = Counter(), Counter()
    for page in door.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for item in page.get("Contents", []):
            name = "/".join(item["Key"].split("/")[:2])
            count[name] += 1
            size[name] += item["Size"]
    return {name: (count[name], size[name]) for name in sorted(count)}


def submitted(folder: Path, dashboard: int, proxy: rig.Proxy) -> tuple[int, float, Path]:
    """Run `jobs.submit`; its exit code, seconds, and its log."""
    command = [sys.executable, "-m", "jobs.submit", "configs/demo.yaml"]
    for text in CHANGES:
        command += ["--set", text]
    environment = rig.surroundings(folder / "ray") | rig.KEYS
    environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
    environment["RAY_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    log = folder / "submit.log"
    start = time.monotonic()
    with log.open("wb") as sink:
        code = subprocess.run(
            command, env=environment, stdout=sink, stderr=sink, cwd=rig.ROOT
        ).returncode
    return code, time.monotonic() - start, log


def main() -> None:
    """Start all, submit, tell what came of it, end all."""
    folder = Path(tempfile.mkdtemp(prefix="sub-", dir="/tmp"))
    (folder / "ray").mkdir()
    os.environ.update(rig.surroundings(folder / "ray"))
    here = Path(sys.executable).parent
    dashboard = rig.free_port()
    nodes = rig.Nodes(folder / "ray", dashboard=dashboard)
    try:
        digits(folder / "digits")
        with rig.bucket() as proxy:
            keys = {key.lower(): value for key, value in rig.KEYS.items()}
            door = boto3.client(
                "s3",
                endpoint_url=f"http://127.0.0.1:{proxy.port}",
                region_name=keys.pop("aws_default_region"),
                **keys,
            )
            upload(folder / "digits", door)
            # the command is found by PATH, and this checkout must come with the submission
            nodes.start(PYTHONPATH="", PATH=f"{here}:{os.environ['PATH']}")
            code, seconds, log = submitted(folder, dashboard, proxy)
            lines = log.read_text().splitlines()
            print("\n".join(lines[:12]), "...", *lines[-25:], sep="\n")
            print(
                json.dumps({"exit_code": code, "seconds": round(seconds), "bucket": folders(door)})
            )
    finally:
        nodes.end()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
