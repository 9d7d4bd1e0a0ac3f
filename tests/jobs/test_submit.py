"""The id, the command and the environment of a submitted job; its attempts, on a door that keeps a list."""

import importlib
import logging
from types import SimpleNamespace

import pytest

from clipray import progress
from clipray.errors import ClusterError, ConfigError
from clipray.steps import submit


class Door:
    """Ray's client as far as `send` uses it."""

    def __init__(self):
        self.jobs = []

    def list_jobs(self):
        return self.jobs

    def submit_job(self, entrypoint, submission_id, runtime_env, metadata):
        status = SimpleNamespace(value="RUNNING")
        self.jobs.append(
            SimpleNamespace(submission_id=submission_id, status=status, env=runtime_env)
        )


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "HF_TOKEN"):
        monkeypatch.setenv(key, f"of {key}")
    (tmp_path / "my run.yaml").write_text("name: x\n")
    return "my run.yaml"


def test_the_same_submission_is_followed_while_it_runs_and_numbered_after(config):
    door, job = Door(), submit.wanted("run", config, ["shots=[1, 4]"])
    first, followed = submit.send(door, job)
    assert not followed
    assert first == f"{job.stem}-1"
    assert submit.send(door, job) == (first, True)
    door.jobs[0].status.value = "FAILED"
    assert submit.send(door, job) == (f"{job.stem}-2", False)
    assert len(door.jobs) == 2


def test_another_text_or_override_is_another_submission(config, tmp_path):
    stems = {submit.wanted("run", config, []).stem, submit.wanted("tune", config, []).stem}
    stems.add(submit.wanted("run", config, ["seeds=2"]).stem)
    (tmp_path / config).write_text("name: y\n")
    stems.add(submit.wanted("run", config, []).stem)
    assert len(stems) == 4


def test_the_command_is_quoted_for_a_shell_and_the_environment_handed_on(config, monkeypatch):
    monkeypatch.setenv("HOME_OF_MINE", "stays")
    job = submit.wanted("run", config, ["shots=[1, 4]"])
    assert job.command == "python -m jobs.run 'my run.yaml' --set 'shots=[1, 4]'"
    assert job.environment["HF_TOKEN"] == "of HF_TOKEN"
    assert not [key for key in job.environment if not key.startswith(("HF_", "AWS_", "MLFLOW_"))]
    assert job.metadata["config"] == config


def test_a_config_elsewhere_or_missing_is_told(config, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "c.yaml"
    other.write_text("")
    with pytest.raises(ConfigError, match="is not below the working directory"):
        submit.wanted("run", str(other), [])
    with pytest.raises(ConfigError, match="there is no such file"):
        submit.wanted("run", "none.yaml", [])


def test_without_an_address_it_says_how_to_give_one(monkeypatch, loggers):
    for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(ConfigError, match="--address http"):
        submit.door("")


@pytest.fixture
def loggers():
    """Ray's loggers, whose levels are as before afterwards."""
    importlib.import_module("ray.job_submission")  # sets their levels
    before = {name: logging.getLogger(name).level for name in submit.LOGGERS}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("verbose", [True, False])
def test_what_ray_says_of_each_file_that_it_sends_is_for_verbose_only(loggers, verbose):
    from ray.dashboard.modules import dashboard_sdk

    with pytest.raises(ClusterError, match="no dashboard of a Ray cluster answers"):
        submit.door("http://127.0.0.1:9", verbose)
    assert dashboard_sdk.logger.isEnabledFor(logging.INFO) == verbose
    assert dashboard_sdk.logger.isEnabledFor(logging.ERROR)


def test_a_log_that_is_followed_is_a_sign_of_life(capsys):
    """Else the job would say every eight seconds that it works, between the lines of the log that it prints."""

    class Followed:
        info = SimpleNamespace(driver_exit_code=3)

        def get_job_status(self, name):
            return SimpleNamespace(value="FAILED")

        def get_job_info(self, name):
            return self.info

        async def tail_job_logs(self, name):
            yield "one\ntwo\n"
            yield "three\n"

    before = progress._now.said
    assert submit.follow(Followed(), "x") == ("FAILED", 3)
    assert capsys.readouterr().err == "one\ntwo\nthree\n"
    assert progress._now.said > before
