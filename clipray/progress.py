"""What a person hears on stderr: lines, a live bar, and a sign of life where something takes long."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from clipray.secrets import redacted

SECONDS = 8  # of silence before a sign of life


@dataclass
class _Now:
    """What this process is doing, and when it spoke last."""

    quiet: bool = False
    as_json: bool = False  # each line is a JSON object
    live: bool = False  # a bar is on the screen and moves by itself
    said: float = 0.0
    doing: list[tuple[Callable[[], str], float]] = field(default_factory=list)  # and since when
    stream: Any = None  # a copy of stderr: what silences a library's messages does not silence ours


_now = _Now()


def hush() -> None:
    """Say nothing from now on."""
    _now.quiet = True


def write_json() -> None:
    """Write each line as a JSON object from now on, for programs that collect logs."""
    _now.as_json = True


def is_quiet() -> bool:
    """Tell whether nothing is to be said."""
    return _now.quiet


def say(text: str, **facts: Any) -> None:
    """Tell a person something; stdout is for a job's last line.

    Args:
        facts: that a log for programs has beside the text, such as `stage`, `done`, `total`, `seconds`.
    """
    if not _now.quiet:
        _write(text, "info", facts)
    _now.said = time.monotonic()


def tell(text: str) -> None:
    """Tell what must be read even where silence is asked for."""
    _write(text, "error" if text.startswith("error") else "info", {})


def _write(text: str, level: str, facts: dict[str, Any]) -> None:
    text = redacted(text)
    if _now.as_json:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        about = {"time": now, "level": level, "text": text.strip(), **facts}
        text = json.dumps(about, ensure_ascii=False)
    print(text, file=_now.stream or sys.stderr, flush=True)


@contextmanager
def heartbeat() -> Iterator[None]:
    """Say at least every ten seconds, while it lasts, what is being done, and for how long."""
    _now.quiet, _now.as_json, _now.live, _now.said = False, False, False, time.monotonic()
    _now.stream = _copy_of_stderr()
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(stop,), daemon=True)
    with doing("working"):
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            if _now.stream:
                _now.stream.close()
            _now.stream = None


def _beat(stop: threading.Event) -> None:
    while not stop.wait(1.0):
        if _now.live or time.monotonic() - _now.said < SECONDS:
            continue
        words, since = _now.doing[-1]
        seconds = round(time.monotonic() - since)
        say(f"  {words()}, {seconds} s so far", seconds=seconds)


def _copy_of_stderr() -> Any:
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
    except (OSError, ValueError, AttributeError):  # a stderr that is no file, as in a notebook
        return None


@contextmanager
def doing(what: str | Callable[[], str]) -> Iterator[None]:
    """Name what is being done, for the signs of life."""
    words = what if callable(what) else lambda: what
    _now.doing.append((words, time.monotonic()))
    try:
        yield
    finally:
        _now.doing.pop()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say what begins now, and name it in the signs of life."""
    say(what)
    with doing(what):
        yield


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield advance(n); on leaving, say how long it took.

    Args:
        what: what is being done. total: how many there are. unit: of what.
    """
    start = time.monotonic()
    shown = _bar if _is_watched() else _lines
    with shown(what, total, unit) as advance:
        yield advance
    seconds = time.monotonic() - start
    text = f"{what}: {total} {unit} in {seconds:.1f} s ({total / max(seconds, 1e-9):.1f}/s)"
    say(text, stage=what, done=total, total=total, unit=unit, seconds=round(seconds, 1))


@contextmanager
def board(
    line: Callable[[], str], columns: Sequence[str], rows: Callable[[], Sequence[Sequence[str]]]
) -> Iterator[Callable[[], None]]:
    """Yield show(), to be called when something moved: a live table for a person, a line now and then for a log.

    Args:
        line: how it stands. columns, rows: the table below it.
    """

    def show() -> None:
        if time.monotonic() - _now.said >= SECONDS:
            say(line())

    if _is_watched():
        with _live_table(line, columns, rows):
            yield lambda: None
    else:
        with doing(line):
            yield show
    say(line())


def _is_watched() -> bool:
    """Tell whether a display that moves can be shown."""
    return sys.stderr.isatty() and not _now.quiet and not _now.as_json


@contextmanager
def _alive() -> Iterator[None]:
    """Tell whether a display on the screen moves by itself; a line in between would break it."""
    _now.live = True
    try:
        yield
    finally:
        _now.live = False


@contextmanager
def _live_table(line: Callable, columns: Sequence[str], rows: Callable) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        drawn = Table(*columns, title=line())
        for row in rows():
            drawn.add_row(*row)
        return drawn

    screen = Console(stderr=True)
    with (
        _alive(),
        Live(console=screen, get_renderable=table, transient=True, refresh_per_second=1),
    ):
        yield


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with _alive(), Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done = 0

    def line() -> str:
        return f"{what}: {done}/{total} {unit}"

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if time.monotonic() - _now.said >= SECONDS:
            say(line(), stage=what, done=done, total=total, unit=unit)

    with doing(line):
        yield advance
