"""Head nodes of their own for tests: free ports, a plain environment, and an end that touches no other Ray."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("RAY_", "AWS_")  # variables of the surroundings that no test inherits
HEAD_PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "metrics-export-port",
)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def plain_environment(**more: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(OURS)} | more


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def end(folder: Path) -> None:
    """End every process of the Ray whose temporary folder this is, and no other."""
    for pid in processes():
        with contextlib.suppress(OSError):
            if f"RAY_TMPDIR={folder}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(
                b"\0"
            ):
                os.kill(pid, signal.SIGKILL)


def apart(code: str, *arguments: str, environment: dict[str, str], timeout: int):
    """Run a script in a process of its own, which imports this checkout; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, str(ROOT)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def started(command: list, environment: dict[str, str], folder: Path) -> subprocess.Popen:
    """Start a head node and wait until it runs; Ray gives its raylet a time that a busy machine may exceed."""
    for attempt in range(3):
        log = folder / f"log{attempt}"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, env=environment, stdout=sink, stderr=sink, start_new_session=True
            )
        while process.poll() is None and "Ray runtime started" not in log.read_text():
            time.sleep(0.2)
        if process.poll() is None:
            return process
        end(Path(environment["RAY_TMPDIR"]))
    raise AssertionError(log.read_text())
