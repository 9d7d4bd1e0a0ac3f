"""Counters reach the page that Prometheus reads, asked for as Prometheus does."""

import re
import time
import urllib.request
from pathlib import Path

from clipray.steps import metrics


def page(ray) -> str:
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


def test_what_is_counted_is_offered_with_its_campaign(local_ray):
    metrics.count("clipray_images_embedded", 3, "mine")
    metrics.count("clipray_images_embedded", 4, "mine")
    metrics.count("clipray_images_failed", 0, "mine")
    deadline = time.monotonic() + 90
    found = None
    while found is None and time.monotonic() < deadline:
        time.sleep(1)
        found = re.search(
            r'^ray_clipray_images_embedded\S*\{[^}]*campaign="mine"[^}]*\} (\S+)$',
            page(local_ray),
            re.M,
        )
        found = found if found and float(found[1]) == 7 else None
    assert found, "Ray does not offer the counter"
    failed = r'^ray_clipray_images_failed\S*\{[^}]*campaign="mine"'
    assert not re.search(failed, page(local_ray), re.M), "nothing failed, and it is counted"


def test_the_readme_names_every_counter():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert [name for name in metrics.COUNTED if f"`{name}`" not in text] == []


def test_without_ray_nothing_is_counted(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(metrics, "_counter", lambda name: 1 / 0)
    metrics.count("clipray_shards_embedded", 1, "mine")
