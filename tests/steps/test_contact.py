"""A head that goes is told once, on real sockets; one that answers is not."""

import socket
import time

from clipray.steps import contact


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def listening(port: int = 0) -> socket.socket:
    door = socket.create_server(("127.0.0.1", port))
    door.settimeout(0)
    return door


def test_a_head_that_is_gone_is_told_once_and_again_after_it_was_back():
    told, joined = [], [True]
    door = listening()
    port = door.getsockname()[1]
    address = f"127.0.0.1:{port}"
    thread = contact.watch(address, lambda: joined[0], told.append, every=0.02, patience=0.3)
    time.sleep(0.5)
    assert told == []
    door.close()
    until(lambda: told)
    time.sleep(0.5)
    assert len(told) == 1
    assert address in told[0]
    assert "the same command continues" in told[0]
    door = listening(port)
    time.sleep(0.3)
    door.close()
    until(lambda: len(told) == 2)
    joined[0] = False
    thread.join(5)
    assert not thread.is_alive()
