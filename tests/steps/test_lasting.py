"""What Ray starts is killed with the thread that started it, unless that thread lasts."""

import subprocess
import sys
import threading

import pytest

from clipray.steps.lasting import lasting

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not kill so")


def child(found: list) -> None:
    """Start a process as Ray starts its own."""
    from ray._private.utils import set_kill_on_parent_death_linux

    found.append(subprocess.Popen(["sleep", "60"], preexec_fn=set_kill_on_parent_death_linux))


def in_a_thread(start) -> subprocess.Popen:
    found: list[subprocess.Popen] = []
    thread = threading.Thread(target=start, args=(found,))
    thread.start()
    thread.join()
    return found[0]


@linux
def test_what_a_thread_started_outlives_the_thread():
    mortal = in_a_thread(child)
    assert mortal.wait(10) < 0  # killed
    process = in_a_thread(lambda found: lasting(lambda: child(found)))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.kill()
    process.wait()


def test_errors_come_back_and_the_main_thread_does_it_itself():
    threads = []
    lasting(lambda: threads.append(threading.current_thread()))
    assert threads == [threading.main_thread()]
    raised = []

    def broken() -> None:
        raise OSError("no room")

    def start() -> None:
        with pytest.raises(OSError, match="no room") as error:
            lasting(broken)
        raised.append(error.value)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(raised) == 1
