"""Latency and throughput of `jobs.serve`, against calling the model in a loop, in one run.

    python benchmarks/serve.py workspace/fused/models/NAME

Starts the server as a user would, on a free port of this machine, and asks it with one client and with several; then
calls the same model here, image by image and all at once. Every answer of the server is compared with the model's own.
Images are made here, 64 pixels a side. Prints one JSON object; ratios count, seconds are those of this machine.
"""

import argparse
import base64
import io
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

import clipray
from clipray.fused import FusedModel
from clipray.images import sample


def made(count: int) -> list[bytes]:
    """Encoded images, no two alike."""
    draw, found = np.random.default_rng(0), [sample()]
    for _ in range(count - 1):
        sink = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(sink, "PNG")
        found.append(sink.getvalue())
    return found


def ask(url: str, images: list[bytes]) -> list[dict]:
    """Labels of one request's images."""
    body = json.dumps({"images": [base64.b64encode(one).decode() for one in images]}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())["predictions"]


def timed(function, every: list) -> tuple[list, list[float], float]:
    """What a function gives of each of several things, seconds of each, and of all."""
    found, seconds, start = [], [], time.perf_counter()
    for one in every:
        before = time.perf_counter()
        found.append(function(one))
        seconds.append(time.perf_counter() - before)
    return found, seconds, time.perf_counter() - start


def of_server(url: str, images: list[bytes], clients: int) -> tuple[dict, list[str]]:
    """Figures of the server, and its labels."""
    ask(url, images[:1])
    answers, seconds, whole = timed(lambda one: ask(url, [one])[0], images)
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        together = [rows[0] for rows in pool.map(lambda one: ask(url, [one]), images)]
    concurrent = time.perf_counter() - start
    _, _, batched = timed(
        lambda at: ask(url, images[at : at + 32]), list(range(0, len(images), 32))
    )
    assert [row["label"] for row in together] == [row["label"] for row in answers]
    figures = {
        "median_ms": 1000 * statistics.median(seconds),
        "p95_ms": 1000 * float(np.percentile(seconds, 95)),
        "one_client_images_per_second": len(images) / whole,
        f"{clients}_clients_images_per_second": len(images) / concurrent,
        "requests_of_32_images_per_second": len(images) / batched,
    }
    return figures, [row["label"] for row in answers]


def of_model(model: FusedModel, images: list[bytes]) -> tuple[dict, list[str]]:
    """Figures of calls in a loop, and the labels."""
    model.predict(images[:1])
    rows, seconds, whole = timed(lambda one: model.predict([one])["label"][0], images)
    _, _, batched = timed(model.predict, [images])
    figures = {
        "median_ms": 1000 * statistics.median(seconds),
        "one_by_one_images_per_second": len(images) / whole,
        "all_at_once_images_per_second": len(images) / batched,
    }
    return figures, rows


def main() -> None:
    """Start, ask, call, compare, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--clients", type=int, default=8)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jobs.serve", given.model, "--port", str(port)]
    server = subprocess.Popen([*command, "--address", "local"], stdout=subprocess.PIPE, text=True)
    try:
        start = time.perf_counter()
        url = json.loads(server.stdout.readline())["url"]
        started = time.perf_counter() - start
        images = made(given.images)
        served, labels = of_server(url, images, given.clients)
    finally:
        server.terminate()
        server.wait(60)
    called, own = of_model(clipray.load(given.model), images)
    ratio = (
        served[f"{given.clients}_clients_images_per_second"]
        / called["one_by_one_images_per_second"]
    )
    told = {"start_s": started, "served": served, "called": called, "labels_equal": labels == own}
    print(json.dumps(told | {"served_to_loop": ratio}, indent=2))


if __name__ == "__main__":
    main()
