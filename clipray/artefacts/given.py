"""Vectors that come with a dataset: what is known of them once they are checked."""

from dataclasses import dataclass

from clipray.artefacts.embeddings import Work
from clipray.config import Dataset


@dataclass(frozen=True)
class Given:
    """One data set of given vectors, checked.

    Attributes:
        dataset: its entry. uri: where its files lie.
        facts: by backbone, see `fits.facts`. classifiers: by backbone, an address. whats: theirs.
        works: by split.
    """

    dataset: Dataset
    uri: str
    classnames: list[str]
    facts: dict[str, dict]
    classifiers: dict[str, str]
    whats: dict[str, dict]
    works: dict[str, Work]

    @property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Scale and bias by backbone."""
        if self.dataset.format == "logits":
            return {name: (facts["radius"], 0.0) for name, facts in self.facts.items()}
        own = self.dataset.backbones
        return {name: (own[name].scale, own[name].bias) for name in self.facts}
