"""The Ray cluster that this process is in, or a local one of its own."""

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping

from clipray.config import Compute
from clipray.errors import ConfigError
from clipray.progress import working

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of `ray job submit`


HANDED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT")


def connect(compute: Compute, verbose: bool) -> dict[str, float]:
    """Join the cluster (`compute.address`, the job's own, one that runs on this machine) or start a local one.

    Without `verbose`, Ray's own messages stay away.

    Returns:
        the cluster's resources: "CPU", and "GPU" where there are any.

    Raises:
        ConfigError: there is a cluster, and it cannot be joined; a local one in its place would be a surprise.
    """
    import ray

    if not verbose:
        quiet()
    if not ray.is_initialized():
        with working("starting Ray"), contextlib.nullcontext() if verbose else hushed():
            try:
                ray.init(
                    address=compute.address or None,
                    runtime_env={"env_vars": handed_on(os.environ)},
                    log_to_driver=verbose,
                    logging_level=logging.INFO if verbose else logging.ERROR,
                )
            except (ConnectionError, ray.exceptions.AuthenticationError) as error:
                raise ConfigError(
                    f"cannot join the Ray cluster ({_first_lines(error)}).\n  If it asks for a token: set "
                    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. If it is gone: unset RAY_ADDRESS, or `ray stop` to forget "
                    "it.\n  --set compute.address=local starts a Ray of this job's own"
                ) from error
    return ray.cluster_resources()


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which workers reach weights and storage; a cluster's do not inherit the driver's.

    Those that a submitted job was given reach its workers already, and Ray refuses to be told twice.
    """
    submitted = json.loads(environment.get(SUBMITTED) or "{}").get("runtime_env") or {}
    known = (submitted.get("env_vars") or {}).keys()
    return {
        name: value
        for name, value in environment.items()
        if (name in HANDED_ON or name.startswith("AWS_")) and name not in known
    }


def check_lasting(**places: str) -> None:
    """`ConfigError` where a submitted job would write below its working directory, which Ray deletes after it.

    Args:
        places: by their config key, the folders and URIs that the job writes to.
    """
    if SUBMITTED not in os.environ:
        return
    for key, place in places.items():
        if "://" not in place and not os.path.isabs(os.path.expanduser(place)):
            raise ConfigError(
                f"{key}: {place} is relative, and this job was sent to a cluster: there it would lie in the job's "
                f"working directory, which is deleted after the job. Give a place that all machines see: "
                f"--set {key}=s3://bucket/{place} or an absolute path on a shared file system"
            )


def lost(error: BaseException) -> str | None:
    """What to tell of an error that means that workers died more often than they may; None for any other error."""
    import ray.exceptions as known

    kinds = (
        known.RayActorError,
        known.WorkerCrashedError,
        known.NodeDiedError,
        known.OutOfMemoryError,
    )
    while error is not None:
        if isinstance(error, kinds):
            return (
                f"a worker died again and again on the same piece of work, so the run was given up "
                f"({type(error).__name__}: {_first_lines(error)}).\n"
                "  Usual causes: too little memory (raise compute.decode_memory, lower compute.batch_size), machines "
                "that were taken away too often\n  (raise compute.max_retries), or an image that crashes a library "
                "(its shard has no file yet).\n  What is finished is kept: the same command continues."
            )
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]


def quiet() -> None:
    """Silence Ray's plans, bars and deprecations; what fails still raises."""
    import ray.data

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # max_retries and max_restarts of map_batches have no named parameter yet
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Nothing reaches stderr, not even from C++: Ray's core greets there when it is told to be silent."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def device(compute: Compute, resources: dict[str, float]) -> str:
    """ "cuda" where the config or the cluster's resources say so; the driver's own devices do not matter."""
    if compute.device != "auto":
        return compute.device
    return "cuda" if resources.get("GPU", 0) >= 1 else "cpu"


def tasks(
    function: Callable, items: list[tuple], num_cpus: float, num_gpus: float, retries: int
) -> Iterator[tuple]:
    """Run function(*item) as Ray tasks; yields (position, result) as they end, in any order."""
    import ray

    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(function)
    positions = {remote.remote(*item): position for position, item in enumerate(items)}
    while positions:
        (done,), _ = ray.wait(list(positions), num_returns=1)
        yield positions.pop(done), ray.get(done)
