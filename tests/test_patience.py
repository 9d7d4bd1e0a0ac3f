"""S3 that refuses, stumbles and asks to slow down: a server of the standard library that says so, asked by s3fs."""

import http.server
import threading
import time
from contextlib import contextmanager

import fsspec
import pytest

from clipray import patience
from clipray.errors import StoreError
from clipray.sources import storage
from clipray.store import Store
from tests.heads import free_ports

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>no</Message></Error>"


@contextmanager
def serving(answers: list[tuple[int, str]], port: int):
    """A server that gives these answers, one a request, and then the object; yields what was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, code = answers.pop(0) if answers else (200, "")
            body = ERROR.format(code).encode() if code else b"content"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def port(monkeypatch):
    """The port that S3 is looked for at; botocore itself tries once, so that s3fs's tries are what is counted."""
    (port,) = free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield port
    fsspec.get_filesystem_class("s3").clear_instance_cache()


PASSING = [
    *((500, "InternalError"), (502, "BadGateway"), (503, "SlowDown"), (503, "ServiceUnavailable")),
    *((504, "GatewayTimeout"), (429, "TooManyRequests"), (400, "RequestLimitExceeded")),
]


@pytest.mark.parametrize("answer", PASSING)
@pytest.mark.parametrize(
    "read", [lambda: Store("s3://b/w").read("x"), lambda: storage.content("s3://b/x")]
)
def test_what_passes_is_tried_again(port, answer, read):
    with serving([answer] * 3, port) as asked:
        assert read() == b"content"
    assert len(asked) == 4


@pytest.mark.parametrize(
    "read", [lambda: Store("s3://b/w").read("x"), lambda: storage.content("s3://b/x")]
)
def test_what_does_not_pass_is_told(port, read, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 3)
    with (
        serving([(503, "SlowDown")] * 99, port) as asked,
        pytest.raises(StoreError, match="s3://b/"),
    ):
        read()
    assert len(asked) == 3


def test_what_is_refused_is_told_at_once(port):
    with serving([(403, "AccessDenied")] * 99, port) as asked, pytest.raises(StoreError):
        Store("s3://b/w").read("x")
    assert len(asked) == 1


def test_files_of_a_data_set_wait_and_one_that_is_gone_is_its_own_error(port):
    with serving([(500, "InternalError")] * 2 + [(404, "NoSuchKey")], port):
        (gone,) = storage.read_files(["s3://b/a.png"])
        (data,) = storage.read_files(["s3://b/b.png"])
    assert isinstance(gone, FileNotFoundError)
    assert data == b"content"


def test_a_server_that_is_away_is_waited_for(port, capsys, monkeypatch):
    monkeypatch.setattr(patience, "_told", [-99.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "TRIES", 9)
        back = threading.Event()

        def later() -> None:
            time.sleep(3)
            with serving([], port):
                back.wait()

        thread = threading.Thread(target=later)
        thread.start()
        assert Store("s3://b/w").read("x") == b"content"
        back.set()
        thread.join()
    assert "S3 does not serve" in capsys.readouterr().err
