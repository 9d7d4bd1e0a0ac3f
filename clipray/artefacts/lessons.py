"""What `nlc_meta` learns from and has learned: episodes of each dataset, and each dataset's weights from the others."""

from dataclasses import dataclass
from typing import Any

from clipray.artefacts import evaluations
from clipray.artefacts.evaluations import Task
from clipray.config import Fuser
from clipray.fingerprint import plain
from clipray.numerics import declared
from clipray.store import Store

FOLDER = "meta"
FUSER = "nlc_meta"
COMPUTE = "clipray.steps.evaluate.lessons"  # what makes both


@dataclass(frozen=True)
class Episodes:
    """What `nlc_meta` is taught on, of each dataset.

    Attributes:
        shots, seeds: of the support sets that are drawn.
        queries: at most, images beside a support set that it is judged on.
        fewest: with fewer of them there is no episode.
    """

    shots: tuple[int, ...] = (1, 2, 4, 8, 16)
    seeds: int = 2
    queries: int = 128
    fewest: int = 16


def settings(entry: Fuser) -> dict[str, Any]:
    """List all settings of an entry with their values, defaults too."""
    return plain(declared.settings_of(declared.fusers()[FUSER], entry.settings))


def what(task: Task, entry: Fuser) -> dict:
    """Return the WHAT of a dataset's episodes."""
    data = {
        "embeddings": task.embeddings,  # of the test split the ids, which are never drawn
        "classifiers": task.classifiers,
        "scales": task.scales,
    }
    return {
        "dataset": task.dataset,
        **data,
        "drawn": Episodes(),
        "experts": settings(entry)["experts"],
        "code": evaluations.code(f"{COMPUTE}:make_episodes"),
    }


def address(store: Store, dataset: str, made_of: dict) -> str:
    """Return the address of a dataset's episodes; `made_of` is their `what`."""
    return store.address(FOLDER, dataset, "episodes", what=made_of)


def what_of_weights(others: list[str], entry: Fuser) -> dict:
    """Return the WHAT of a dataset's weights; `others` are the addresses of the other datasets' episodes."""
    code = evaluations.code(f"{COMPUTE}:learn")
    return {"episodes": others, "settings": settings(entry), "code": code}


def address_of_weights(store: Store, dataset: str, made_of: dict) -> str:
    """Return the address of a dataset's weights; `made_of` is their WHAT."""
    return store.address(FOLDER, dataset, "weights", what=made_of)
