"""What `chaos.py` breaks: a cluster of several nodes on this machine, an S3 server behind a proxy, an MLflow server.

All of it listens on loopback, keeps its files in one temporary folder, and ends with its owner.
"""

import contextlib
import functools
import http.client
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
KEYS |= {"AWS_DEFAULT_REGION": "us-east-1"}
AGENTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port")
AGENTS += ("runtime_env_agent_port",)
SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """The environment of nodes and jobs: this one without its own Ray, in a folder of their own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    own = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "disabled",  # a cluster of this machine alone, on loopback
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_worker_niceness": "0",  # beside the niceness of this process
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")])),
    }
    return kept | own | more


def workers(folder: Path, title: str) -> list[int]:
    """Processes of the cluster whose title, as Ray sets it, begins with `title`."""
    mark = f"RAY_TMPDIR={folder}".encode()
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            named = (path / "cmdline").read_bytes().startswith(title.encode())
            if named and mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


class Nodes:
    """A head and other nodes, each a raylet of its own with a few CPUs.

    Args:
        folder: a short path (sockets have long names).
        others: nodes beside the head.
        cpus: of each node.
        dashboard: the port at which the head takes jobs; none where it is 0.
    """

    def __init__(self, folder: Path, others: int = 2, cpus: int = 1, dashboard: int = 0):
        self.folder, self.others, self.cpus = folder, others, cpus
        self.dashboard = dashboard
        self.cluster, self.added = None, 0

    def start(self, **variables: str) -> None:
        """Start all nodes; `variables` are set in their environment."""
        from ray.cluster_utils import Cluster

        _ports_at_once()
        self.cluster = Cluster()
        with _set(variables):
            for _ in range(1 + self.others):
                self.add()

    def add(self) -> None:
        """Add one node; the first one is the head."""
        head = not self.cluster.list_all_nodes()
        self.added += 1
        self.cluster.add_node(
            wait=False,
            # each unpacks a submission's working directory over what is there: under the feet of another's
            runtime_env_dir_name=f"environments{self.added}",
            num_cpus=self.cpus,
            include_dashboard=head and bool(self.dashboard),
            dashboard_port=self.dashboard or free_port(),
            **{name: free_port() for name in AGENTS},
            object_store_memory=10**8,
        )
        deadline = time.monotonic() + 180  # Ray's own limit is 30 s, which a busy machine exceeds
        wanted = len(self.cluster.list_all_nodes())
        while len(self.cluster.global_state._live_node_ids()) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("a node did not join")
            time.sleep(0.2)

    def remove(self) -> None:
        """End one node that is not the head, with all of its processes, without notice."""
        node = max(self.cluster.worker_nodes, key=lambda one: len(_below(one)))
        self.cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        """End all nodes and what they started."""
        if self.cluster is None:
            return
        cluster, self.cluster = self.cluster, None
        with contextlib.suppress(Exception):
            cluster.shutdown()
        for pid in workers(self.folder, "ray::"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    @property
    def address(self) -> str:
        """Where jobs join."""
        return self.cluster.address


@contextlib.contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """The environment with other variables, and afterwards as it was."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@functools.cache
def _ports_at_once() -> None:
    """Write down the agents' ports before a raylet starts: it waits 15 s for them, which a busy machine exceeds."""
    from ray import _raylet
    from ray._private.node import Node

    real = Node.start_raylet

    def start_raylet(self: Node, *args, **kwargs) -> None:
        names = ("DASHBOARD_AGENT_LISTEN", "METRICS_AGENT", "METRICS_EXPORT", "RUNTIME_ENV_AGENT")
        for name, own in zip(names, AGENTS, strict=True):
            kind, port = getattr(_raylet, f"{name}_PORT_NAME"), getattr(self._ray_params, own)
            _raylet.persist_port(self._session_dir, self._node_id, kind, port)
        real(self, *args, **kwargs)

    Node.start_raylet = start_raylet


def _below(node) -> list[int]:
    """Processes of a node's raylet that work: the node that is removed should be a busy one."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            name = (path / "cmdline").read_bytes()
            if parent == raylet.process.pid and not name.startswith(b"ray::IDLE"):
                found.append(pid)
    return found


class Proxy:
    """An HTTP proxy before an S3 server, which can be down, slow, or ask to slow down."""

    def __init__(self, target: int):
        self.target, self.port = target, free_port()
        self.delay, self.refused, self.every = 0.0, 0, 0
        self.requests = 0
        self.written: list[str] = []  # paths of what was put
        self.server = None

    def up(self) -> None:
        """Listen."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                if owner.server is not self.server:
                    self.close_connection = True  # opened before the server went down
                    return
                super().handle_one_request()

            def __getattr__(self, name: str) -> Callable:
                if name.startswith("do_"):
                    return lambda: owner.pass_on(self)
                raise AttributeError(name)

            def log_message(self, *args) -> None:
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        ThreadingHTTPServer.daemon_threads = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Listen no more: connections are refused, and open ones answer nothing."""
        server, self.server = self.server, None
        server.shutdown()
        server.server_close()

    def pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request with what the server says, or refuse it."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests += 1
        time.sleep(self.delay)
        if self.every and self.requests % self.every:
            self.refused += 1
            answer, headers, status = SLOW_DOWN, [("Content-Type", "application/xml")], 503
        else:
            link = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
            link.request(handler.command, handler.path, body, dict(handler.headers))
            response = link.getresponse()
            answer, headers, status = response.read(), response.getheaders(), response.status
            link.close()
            if handler.command == "PUT":
                self.written.append(handler.path)
        skipped = {"transfer-encoding", "connection", "content-length", "server", "date"}
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in skipped:
                handler.send_header(name, value)
        size = {k.lower(): v for k, v in headers}.get("content-length")
        length = size if handler.command == "HEAD" and size else len(answer)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer)


@contextlib.contextmanager
def bucket() -> Iterator[Proxy]:
    """An S3 server with a bucket named `bucket`, behind a proxy that is up."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    ).create_bucket(Bucket="bucket")
    proxy = Proxy(port)
    proxy.up()
    try:
        yield proxy
    finally:
        server.stop()


class Tracker:
    """An MLflow server on this machine."""

    def __init__(self, folder: Path):
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", f"{self.folder}/files", "--port", str(self.port)]
        nothing = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdout=nothing, stderr=nothing, start_new_session=True
        )
        for _ in range(1500):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server did not start")

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of that size, which this process must have the right to; yields what resizes it.

    Raises:
        PermissionError: it may not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here: {done.stderr.strip()}")

    def resize(more: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={more}k", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def words(log: str) -> str:
    """What a job's log says of its end, in one line; "TRACEBACK" where it ended in one."""
    if "Traceback (most recent call last)" in log:
        last = [line for line in log.splitlines() if line.strip()][-1]
        return f"TRACEBACK {last[:200]}"
    found = re.findall(r"^error: (.*)$", log, re.M)
    return found[-1][:160] if found else ""
