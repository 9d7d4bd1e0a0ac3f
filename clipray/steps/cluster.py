"""The Ray cluster that this process is in, or a local one of its own."""

import contextlib
import json
import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clipray.config import Compute, Pool
from clipray.errors import ClipRayError, ClusterError, ConfigError, DamagedError, StoreError
from clipray.progress import say, working
from clipray.steps import contact
from clipray.steps.lasting import lasting
from clipray.steps.nodes import largest_memory

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the command of `ray job submit`
STARTS, WAIT = 3, 120  # attempts to start a local Ray; seconds more for its raylet at each
RAYLET_WAIT = "RAY_raylet_start_wait_time_s"  # Ray reads it in just this spelling
KEPT = "RAY_idle_worker_killing_time_threshold_ms"  # of processes that are more than the cores
PROBE_SECONDS = 5.0
REASON = 2000  # characters of an error of ours that a record keeps
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # a client's greeting
SETTINGS = b"\x04"  # the kind of frame that a server greets with
ADDED = re.compile(r"\nFailed to .+ after \d+/\d+ attempts \(total backoff .*", re.DOTALL)
ADDRESSES = (
    "unset RAY_ADDRESS if it is gone (or `ray stop` to forget it), give that of one that runs (host:port) as "
    "compute.address,\n  or start a Ray of this job's own with --set compute.address=local"
)
HANDED_ON = ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT")


def connect(compute: Compute, verbose: bool) -> dict[str, float]:
    """Join the cluster (`compute.address`, the job's own, one that runs on this machine) or start a local one.

    Without `verbose`, Ray's own messages stay away.

    Returns:
        the cluster's resources: "CPU", and "GPU" where there are any.

    Raises:
        ConfigError: there is a cluster, and it cannot be joined; a local one in its place would be a surprise.
        ClusterError: a local one does not start.
    """
    import ray.data

    if not verbose:
        quiet()
    # else an error of ours comes back as one of Ray's that only quotes it: the cause is lost on the way
    ray.data.DataContext.get_current().raise_original_map_exception = True
    if not ray.is_initialized():
        address = known_address(compute)
        with working("joining the Ray cluster" if address else "starting Ray"):
            if address:
                probe(address)
                _join(compute, verbose)
                if not address.startswith("ray://"):  # whose door is all that this machine may see
                    contact.watch(ray.get_runtime_context().gcs_address, ray.is_initialized)
            else:
                lasting(lambda: _start(compute, verbose))
    return ray.cluster_resources()


def known_address(compute: Compute) -> str | None:
    """The address of the cluster to join, as Ray itself would look for it; None where a local one is to be started."""
    from ray._private import services

    address = compute.address or os.environ.get("RAY_ADDRESS") or None
    if address == "auto":
        address = services.get_ray_address_from_environment(None, None)
        if address is None:
            raise ConfigError(
                "compute.address: auto: no Ray cluster runs on this machine; start one with `ray start --head`, or "
                "leave the address out"
            )
    if address is None:
        address = services.find_bootstrap_address(None)  # what `ray start` left on record
    return None if address == "local" else address


def probe(address: str) -> None:
    """`ConfigError` unless a gRPC server answers at the address: Ray itself would try for minutes, in silence.

    A server greets in HTTP/2, so a port of something else, or of a server that hangs, is found out too. With TLS
    only the connection is tried.
    """
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)/?", address)
    if match is None:
        raise ConfigError(f"{address!r} is no address of a Ray cluster: {ADDRESSES}")
    host, port = match[1], int(match[2])
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as link:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            link.sendall(HTTP2)
            greeting = b""
            while len(greeting) < 9 and (more := link.recv(9 - len(greeting))):
                greeting += more
            if greeting[3:4] == SETTINGS:
                return
            reason = "what answers there is not Ray"
    except (OSError, OverflowError) as error:
        reason = str(error)
    raise ConfigError(f"no Ray cluster answers at {address} ({reason}): {ADDRESSES}")


def _join(compute: Compute, verbose: bool) -> None:
    import ray

    try:
        own = handed_on(os.environ)  # which workers of a local Ray inherit
        # an empty environment would be another one than that of the workers that wait for tasks
        _init(compute.address or None, verbose, runtime_env={"env_vars": own} if own else None)
    except Exception as error:  # Ray raises bare ones too
        if (
            not isinstance(error, (ConnectionError, RuntimeError, ray.exceptions.RayError))
            and type(error) is not Exception
        ):
            raise
        raise ConfigError(
            f"cannot join the Ray cluster ({_first_lines(error)}).\n  If it asks for a token: set "
            f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. Otherwise: {ADDRESSES}"
        ) from error


def _start(compute: Compute, verbose: bool) -> None:
    """Start a local Ray; a busy machine may need more than the 30 s that Ray gives it, so it is tried again."""
    import ray

    os.environ.setdefault(KEPT, "60000")  # ms; after one second each step would import torch anew
    for attempt in range(1, STARTS + 1):
        try:
            _init("local", verbose, include_dashboard=verbose)  # ten processes, 1 GB
            return
        except Exception as error:  # a node that times out is a bare Exception
            ray.shutdown()
            if attempt == STARTS:
                raise ClusterError(
                    f"Ray does not start on this machine, tried {STARTS} times ({_first_lines(error)}).\n  Usual "
                    "causes: a machine that is too busy (wait, or end what else runs), a full disk under "
                    f"{os.environ.get('RAY_TMPDIR', '/tmp')} (RAY_TMPDIR names another place), or a small /dev/shm"
                ) from error
            say(f"Ray did not start ({_first_lines(error)[:100]}): trying again with more time")
            os.environ[RAYLET_WAIT] = str(WAIT * attempt)


def _init(address: str | None, verbose: bool, **own: Any) -> None:
    import ray

    with contextlib.nullcontext() if verbose else hushed():
        ray.init(
            **own,
            address=address,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
        )


def handed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which workers reach weights and storage; a cluster's do not inherit the driver's.

    Those that a submitted job was given reach its workers already; Ray refuses to be told twice.
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


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what caused it, from the outermost on: Ray wraps what a task or an actor raised."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def known(error: BaseException) -> ClipRayError | None:
    """The error that a user may see in what Ray raised: one of ours, or that workers died; None for a fault of ours.

    Ray gives a task's error back as one that is its wrapper and the error itself at a time, whose text is a traceback;
    the innermost is the error as it was raised, save that Ray Data adds advice on its own settings to the words.
    """
    ours = [one for one in causes(error) if isinstance(one, ClipRayError)]
    if ours:
        return type(ours[-1])(ADDED.sub("", str(ours[-1])))
    words = lost(error)
    return None if words is None else ClusterError(words)


def reason(error: BaseException) -> str:
    """An error in one line, for a record of failures."""
    told = known(error)
    if told is not None:
        return _first_lines(told, REASON)  # the remedy stands at its end
    inner = list(causes(error))[-1]
    return f"{type(inner).__name__}: {_first_lines(inner)}"


def lost(error: BaseException) -> str | None:
    """What to tell of an error that means that workers died more often than they may; None for any other error."""
    import ray.exceptions as kinds

    died = (
        kinds.RayActorError,
        kinds.WorkerCrashedError,
        kinds.NodeDiedError,
        kinds.OutOfMemoryError,
        kinds.OutOfDiskError,
        kinds.ObjectStoreFullError,
    )
    for one in causes(error):
        if isinstance(one, died):
            return (
                f"a worker died again and again on the same piece of work, which was given up "
                f"({type(one).__name__}: {_first_lines(one)}).\n"
                "  Usual causes: too little memory (raise compute.decode_memory, lower compute.batch_size), machines "
                "that were taken away too often\n  (raise compute.max_retries), a full disk of a node, or an image "
                "that crashes a library (its shard has no file yet).\n"
                "  What is finished is kept: the same command continues."
            )
    return None


def _first_lines(error: BaseException, most: int = 300) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:most]


def quiet() -> None:
    """Silence Ray's plans, bars and deprecations; what fails still raises."""
    import ray.data

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # they write the traceback of what they raise, or try again after, and the job tells that in a sentence
    for name in ("ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
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
    """ "cuda" where the config or the cluster's resources say so; the driver's own devices do not matter.

    Args:
        resources: what the cluster has, or can have.

    Raises:
        ConfigError: the config says "cuda", nothing has a GPU, and nothing can add one: tasks would wait for ever.
    """
    gpus = resources.get("GPU", 0) >= 1
    if compute.device == "cuda" and not gpus:
        raise ConfigError(
            "compute.device: cuda: no GPU is in the cluster (Ray counts those of this machine if it is a local one); "
            "--set compute.device=auto takes CPUs where there is none"
        )
    if compute.device != "auto":
        return compute.device
    return "cuda" if gpus else "cpu"


def attempt() -> int:
    """Count the earlier attempts at the Ray task that this process runs, whose workers died; 0 outside of one."""
    from ray._private import worker  # Ray has no public door to it

    if worker.global_worker.mode != worker.WORKER_MODE:
        return 0
    return worker.global_worker.core_worker.get_current_task_attempt_number()


def actors(pool: Pool, compute: Compute, memory: int) -> dict[str, Any]:
    """Make the options of Ray Data's `map_batches` for a pool of actors that grows as its config says.

    An actor on a GPU has two shards at a time: while one is computed, the other is taken apart or written.

    An actor is restarted `max_retries` times, and that bounds what a deadly task can do. Its tasks are tried again
    without a bound: on a node that is gone they fail at once, again and again, until Ray notices that it is gone.

    Args:
        memory: bytes that each asks for.
    """
    import ray

    most = max(pool.size, pool.max_size)
    threads = {"max_concurrent_calls_per_actor": 2, "enable_true_multi_threading": True}
    strategy = ray.data.ActorPoolStrategy(
        min_size=pool.size, max_size=most, **(threads if pool.num_gpus else {})
    )
    return {
        "compute": strategy,
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
        "memory": memory,
        "max_restarts": compute.max_retries,
        "max_task_retries": -1,
    }


def tasks(
    function: Callable, items: list[tuple], num_cpus: float, num_gpus: float, retries: int
) -> Iterator[tuple]:
    """Run function(*item) as Ray tasks; yields (position, result) as they end, in any order.

    Raises:
        what the first task that fails raised, as it raised it.
    """
    for position, result, error in attempts(function, items, num_cpus, num_gpus, retries):
        if error is not None:
            raise known(error) or error
        yield position, result


def attempts(
    function: Callable,
    items: list[tuple],
    num_cpus: float,
    num_gpus: float,
    retries: int,
    memory: Sequence[int] = (),
) -> Iterator[tuple[int, Any, Exception | None]]:
    """As `tasks`, but a task that fails ends no other: yields (position, result or None, error or None).

    Args:
        memory: bytes that each task takes, so that no node runs more of them than fit. One that no node could run is
            tried on the largest that has its CPUs and GPUs, with all of that node's memory.

    Raises:
        StoreError: a task could not write, so the others could not either; one artefact that is damaged ends none.
    """
    import ray

    remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(function)
    most = largest_memory(num_cpus, num_gpus) if memory else 0
    positions = {}
    for position, item in enumerate(items):
        own = remote.options(memory=min(memory[position], most)) if memory else remote
        positions[own.remote(*item)] = position
    while positions:
        (done,), _ = ray.wait(list(positions), num_returns=1)
        try:
            result, failed = ray.get(done), None
        except Exception as error:
            result, failed = None, error
            told = known(error)
            if isinstance(told, StoreError) and not isinstance(told, DamagedError):
                raise told from error
        yield positions.pop(done), result, failed
