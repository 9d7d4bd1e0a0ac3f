"""What a person meets on the command line: help with examples, errors without tracebacks, one JSON line last."""

import json
import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clipray import __version__

ROOT = Path(__file__).resolve().parent.parent

# All 600 images of the digits' test split, and of the 600 of its train split those that five support sets of 16 shots,
# with four spare ones a class, may hold.
DRAWN = 600 + 527

JOBS = (
    "run",
    "embed",
    "evaluate",
    "report",
    "ls",
    "validate",
    "compare",
    "pretrain",
    "tune",
    "fit",
    "predict",
    "serve",
    "track",
)


def call(monkeypatch, capsys, job: str, *arguments: str) -> tuple[int, str, str]:
    """Run a job in this process: its exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", [f"jobs.{job}", *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    return left.value.code or 0, *capsys.readouterr()


@pytest.mark.parametrize("job", JOBS)
def test_help_has_examples(monkeypatch, capsys, job):
    code, out, _ = call(monkeypatch, capsys, job, "--help")
    assert code == 0
    assert f"python -m jobs.{job} " in out or f"python -m jobs.{job}\n" in out


@pytest.fixture
def config(tmp_path):
    values = {
        "workspace": str(tmp_path / "workspace"),
        "datasets": ["digits"],
        "backbones": ["vit-p6-36"],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "c.yaml"


@pytest.mark.parametrize("job", JOBS)
def test_usage_is_the_command_that_one_types(monkeypatch, capsys, job):
    """And every argument has its help, and what is missing is told with an example."""
    code, out, _ = call(monkeypatch, capsys, job, "--help")
    first = {"ls": "[CONFIG]", "report": "WORKSPACE", "track": "WORKSPACE", "serve": "MODEL"}.get(
        job, "CONFIG"
    )
    assert out.startswith(f"usage: python -m jobs.{job} {first} ")
    listed = out.partition("positional arguments:\n")[2].partition("\n\n")[0]
    helps = [line for line in listed.splitlines() if line[:3].strip()]
    assert helps
    assert all(len(line.split()) > 3 for line in helps)
    if job == "ls":
        return
    code, out, err = call(monkeypatch, capsys, job)
    assert (code, out) == (2, "")
    assert f"error: the following arguments are required: {first}" in err
    assert f"for example: python -m jobs.{job} " in err


def test_a_wrong_flag_is_told_with_the_nearest(monkeypatch, capsys, config):
    code, _, err = call(monkeypatch, capsys, "run", str(config), "--dryrun")
    assert code == 2
    assert "there is no argument --dryrun. Did you mean --dry-run?" in err
    code, _, err = call(monkeypatch, capsys, "run", str(config), "--quiet", "--verbose")
    assert code == 2
    assert "not allowed with" in err


def test_the_version(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "run", "--version")[:2] == (0, f"clipray {__version__}\n")


def test_quiet_is_errors_and_the_last_line(monkeypatch, capsys, config):
    code, out, err = call(monkeypatch, capsys, "run", str(config), "--dry-run", "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    assert json.loads(out)["images_to_embed"] == DRAWN
    code, out, err = call(monkeypatch, capsys, "ls", str(config), "--quiet")
    assert (code, err, len(out.splitlines())) == (0, "", 1)
    code, out, err = call(monkeypatch, capsys, "run", str(config), "--quiet", "--set", "seeds=0")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize("job", ["run", "embed", "evaluate", "tune"])
def test_a_dry_run_loads_neither_torch_nor_ray(config, job):
    if job == "tune":
        values = yaml.safe_load(config.read_text())
        space = {"hidden": {"choice": [0, 16]}, "epochs": {"int": [1, 3]}}
        values["searches"] = [{"name": "gate", "fuser": "nlc", "space": space}]
        config.write_text(yaml.safe_dump(values | {"sampler": "grid"}))
    code = (
        f"import sys, runpy; sys.argv = ['jobs.{job}', {str(config)!r}, '--dry-run']\n"
        f"try: runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "finally: print('loaded', *{'torch', 'ray', 'mlflow', 'open_clip'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    facts, loaded = done.stdout.splitlines()
    assert loaded == "loaded"
    # a search that scores on the rest of the train splits looks at all of them
    assert json.loads(facts)["images_to_embed"] == (1200 if job == "tune" else DRAWN)
    if job == "tune":
        assert json.loads(facts)["configurations"] == {"gate": 1 + 2 * 3}
        assert "at most 105 of them to fit" in done.stderr  # on 3 × 5 support sets


def test_a_wrong_method_is_told_within_two_seconds(config):
    """Of processor time, for the machine may be shared; torch alone would take more."""
    command = [sys.executable, "-m", "jobs.run", str(config), "--set", "fusers=[logavg]"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert done.returncode == 2
    assert "Did you mean log_avg" in done.stderr


def test_a_dry_run_counts_and_starts_nothing(monkeypatch, capsys, config):
    code, out, err = call(monkeypatch, capsys, "run", str(config), "--dry-run", "--limit", "50")
    assert code == 0
    facts = json.loads(out)
    assert facts["images_to_embed"] == 100
    assert facts["splits"]["digits/test"] == {"images": 50, "images_to_embed": 50}
    assert "digits/test: 50 images, 50 to embed" in err
    assert f"text classifiers to compute: {facts['classifiers_to_compute']}" in err
    assert "expected cost: unknown for vit-p6-36" in err
    assert facts["embedding_seconds"] is None  # unknown, which is not 0
    assert "defaults taken: precision fp32, shots [1, 4, 16], seeds 5, folds 5" in err
    assert facts["defaults"]["fusers"] == ["log_avg", "c_log_avg", "nlc", "guarded"]
    evaluation = facts["evaluation"]
    assert (evaluation["datasets"], evaluation["to_evaluate"], evaluation["done"]) == (1, 1, 0)
    # log_avg needs no labels; three fusers and the best single backbone are fitted on 3 × 5 support sets
    assert evaluation["fits_per_dataset"] == 1 + 4 * 15
    assert "1 of 1 datasets; on each 1 heads × 5 fusers × 15 support sets, that is 61 fits" in err
    assert not (config.parent / "workspace" / "embeddings").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "seeds=0"], "seeds: must be at least 1, not 0"),
        (["--set", "fusers=[nlcc]"], "fusers.0: there is no 'nlcc'. Did you mean nlc?"),
        (["--set", "workspace=s4://bucket/w"], "there is no protocol 's4'. Did you mean s3?"),
        (["--limit", "-1"], "limit: must be at least 0, not -1"),
        (["--set", "datasets=[digitz]"], "Did you mean digits"),
        (["--set", "backbones=[shiped]"], "Did you mean shipped"),
        (["--set", "colour=red"], "known keys: name, workspace"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(monkeypatch, capsys, config, arguments, words):
    code, out, err = call(monkeypatch, capsys, "run", str(config), "--dry-run", *arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not out


def test_evaluate_says_what_is_missing(monkeypatch, capsys, config):
    code, _, err = call(monkeypatch, capsys, "evaluate", str(config))
    assert code == 2
    assert "are not embedded yet: run `python -m jobs.embed" in err
