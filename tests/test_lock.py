"""One job at a time in a workspace, on a folder and on S3's kind of store alike."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from clipray import lock
from clipray.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOOK", 0.05)
    monkeypatch.setattr(lock, "SETTLED", 0.05)
    return Store(str(tmp_path))


def write(store, **changes):
    store.write_json(lock.FILE, lock._mine("jobs.run other") | {"beat": time.time()} | changes)


def test_it_is_there_while_it_is_held_and_gone_after(store):
    with lock.held(store, "jobs.run demo"):
        assert lock.owner_of(store)["job"] == "jobs.run demo"
    assert lock.owner_of(store) is None
    assert not store.exists(lock.FILE)


def test_a_second_job_waits_says_for_whom_and_goes_on(store, capsys):
    order = []

    def second():
        with lock.held(store, "jobs.run second"):
            order.append("second")

    with lock.held(store, "jobs.run first"):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.4)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
    assert "waiting: jobs.run first of" in capsys.readouterr().err


def test_of_many_that_come_at_once_one_works_at_a_time(store):
    inside, most = [], []

    def work():
        with lock.held(store, "jobs.run many"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1] * 5


def test_a_job_that_died_on_this_machine_is_found_out_at_once(store):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(store, pid=gone.pid)
    with lock.held(store, "jobs.run next"):
        assert lock.owner_of(store)["job"] == "jobs.run next"


def wait(holds, seconds: float = 30.0) -> None:
    """Wait until something holds; a busy machine needs longer."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("age", "dead"), [(10.0, False), (lock.SILENT + 1, True)])
def test_a_silent_job_elsewhere_is_waited_for_by_minutes_only(store, age, dead):
    write(store, host="elsewhere", beat=time.time() - age)
    assert (lock.owner_of(store) is None) == dead


def test_it_is_renewed_and_a_stolen_one_is_told_and_left_alone(store, monkeypatch, capsys):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    with lock.held(store, "jobs.run demo"):
        before = lock.owner_of(store)["beat"]
        wait(lambda: lock.owner_of(store)["beat"] > before)
        write(store, host="elsewhere")
        said = ""

        def told() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return "works in this workspace too" in said

        wait(told)
    assert json.loads(store.read(lock.FILE))["host"] == "elsewhere"
    assert os.path.exists(store.place(lock.FILE))
