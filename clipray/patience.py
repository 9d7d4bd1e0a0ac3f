"""Patience with S3: what passes by itself is tried again for about a minute, with growing waits and jitter.

botocore tries a request five times with random waits of up to eight seconds, and gives up after some eight seconds: an
outage of 20 s would end a night's work. s3fs tries again what botocore gave up, but neither refused connections nor
faults of the server; this module says that these pass, too.
"""

import time
from typing import Any

from clipray.progress import say

TRIES = 8  # of s3fs, each of which is five of botocore's: about 70 s
THROTTLED = {"SlowDown", "RequestLimitExceeded", "Throttling", "ThrottlingException"}
CONNECTIONS = 64  # requests of a process that are under way together; botocore has ten
QUIET = 30.0  # seconds between two words about it
_told = [0.0]


def patient(fs: Any) -> Any:
    """Make a file system of S3 wait out what passes, and return it; others are returned as they are."""
    if is_s3(fs):
        from s3fs import core

        core.set_custom_error_handler(passing)
        fs.retries = TRIES
        fs.config_kwargs.setdefault("max_pool_connections", CONNECTIONS)
    return fs


def is_s3(fs: Any) -> bool:
    """Tell whether a file system is S3's."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "s3" in protocols


def whole(fs: Any) -> dict[str, int]:
    """Return what makes a file system of S3 read a whole object by one request; else it asks for the size before."""
    return {"max_concurrency": 1} if is_s3(fs) else {}


def passing(error: BaseException) -> bool:
    """Tell whether an error of S3 passes by itself, and say so to who waits.

    No connection, too many requests and faults of the server do. What the service refuses, such as a permission or a
    bucket that is not there, does not.
    """
    from botocore.exceptions import ClientError, ConnectionError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code")
        passes = status == 429 or status in (500, 502, 503, 504) or code in THROTTLED
    else:
        passes = isinstance(error, ConnectionError)
    if passes and time.monotonic() - _told[0] > QUIET:
        _told[0] = time.monotonic()
        say(f"warning: S3 does not serve ({error}); trying again for about a minute")
    return passes
