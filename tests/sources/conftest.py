"""A bucket for the tests of sources."""

import pytest

from tests.s3 import served


@pytest.fixture(scope="module")
def bucket():
    """The URI of a bucket behind a real S3 endpoint on loopback."""
    with served("sources"):
        yield "s3://sources"
