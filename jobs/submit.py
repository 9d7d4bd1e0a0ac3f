"""Send a job to a Ray cluster, follow its log, and end with its exit code.

    RAY_ADDRESS=http://127.0.0.1:8265 python -m jobs.submit my.yaml
    python -m jobs.submit configs/tune/gates.yaml --job tune --address http://head:8265
    python -m jobs.submit nightly.yaml --set workspace=s3://bucket/ws --detach          do not wait for the end

The working directory is sent along, without data and environment. The submission's id is made of the job, the config's
name and the fingerprint of its text and of every --set, with the number of the attempt: the same submission again has
the next number, and one that still runs is followed in place of starting a second. HF_*, AWS_* and MLFLOW_* of this
shell reach the driver and the workers; their values are not printed. The last line on stdout is one JSON object.
"""

from clipray.errors import ClusterError
from jobs import arguments, finish, run, say

JOBS = ("run", "embed", "evaluate", "tune", "pretrain")
FLAGS = {
    "job": {"choices": JOBS, "default": "run", "help": "which job (default: run)"},
    "address": {
        "default": "",
        "metavar": "URL",
        "help": "of the cluster's dashboard; default: RAY_ADDRESS",
    },
    "detach": {"action": "store_true", "help": "end when the cluster has taken the job"},
}
CONFIG = "the job's YAML file, below the working directory"


def main() -> int:
    """Submit or find, follow, and tell the end."""
    given = arguments(__doc__, config=CONFIG, **FLAGS)
    from clipray.steps import submit

    wanted = submit.wanted(given.job, given.config, given.set)
    with_secrets = sorted(wanted.environment)
    if with_secrets:
        say(f"handing on: {', '.join(with_secrets)}")
    door = submit.door(given.address, given.verbose)
    name, found = submit.send(door, wanted)
    say(f"{'follows' if found else 'submitted'} {name}: {wanted.command}")
    told = {"submission": name, "command": wanted.command, "followed": found}
    if given.detach:
        finish({**told, "status": "SUBMITTED", "exit_code": None})
        return 0
    status, code = submit.follow(door, name)
    finish({**told, "status": status, "exit_code": code})
    if code is None:
        raise ClusterError(
            f"{name} ended as {status} without an exit code: see `ray job logs {name}`"
        )
    return code


if __name__ == "__main__":
    run(main)
