"""What the evaluation of one dataset is asked for, and what its two tables are called; no torch."""

from dataclasses import dataclass, field

from clipray import fingerprint
from clipray.config import Fuser, Head

SCORES, OUTCOMES = "scores.parquet", "outcomes.parquet"


@dataclass(frozen=True)
class Task:
    """Everything that the evaluation of one dataset reads, by address."""

    dataset: str
    backbones: tuple[str, ...]
    classifiers: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]  # logit scale and bias of each backbone
    embeddings: dict[str, tuple[str, ...]]  # by split
    expected: int  # images of the test split
    heads: tuple[str | Head, ...]
    fusers: tuple[Fuser, ...]
    shots: tuple[int, ...]
    seeds: int
    folds: int
    save_fusers: bool = False
    alone: bool = True  # whether every fuser with labels is fitted on each backbone alone, too
    spaces: bool = True  # whether the embeddings are a model's, so that measures of their spaces mean something
    costs: tuple[dict, ...] = field(  # of each backbone, see `cost.method_cost`
        default=(), metadata={"how": fingerprint.How("measured on some machine, not asked for")}
    )


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
