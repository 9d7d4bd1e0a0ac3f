"""A job of ours on a cluster, through Ray's job submission: its id, its environment, its log and its exit code."""

import asyncio
import getpass
import logging
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any, NamedTuple

from clipray.errors import ClusterError, ConfigError
from clipray.fingerprint import fingerprint
from clipray.progress import say
from clipray.secrets import redacted
from clipray.store import provenance

HANDED_ON = ("HF_", "AWS_", "MLFLOW_")
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
MOST_IN_ID = 40  # characters of a config's name
LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
LOOK = 2.0  # seconds between looks at a job that has no log yet


class Wanted(NamedTuple):
    """A job to be sent.

    Attributes:
        stem: its id without the attempt's number.
        command: what the cluster runs in the working directory.
        environment: variables for the driver and the workers.
        metadata: shown beside the job: config, commit, user.
    """

    stem: str
    command: str
    environment: dict[str, str]
    metadata: dict[str, str]


def wanted(job: str, config: str, sets: list[str]) -> Wanted:
    """What to send for a config and its overrides.

    Raises:
        ConfigError: there is no such file, or it is not below the working directory and would not be sent along.
    """
    path = Path(config)
    if not path.is_file():
        raise ConfigError(f"{config}: there is no such file")
    try:
        inside = path.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        raise ConfigError(
            f"{config} is not below the working directory {Path.cwd()}, which is what the cluster gets: copy it there"
        ) from None
    words = ["python", "-m", f"jobs.{job}", str(inside)]
    for text in sets:
        words += ["--set", text]
    digest = fingerprint([job, path.read_text(), sets])[:8]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)[:MOST_IN_ID]
    commit = provenance()["commit"] or ""
    metadata = {"config": str(inside), "commit": commit, "user": getpass.getuser(), "job": job}
    environment = {key: value for key, value in os.environ.items() if key.startswith(HANDED_ON)}
    return Wanted(f"{job}-{name}-{digest}", shlex.join(words), environment, metadata)


def door(address: str, verbose: bool = False) -> Any:
    """Ray's client for job submission; without `verbose` it does not tell file by file what it sends.

    Raises:
        ClusterError: nothing answers there.
        ConfigError: no address is given.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in () if verbose else LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    place = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not place:
        raise ConfigError(
            "no cluster is named: give --address http://HEAD:8265, or set RAY_ADDRESS to it"
        )
    try:
        return JobSubmissionClient(place)
    except AuthenticationError as error:
        raise ClusterError(
            f"the cluster at {place} asks for a token: set RAY_AUTH_MODE=token, and the token as RAY_AUTH_TOKEN or "
            "its file as RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        words = redacted(str(error).splitlines()[0])
        raise ClusterError(
            f"no dashboard of a Ray cluster answers at {place} ({words}): give --address http://HEAD:8265"
        ) from error


def send(door: Any, job: Wanted) -> tuple[str, bool]:
    """Submit a job under its next number; or find the attempt that still runs. Returns its id and whether it ran."""
    attempts = {}
    for one in door.list_jobs():
        stem, _, number = (one.submission_id or "").rpartition("-")
        if stem == job.stem and number.isdigit():
            attempts[int(number)] = one
    if attempts and str(attempts[max(attempts)].status.value) not in ENDED:
        return f"{job.stem}-{max(attempts)}", True
    name = f"{job.stem}-{max(attempts, default=0) + 1}"
    door.submit_job(
        entrypoint=job.command,
        submission_id=name,
        runtime_env={"working_dir": ".", "env_vars": job.environment},
        metadata=job.metadata,
    )
    return name, False


def follow(door: Any, name: str) -> tuple[str, int | None]:
    """Print a job's log to stderr until it ends; its status, and its driver's exit code where Ray knows it."""
    while door.get_job_status(name).value == "PENDING":
        time.sleep(LOOK)
    asyncio.run(_tail(door, name))
    while (status := door.get_job_status(name).value) not in ENDED:
        time.sleep(LOOK)
    code = door.get_job_info(name).driver_exit_code
    if code is None and status == "SUCCEEDED":
        code = 0
    return status, code


async def _tail(door: Any, name: str) -> None:
    async for lines in door.tail_job_logs(name):
        say(lines.removesuffix("\n"))
