"""What a person hears on stderr: lines, a live bar, and a sign of life where something takes long."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from clipray.secrets import redacted

SECONDS = 8  # of silence before a sign of life


@dataclass
class _Now:
    """What this process is doing, and when it spoke last."""

    quiet: bool = False
    live: bool = False  # a bar is on the screen and moves by itself
    said: float = 0.0
    doing: list[tuple[Callable[[], str], float]] = field(default_factory=list)  # and since when
    stream: Any = None  # a copy of stderr: what silences a library's messages does not silence ours


_now = _Now()


def hush() -> None:
    """Say nothing from now on."""
    _now.quiet = True


def is_quiet() -> bool:
    """Tell whether nothing is to be said."""
    return _now.quiet


def say(text: str) -> None:
    """Tell a person something; stdout is for a job's last line."""
    if not _now.quiet:
        print(redacted(text), file=_now.stream or sys.stderr, flush=True)
    _now.said = time.monotonic()


@contextmanager
def heartbeat() -> Iterator[None]:
    """Say at least every ten seconds, while it lasts, what is being done, and for how long."""
    _now.quiet, _now.live, _now.said = False, False, time.monotonic()
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
        say(f"  {words()}, {time.monotonic() - since:.0f} s so far")


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
    shown = _bar if sys.stderr.isatty() and not _now.quiet else _lines
    with shown(what, total, unit) as advance:
        yield advance
    seconds = time.monotonic() - start
    say(f"{what}: {total} {unit} in {seconds:.1f} s ({total / max(seconds, 1e-9):.1f}/s)")


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

    if sys.stderr.isatty() and not _now.quiet:
        with _live_table(line, columns, rows):
            yield lambda: None
    else:
        with doing(line):
            yield show
    say(line())


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
            say(line())

    with doing(line):
        yield advance
