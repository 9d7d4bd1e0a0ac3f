"""Vectors that come with a dataset: what is known of them once they are checked."""

from dataclasses import dataclass

from clipray.artefacts import classifiers
from clipray.artefacts.embeddings import Work
from clipray.config import Backbone, Dataset
from clipray.store import Store


@dataclass(frozen=True)
class Given:
    """One data set of given vectors, checked.

    Attributes:
        dataset: its entry. uri: where its files lie.
        facts: by backbone, see `fits.facts`. classifiers: by backbone, an address.
        whats: by backbone with class vectors of its own, what they are made of.
        towers: by backbone without, the model that makes them.
        works: by split.
    """

    dataset: Dataset
    uri: str
    classnames: list[str]
    facts: dict[str, dict]
    classifiers: dict[str, str]
    whats: dict[str, dict]
    towers: dict[str, Backbone]
    works: dict[str, Work]

    def scale(self, name: str, cards: dict[str, dict | None]) -> tuple[float, float]:
        """Give the scale and bias of a backbone: as they are given, or else its model's.

        Args:
            cards: of models, by name.
        """
        if self.dataset.format == "logits":
            return self.facts[name]["radius"], 0.0
        own, card = self.dataset.backbones[name], {"scale": None, "bias": 0.0}
        if name in self.towers:
            card = cards[self.towers[name].name]
        scale = card["scale"] if own.scale is None else own.scale
        return scale, card["bias"] if own.bias is None else own.bias

    def narrow(self, store: Store) -> dict[str, str]:
        """Find backbones whose model makes class vectors of another length than theirs; by name, the reason."""
        found = {}
        for name, tower in self.towers.items():
            place, dim = self.classifiers[name], self.facts[name]["dim"]
            if store.manifest(place) is None:
                continue
            width = classifiers.read(store, place).shape[1]
            if width != dim:
                found[name] = (
                    f"its image vectors have {dim} numbers, but the class vectors of {tower.name} have {width}: name"
                    " the model that made them"
                )
        return found
