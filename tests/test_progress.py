"""Never is there silence for long, and never a word where silence is asked for."""

import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from clipray import progress

ROOT = Path(__file__).resolve().parent.parent


def test_signs_of_life_name_what_is_done_and_reach_a_person_when_stderr_is_shut_off():
    """As `cluster.hushed` does while Ray starts; four seconds of waiting are told of at least once a second or two."""
    code = """
import os, time
from clipray import progress
progress.SECONDS = 1
with progress.heartbeat(), progress.working("starting Ray"):
    nothing = os.open(os.devnull, os.O_WRONLY)
    kept = os.dup(2)
    os.dup2(nothing, 2)
    time.sleep(4.5)
    os.dup2(kept, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    first, *signs = done.stderr.splitlines()
    assert first == "starting Ray"
    assert 2 <= len(signs) <= 4
    assert all(sign.startswith("  starting Ray, ") for sign in signs)


def test_counts_are_in_the_signs_of_life(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.5)
    with progress.heartbeat(), progress.progress("images", 7, "images") as advance:
        advance(3)
        time.sleep(1.5)
        advance(4)
    err = capsys.readouterr().err
    assert "  images: 3/7 images, 1 s so far" in err
    assert err.splitlines()[-1].startswith("images: 7 images in ")


def test_hushed_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.1)
    with progress.heartbeat():
        progress.hush()
        with progress.working("a"), progress.progress("b", 1, "x") as advance:
            advance(1)
            time.sleep(1.2)
        with progress.board(lambda: "line", ["c"], lambda: [["1"]]) as show:
            show()
    assert capsys.readouterr().err == ""
    with progress.heartbeat():
        assert not progress.is_quiet()  # another job of this process speaks again


def test_a_log_for_programs_is_a_json_object_a_line(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with progress.heartbeat():
        progress.write_json()
        with progress.progress("images", 7, "images") as advance:
            advance(3)
        progress.say("two\nlines")
        progress.tell("error: no such file")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in lines if not line["text"].endswith("so far")]
    first, last, text, error = lines
    assert (first["stage"], first["done"], first["total"], first["unit"]) == (
        "images",
        3,
        7,
        "images",
    )
    assert last["done"] == 7
    assert last["seconds"] >= 0
    assert (text["level"], text["text"]) == ("info", "two\nlines")
    assert (error["level"], error["text"]) == ("error", "error: no such file")
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)


def test_what_fails_leaves_nothing_named():
    with pytest.raises(ZeroDivisionError), progress.doing("a"):
        1 / 0  # noqa: B018
    assert progress._now.doing == []
