"""Tell that the head of the cluster is gone: a minute later Ray's core ends this process, without a word."""

import socket
import threading
import time
from collections.abc import Callable

from clipray.progress import tell

EVERY, PATIENCE = 5.0, 20.0  # seconds between two looks, and without an answer before it is told


def watch(
    address: str,
    joined: Callable[[], bool],
    tell: Callable[[str], None] = tell,
    every: float = EVERY,
    patience: float = PATIENCE,
) -> threading.Thread:
    """Start a thread that looks whether a cluster's head answers, and tells once each time that it does not.

    It is no error to be raised: a head that is started again in time goes on with this job.

    Args:
        address: host:port of the head.
        joined: whether this process is still in the cluster; the thread ends where it is not.
        tell: takes the words.
    """
    host, _, port = address.rpartition(":")
    place = (host.strip("[]"), int(port))

    def look() -> None:
        heard, told = time.monotonic(), False
        while joined():
            if _answers(place, every):
                heard, told = time.monotonic(), False
            elif not told and time.monotonic() - heard >= patience:
                tell(_words(address, patience))
                told = True
            time.sleep(every)

    thread = threading.Thread(target=look, daemon=True, name="contact")
    thread.start()
    return thread


def _answers(place: tuple[str, int], seconds: float) -> bool:
    try:
        socket.create_connection(place, seconds).close()
    except OSError:
        return False
    return True


def _words(address: str, patience: float) -> str:
    return (
        f"error: the head of the Ray cluster at {address} has not answered for {patience:.0f} s, and without it this "
        "job ends within a minute. What is finished is kept: on a cluster that runs, the same command continues."
    )
