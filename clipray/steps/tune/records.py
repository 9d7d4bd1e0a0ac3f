"""What was fitted, for good: one row per configuration, support set and moment of training, keyed by what made it.

Only the driver writes, and only adds: each write is a Parquet file of its own. A row is never fitted twice.
"""

import time
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa

from clipray import schema
from clipray.config import fingerprint
from clipray.steps.tune.space import Configuration
from clipray.store import Store

SECONDS = 5.0  # of work that a kill may cost: rows wait no longer for their file


class Cell(NamedTuple):
    """One support set."""

    dataset: str
    shots: int
    seed: int


class Fit(NamedTuple):
    """A fitted configuration's score on images that it has not seen.

    Attributes:
        progress: how far the training was, as a fraction; 1: the end.
        nll: mean −log p of the label, in nats; NaN with an error. top1: fraction.
        images: that were scored. fits: how many (one for each fold).
        seconds: of fitting and scoring, since the row before it.
        error: why there is no score; None where there is one.
    """

    configuration: Configuration
    cell: Cell
    progress: float
    nll: float
    top1: float
    images: int
    fits: int
    seconds: float
    error: str | None = None


class Records:
    """All fits of one way of drawing and scoring, of one version of the code.

    Args:
        place: their folder in the store.
        sources: by dataset, the fingerprint of the data that its fits read.
        forget: whether rows with an error are left out, so that they are tried again.
    """

    def __init__(self, store: Store, place: str, sources: dict[str, str], forget: bool = False):
        self.store, self.place, self.sources = store, place, sources
        self.rows: dict[str, dict[float, dict]] = {}
        self.trials: dict[str, list[dict]] = {}  # by study
        self.waiting: list[dict] = []
        self.asked: list[dict] = []
        self.last = time.monotonic()
        for name in sorted(store.names(place)):
            rows = store.read_table(f"{place}/{name}").to_pylist()
            if name.startswith("fits-"):
                for row in rows:
                    if not (forget and row["error"]):
                        self.rows.setdefault(row["key"], {})[row["progress"]] = row
            else:
                for row in rows:
                    self.trials.setdefault(row["study"], []).append(row)

    def key(self, configuration: Configuration, cell: Cell) -> str:
        """The address of a fit."""
        return fingerprint([self.sources[cell.dataset], configuration.text, cell.shots, cell.seed])

    def curve(self, configuration: Configuration, cell: Cell) -> dict[float, dict]:
        """By progress, the rows of a fit."""
        return self.rows.get(self.key(configuration, cell), {})

    def end(self, configuration: Configuration, cell: Cell) -> dict | None:
        """The row of the whole training, or of its failure."""
        return self.curve(configuration, cell).get(1.0)

    def add(self, fits: Iterable[Fit]) -> None:
        """Keep rows; they reach the store within SECONDS, or at `flush`."""
        for fit in fits:
            key = self.key(fit.configuration, fit.cell)
            row = {
                **fit._asdict(),
                **fit.cell._asdict(),
                "key": key,
                "configuration": fit.configuration.text,
            }
            del row["cell"]
            if fit.progress not in self.rows.setdefault(key, {}):
                self.rows[key][fit.progress] = row
                self.waiting.append(row)
        if time.monotonic() - self.last > SECONDS:
            self.flush()

    def tell(self, study: str, chosen: str, reached: float) -> None:
        """Keep that a study is done with a configuration, and how far it let it train."""
        self.asked.append({"study": study, "chosen": chosen, "reached": reached})
        self.trials.setdefault(study, []).append(self.asked[-1])

    def flush(self) -> None:
        """Write what waits."""
        stamp = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"  # in order of time: a study's history is read in its order
        for kind, rows, form in (
            ("fits", self.waiting, schema.FITS),
            ("trials", self.asked, schema.TRIALS),
        ):
            if rows:
                self.store.write_table(
                    f"{self.place}/{kind}-{stamp}.parquet", pa.Table.from_pylist(rows, schema=form)
                )
                rows.clear()
        self.last = time.monotonic()

    def table(self, configurations: set[str], cells: set[Cell]) -> pa.Table:
        """The rows of some configurations on some support sets."""
        every = (row for curve in self.rows.values() for row in curve.values())
        own = [
            row
            for row in every
            if row["configuration"] in configurations
            and Cell(row["dataset"], row["shots"], row["seed"]) in cells
        ]
        order = ("configuration", "dataset", "shots", "seed", "progress")
        return pa.Table.from_pylist(
            sorted(own, key=lambda row: [row[k] for k in order]), schema=schema.FITS
        )


def score(rows: Iterable[dict | Any], metric: str) -> float:
    """The mean over datasets of the mean over a dataset's rows; NaN where a row has an error."""
    by_dataset: dict[str, list[float]] = {}
    for row in rows:
        by_dataset.setdefault(row["dataset"], []).append(
            float("nan") if row["error"] else row[metric]
        )
    means = [sum(values) / len(values) for values in by_dataset.values()]
    return sum(means) / len(means) if means else float("nan")
