"""An S3 server on loopback, for tests that ask it over HTTP."""

import contextlib
from collections.abc import Iterator

import fsspec
import pytest


@contextlib.contextmanager
def served(bucket: str) -> Iterator[None]:
    """Serve a bucket, to which the usual environment variables point meanwhile."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            fsspec.filesystem("s3").makedirs(bucket, exist_ok=True)
            yield
            fsspec.get_filesystem_class("s3").clear_instance_cache()
    finally:
        server.stop()
