"""Scores of one dataset under shift: what their scoring reads, by address, and where they lie."""

from dataclasses import dataclass

from clipray import fingerprint
from clipray.artefacts.evaluations import Task
from clipray.store import Store

FILE = "scores.parquet"
SCORE = "clipray.steps.evaluate.shifted:score"  # that makes them


@dataclass(frozen=True)
class Embedded:
    """A part with its embeddings.

    Attributes:
        embeddings: an address for each backbone. expected: images, embedded or not.
        given: the copies were there already, so their images have ids of their own.
    """

    perturbation: str
    severity: int
    embeddings: tuple[str, ...]
    expected: int
    given: bool


@dataclass(frozen=True)
class Shifted:
    """The evaluation of a dataset, and its parts."""

    task: Task
    parts: tuple[Embedded, ...]

    @property
    def what(self) -> dict:
        """The WHAT: tasks, parts, and the code that makes numbers of them."""
        code = fingerprint.code(SCORE)
        return {"task": self.task, "parts": self.parts, "code": code}


def address(store: Store, shifted: Shifted) -> str:
    """Return the address of a dataset's scores under shift."""
    return store.address("robustness", shifted.task.dataset, what=shifted.what)
