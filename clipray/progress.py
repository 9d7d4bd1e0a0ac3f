"""Progress on stderr: a live bar for a person, a line now and then for a log file."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

SECONDS = 15  # between two lines in a log file


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields advance(n); on leaving says how long it took.

    Args:
        what: what is being done. total: how many there are. unit: of what.
    """
    start = time.monotonic()
    shown = _bar if sys.stderr.isatty() else _lines
    with shown(what, total, unit) as advance:
        yield advance
    seconds = time.monotonic() - start
    print(
        f"{what}: {total} {unit} in {seconds:.1f} s ({total / seconds:.1f}/s)",
        file=sys.stderr,
        flush=True,
    )


@contextmanager
def board(
    line: Callable[[], str], columns: Sequence[str], rows: Callable[[], Sequence[Sequence[str]]]
) -> Iterator[Callable[[], None]]:
    """Yields show(), to be called whenever something moved: a live table for a person, a line now and then for a log.

    Args:
        line: how it stands. columns, rows: the table below it.
    """
    last = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table

        with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:

            def draw() -> None:
                nonlocal last
                if time.monotonic() - last >= 0.5:
                    last = time.monotonic()
                    table = Table(*columns, title=line())
                    for row in rows():
                        table.add_row(*row)
                    live.update(table, refresh=True)

            yield draw
    else:

        def say() -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS:
                last = time.monotonic()
                print(line(), file=sys.stderr, flush=True)

        yield say
    print(line(), file=sys.stderr, flush=True)


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
    )
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done, last = 0, time.monotonic()

    def advance(n: int) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            print(f"{what}: {done}/{total} {unit}", file=sys.stderr, flush=True)

    yield advance
