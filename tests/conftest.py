"""What several tests share: one local Ray, a local S3, and small campaigns."""

import logging
import os
import re
from pathlib import Path

import pytest

from tests.s3 import served

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two cores shared by Ray's workers: threads that wait for each other crawl


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory):
    """One local Ray of two CPUs for the whole session: starting one takes ten seconds."""
    import ray

    from clipray.config import Compute
    from clipray.steps import cluster

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    cluster.connect(Compute(), verbose=False)
    yield ray
    ray.shutdown()


class Requests(logging.Handler):
    """The lines that the server logs, one a request."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))

    def count(self, method: str, key: str) -> int:
        return sum(f'"{method} ' in line and key in line for line in self.lines)


@pytest.fixture(scope="module")
def requests():
    """Every request to an S3 endpoint with a bucket, to which the usual environment variables point."""
    log, handler = logging.getLogger("werkzeug"), Requests()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    with served("bucket"):
        yield handler
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def campaign(tmp_path: Path):
    """Makes a small campaign in a workspace of its own; keywords override."""
    from clipray.config import Campaign, parse

    def make(**changes):
        values = {
            "name": "small",
            "workspace": str(tmp_path / "workspace"),
            "data_root": str(tmp_path),
            "datasets": ["digits"],
            "backbones": ["vit-p6-36"],
            "precision": "fp32",
            "heads": ["zero_shot"],
            "fusers": ["log_avg", "c_log_avg"],
            "shots": [1],
            "seeds": 2,
            "tracking": {"enabled": False},
        }
        return parse(Campaign, values | changes, "test")

    return make
