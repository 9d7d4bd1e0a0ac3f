"""What a person meets on the command line: help with examples, errors without tracebacks, one JSON line last."""

import json
import runpy
import sys

import pytest
import yaml

JOBS = ("run", "embed", "evaluate", "report", "ls", "validate", "compare", "pretrain", "tune")


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
        "precision": "fp32",
        "heads": ["zero_shot"],
        "seeds": 1,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "c.yaml"


def test_a_dry_run_counts_and_starts_nothing(monkeypatch, capsys, config):
    code, out, err = call(monkeypatch, capsys, "run", str(config), "--dry-run", "--limit", "50")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["images_to_embed"] == 100
    assert "digits/test: 50 images, 50 to embed" in err
    assert "not yet measured, and so not in it: vit-p6-36" in err
    assert not (config.parent / "workspace" / "embeddings").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "seeds=0"], "seeds: must be at least 1, not 0"),
        (["--set", "datasets=[digitz]"], "Did you mean digits"),
        (["--set", "backbones=[shiped]"], "Did you mean shipped"),
        (["--set", "colour=red"], "known keys: name"),
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
