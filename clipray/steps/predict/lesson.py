"""Everything that the fit of a fused model reads, by address or by content."""

from dataclasses import dataclass, field, replace

from clipray import fingerprint
from clipray.artefacts import evaluations
from clipray.config import Backbone
from clipray.config.predict import Cascade
from clipray.numerics import declared
from clipray.steps.predict import choose

FIT = "clipray.steps.predict.fit:make"  # that fits it


@dataclass(frozen=True)
class Lesson:
    """Everything that a fit reads, by address or by content; its fingerprint is in the fused model's address."""

    dataset: str
    prompts: dict
    backbones: tuple[str, ...]
    origins: tuple[dict, ...]
    classifiers: tuple[str, ...]
    scales: tuple[tuple[float, float], ...]
    precision: str
    max_pixels: int
    train: tuple[str, ...]  # addresses of the train split's embeddings; empty: no label is used
    tested: tuple[str, ...]  # digest of the test split's image ids, which are never drawn
    methods: tuple[choose.Candidate, ...]  # to choose from; one: nothing is chosen
    by: str
    shots: int
    seed: int
    seeds: int  # that are fitted together, as an evaluation does
    folds: int
    names: str = ""  # as in an evaluation's task
    cascade: Cascade | None = None
    which_backbones: int = 0  # how many to keep; 0: all
    specs: tuple[Backbone, ...] = field(
        default=(), metadata={"how": fingerprint.How("where weights lie; `origins` has what")}
    )
    test_ids: frozenset = field(
        default=frozenset(), metadata={"how": fingerprint.How("`tested` has their digest")}
    )
    cards: tuple[dict, ...] = field(
        default=(), metadata={"how": fingerprint.How("measured on some machine, not asked for")}
    )
    evaluation: str = field(  # where the scores of the same methods are, or nothing
        default="", metadata={"how": fingerprint.How("numbers to be told, not used")}
    )

    @property
    def what(self) -> dict:
        """The WHAT of the fused model."""
        methods = [{"head": one.head, "fuser": one.fuser} for one in self.methods]
        code = evaluations.code(FIT, choose.held_out, choose.best)
        return {"lesson": replace(self, methods=()), "methods": methods, "code": code}


def needs_labels(method: choose.Candidate) -> bool:
    """Tell whether the head or the fuser learns from labels."""
    head, fuser = declared.heads()[method.head.head], declared.fusers()[method.fuser.fuser]
    return head.needs_labels or fuser.needs_labels
