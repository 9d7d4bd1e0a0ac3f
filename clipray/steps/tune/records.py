"""Keep what was fitted, for good: one row per configuration, support set and moment of training.

Only the driver writes, and only adds: each write is a Parquet file of its own. A row is never fitted twice.
"""

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from clipray import schema
from clipray.config import fingerprint
from clipray.steps.tune.space import Configuration
from clipray.store import Store

SCORE, REPORT = (
    "score",
    "report",
)  # in a trial's reports: what samplers and schedulers compare, and when
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

    Attributes:
        reached: by study and configuration, the progress at which a scheduler ended it; 1: not ended; 0: it failed.
    """

    def __init__(self, store: Store, place: str, sources: dict[str, str], forget: bool = False):
        self.store, self.place, self.sources = store, place, sources
        self.rows: dict[tuple[str, Cell], dict[float, dict]] = {}
        self.reached: dict[str, dict[Configuration, float]] = {}
        self.waiting: dict[str, list[dict]] = {"fits": [], "trials": []}
        self.keys: dict[tuple[str, Cell], str] = {}
        self.last = time.monotonic()
        for name in sorted(store.names(place)):
            rows = store.read_table(f"{place}/{name}").to_pylist()
            if not name.startswith("fits-"):
                self._read_ends(rows, forget)
                continue
            for row in rows:
                if not (forget and row["error"]):
                    self._keep(row)

    def _keep(self, row: dict) -> None:
        """Keep a row; one whose data has changed since has another key, and is left out."""
        cell = Cell(row["dataset"], row["shots"], row["seed"])
        if cell.dataset in self.sources and row["key"] == self.key(row["configuration"], cell):
            self.rows.setdefault((row["configuration"], cell), {})[row["progress"]] = row

    def _read_ends(self, rows: list[dict], forget: bool) -> None:
        for row in rows:
            if row["reached"] or not forget:
                one = Configuration.of(row["configuration"])
                self.reached.setdefault(row["study"], {})[one] = row["reached"]

    def key(self, text: str, cell: Cell) -> str:
        """Return the address of a fit; `text` is its configuration's."""
        if (text, cell) not in self.keys:
            what = [self.sources[cell.dataset], text, cell.shots, cell.seed]
            self.keys[text, cell] = fingerprint(what)
        return self.keys[text, cell]

    def curve(self, one: Configuration, cell: Cell) -> dict[float, dict]:
        """Return the rows of a fit by progress."""
        return self.rows.get((one.text, cell), {})

    def end(self, one: Configuration, cell: Cell) -> dict | None:
        """Return the row of the whole training, or of its failure."""
        return self.curve(one, cell).get(1.0)

    def ends(self, one: Configuration, cells: Sequence[Cell]) -> list[dict] | None:
        """Return the rows of the whole training on some support sets; None where one lacks or failed."""
        rows = [self.end(one, cell) for cell in cells]
        return rows if all(row is not None and row["error"] is None for row in rows) else None

    def add(self, fits: Iterable[Fit]) -> list[Fit]:
        """Keep rows, and return those that are new; they reach the store within SECONDS, or at `flush`."""
        new = []
        for fit in fits:
            curve = self.rows.setdefault((fit.configuration.text, fit.cell), {})
            if fit.progress in curve:
                continue
            text = fit.configuration.text
            row = {**fit._asdict(), **fit.cell._asdict(), "configuration": text}
            row["key"] = self.key(text, row.pop("cell"))
            curve[fit.progress] = row
            self.waiting["fits"].append(row)
            new.append(fit)
        if time.monotonic() - self.last > SECONDS:
            self.flush()
        return new

    def tell(self, study: str, one: Configuration, reached: float) -> None:
        """Keep how far a study's scheduler let a configuration train."""
        self.reached.setdefault(study, {})[one] = reached
        row = {"study": study, "configuration": one.text, "reached": reached}
        self.waiting["trials"].append(row)

    def flush(self) -> None:
        """Write what waits."""
        stamp = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        forms = {"fits": schema.FITS, "trials": schema.TRIALS}
        for kind, rows in self.waiting.items():
            if rows:
                table = pa.Table.from_pylist(rows, schema=forms[kind])
                self.store.write_table(f"{self.place}/{kind}-{stamp}.parquet", table)
                rows.clear()
        self.last = time.monotonic()

    def table(self, configurations: set[str], cells: set[Cell]) -> pa.Table:
        """Return the rows of some configurations on some support sets."""
        order = ("configuration", "dataset", "shots", "seed", "progress")
        own = []
        for (text, cell), curve in self.rows.items():
            if text in configurations and cell in cells:
                own.extend(curve.values())
        own.sort(key=lambda row: [row[name] for name in order])
        return pa.Table.from_pylist(own, schema=schema.FITS)


def score(rows: Iterable[dict | Any], metric: str) -> float:
    """Compute the mean over datasets of the mean over a dataset's rows; NaN where a row has an error."""
    by_dataset: dict[str, list[float]] = {}
    for row in rows:
        value = float("nan") if row["error"] else row[metric]
        by_dataset.setdefault(row["dataset"], []).append(value)
    means = [sum(values) / len(values) for values in by_dataset.values()]
    return sum(means) / len(means) if means else float("nan")
