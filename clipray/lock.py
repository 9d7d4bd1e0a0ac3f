"""One job at a time in a workspace: a file that says who works there, renewed while that job lives.

Two jobs at once would lose nothing, for artefacts are written whole and are equal. But they would compute all of it
twice. A job that died is found out: at once on its own machine, and after `SILENT` seconds elsewhere.
"""

import contextlib
import getpass
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from clipray.errors import StoreError
from clipray.progress import say
from clipray.store import Store

FILE = "lock.json"
BEAT, SILENT = (
    20.0,
    150.0,
)  # seconds: between signs of life, and without one until the owner counts as dead
SETTLED = 0.5  # seconds after which of two jobs that wrote at once the last one stands
LOOK = 5.0  # seconds between looks while another job works


@contextlib.contextmanager
def held(store: Store, job: str) -> Iterator[None]:
    """Hold a workspace's lock; wait, and say so, while another job has it.

    Args:
        job: what works, for people who wait: `jobs.run demo`.
    """
    owner = _mine(job)
    _acquire(store, owner)
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, owner, done), daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join(BEAT)
        _release(store, owner)


def _mine(job: str) -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container's user need not have a name
    return {
        "token": secrets.token_hex(8),
        "job": job,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user,
        "since": time.time(),
    }


def owner_of(store: Store) -> dict[str, Any] | None:
    """Read who works in a workspace: `token, job, host, pid, user, since, beat`; None where nobody does."""
    found = store.read_json(FILE)
    return None if found is None or _dead(found) else found


def _dead(owner: dict[str, Any]) -> bool:
    """Tell whether an owner has ended without releasing the lock."""
    if time.time() - owner["beat"] > SILENT:
        return True
    if owner["host"] != socket.gethostname() or owner["pid"] == os.getpid():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _acquire(store: Store, mine: dict[str, Any]) -> None:
    told = None
    while True:
        other = owner_of(store)
        if other is None:
            _write(store, mine)
            time.sleep(SETTLED)
            if (store.read_json(FILE) or {}).get("token") == mine["token"]:
                return
            continue
        if other["token"] != told:
            told = other["token"]
            since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(other["since"]))
            say(
                f"waiting: {other['job']} of {other['user']} on {other['host']} (process {other['pid']}) works in "
                f"{store.uri} since {since}; this job goes on when it ends, or {SILENT:.0f} s after it died"
            )
        time.sleep(LOOK)


def _write(store: Store, mine: dict[str, Any]) -> None:
    store.write_json(FILE, {**mine, "beat": time.time()})


def _beat(store: Store, mine: dict[str, Any], done: threading.Event) -> None:
    """Renew the lock until done; a store that does not answer for a while costs no result."""
    while not done.wait(BEAT):
        with contextlib.suppress(StoreError):
            now = store.read_json(FILE)
            if now is not None and now["token"] != mine["token"]:
                say(f"warning: {now['job']} on {now['host']} works in this workspace too")
                return
            _write(store, mine)


def _release(store: Store, mine: dict[str, Any]) -> None:
    with contextlib.suppress(StoreError):
        if (store.read_json(FILE) or {}).get("token") == mine["token"]:
            store.remove(FILE)
