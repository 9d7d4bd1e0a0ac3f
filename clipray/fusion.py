"""A fused model without its encoders: embeddings of all backbones to labels and log p."""

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipray import backbones, images
from clipray.artefacts import fused_model
from clipray.artefacts.fused_model import Folder
from clipray.config import Backbone
from clipray.errors import ConfigError
from clipray.fingerprint import plain
from clipray.numerics.cascade.fitted import apply_cascade, apply_stage, cascade_from_parts
from clipray.numerics.contracts import State
from clipray.numerics.fusers import FUSERS, from_parts
from clipray.numerics.fusers.transductive import Sums
from clipray.numerics.heads import HEADS, head_of
from clipray.numerics.measures import cost
from clipray.numerics.ties import first_alike, kinds, level_state

BEST = 5


class Stage(NamedTuple):
    """Some backbones that run one after another, and what is fused after them; a cascade has several.

    Attributes:
        backbones: their numbers, those of earlier stages included.
    """

    backbones: tuple[int, ...]


class Fusion:
    """A fused model without its encoders: embeddings of all backbones to log p.

    Args:
        folder: the model, as `artefacts.fused_model.read` gives it.
    """

    def __init__(self, folder: Folder):
        about = folder.about
        self.about, self.digest, self.path = about, folder.digest, folder.path
        self.name: str = about["name"]
        self.classnames: list[str] = about["classnames"]
        self.backbones: list[str] = [one["entry"]["name"] for one in about["backbones"]]
        self.cards: list[dict] = [one["card"] for one in about["backbones"]]
        self.tensors = folder.tensors
        tensors = {name: torch.from_numpy(value.copy()) for name, value in folder.tensors.items()}
        self.weights = [tensors[f"classifier_CD/{m}"] for m in range(len(self.backbones))]
        self.head = head_of(about["head"]["head"], about["head"]["settings"])
        self.heads = [
            State(self.head.settings, _below(tensors, f"head/{m}/"), dict(numbers))
            for m, numbers in enumerate(about["head"]["numbers"])
        ]
        self.fuser = FUSERS[about["fuser"]["fuser"]]
        self.state = from_parts(
            about["fuser"]["fuser"], _below(tensors, "fuser/"), about["fuser"]["state"]
        )
        told = about["cascade"]
        self.cascade = told and cascade_from_parts(_below(tensors, "cascade/"), told)

    @cached_property
    def specs(self) -> list[Backbone]:
        """The backbones' entries, with the files that the model's folder holds in their place there.

        Raises:
            ConfigError: one has other weights than the model was fitted with, or none is known.
        """
        self.refuse_images()
        found = []
        for told in self.about["backbones"]:
            entry = Backbone(**told["entry"])
            own = {
                key: str(Path(self.path, place))
                for key in ("weights", "config")
                if (place := getattr(entry, key)).startswith(f"{fused_model.WEIGHTS}/")
            }
            spec = entry.model_copy(update=own)
            if plain(backbones.origin(spec)) != told["origin"]:
                raise ConfigError(
                    f"the fused model {self.name}: the backbone {spec.name} has other weights now than it was fitted "
                    "with. Put the old ones back, or fit the model anew"
                )
            found.append(spec)
        return found

    @property
    def used(self) -> list[int]:
        """Numbers of the backbones that have a say; those that a fuser gives no weight need not run."""
        if self.cascade:
            return sorted(self.cascade.order)
        return list(cost.backbones_used(self.state, len(self.backbones)))

    @property
    def stages(self) -> list[Stage]:
        """What runs, in order; one stage where there is no cascade."""
        if self.cascade:
            order = self.cascade.order
            return [Stage(order[: end + 1]) for end in range(len(order))]
        return [Stage(tuple(self.used))]

    def gflops(self, ran: Sequence[int]) -> float | None:
        """10⁹ floating-point operations of one image, if these backbones ran; None where it is not known."""
        costs = [{"gflops": card.get("image_gflops", float("nan"))} for card in self.cards]
        shape = len(self.backbones), len(self.classnames), [card["dim"] for card in self.cards]
        added = self.fuser.flops(self.state, *shape) / 1e9
        total = cost.method_cost(ran, costs, added)["gflops"]
        return total if math.isfinite(total) else None

    def group(self, number: int) -> images.Preprocess:
        """The preprocess group of a backbone."""
        self.refuse_images()
        size, *rest = self.cards[number]["preprocess"]
        return images.Preprocess(tuple(size), *rest)

    @property
    def of_vectors(self) -> bool:
        """Whether it was fitted on given vectors, so that no backbone is known that embeds an image."""
        return any(set(one["entry"]) == {"name"} for one in self.about["backbones"])

    def refuse_images(self) -> None:
        """`ConfigError` for a model that was fitted on given vectors."""
        if self.of_vectors:
            raise ConfigError(
                f"the fused model {self.name} was fitted on given vectors, so it knows no backbone that sees images. "
                "It labels vectors of the same backbones: `images: <a data set of given vectors>` in jobs.predict"
            )

    def refuse_transductive(self) -> None:
        """`ConfigError` for a fuser whose answer to an image depends on the other images of the call."""
        if self.fuser.transductive:
            raise ConfigError(
                f"the fused model {self.name}: its fuser {self.about['fuser']['fuser']} labels a whole set of images "
                "at once, so that an image has no label of its own. Fit a model with another fuser, such as log_avg"
            )

    def logits(self, embeddings: Sequence[np.ndarray | None], labelled: bool = True) -> Tensor:
        """logits_NMC of the model's head, or the zero-shot ones; 0 for backbones that did not run."""
        head = self.head if labelled else HEADS["zero_shot"]
        rows = next(len(e) for e in embeddings if e is not None)
        parts = []
        for m, e_ND in enumerate(embeddings):
            if e_ND is None:
                parts.append(torch.zeros(rows, len(self.classnames)))
                continue
            x_ND = torch.from_numpy(np.ascontiguousarray(e_ND, np.float32))
            state = self.heads[m] if labelled else State(head.settings)
            card = self.cards[m]
            parts.append(head.apply(state, x_ND, self.weights[m], card["scale"], card["bias"]))
        return torch.stack(parts, dim=1)

    def fuse(self, logits_NMC: Tensor, embeddings: Sequence[np.ndarray | None]) -> Tensor:
        """log_probs_NC of the fused model.

        Args:
            embeddings: M arrays N×D_m, as `encoding.stored` keeps them; None for backbones that did not run.
        """
        return self.fuser.apply(self.state, logits_NMC, self._filled(embeddings, len(logits_NMC)))

    def taught(self, sums: Sums) -> State:
        """The fuser's state as unlabelled images teach it, of which only sums are seen.

        Args:
            sums: over those images.
        """
        classes = len(self.classnames)
        state = self.fuser.by_sums.learn(self.state, sums, classes)
        known = [w_CD.T.double() for w_CD in self.weights]
        for one in (*self.heads, self.state):
            known.append(kinds(one.tensors, classes)[None].double())
        return level_state(state, first_alike(torch.cat(known)))

    def _filled(self, embeddings: Sequence[np.ndarray | None], count: int) -> tuple[Tensor, ...]:
        """The embeddings as tensors; zeros of backbones that did not run."""
        return tuple(
            torch.zeros(count, card["dim"])
            if e_ND is None
            else torch.from_numpy(np.ascontiguousarray(e_ND, np.float32))
            for e_ND, card in zip(embeddings, self.cards, strict=True)
        )

    def leaves(self, stage: int, embeddings: Sequence[np.ndarray | None]) -> np.ndarray:
        """Which images need no more than the backbones of a stage of the cascade, bool N.

        Args:
            embeddings: M arrays N×D_m; those of later stages may be None.
        """
        logits_NMC, members = self.logits(embeddings), self.cascade.members(stage)
        parts = self._filled(embeddings, len(logits_NMC))
        own = [parts[m] for m in members]
        return apply_stage(self.cascade, stage, logits_NMC[:, members], own).leaves_N.numpy()

    def _staged(
        self, embeddings: Sequence[np.ndarray | None], stage_N: np.ndarray | None
    ) -> list[dict[str, Any]]:
        """As `answers`, of a cascade."""
        logits_NMC = self.logits(embeddings)
        parts = self._filled(embeddings, len(logits_NMC))
        known_N = None if stage_N is None else torch.as_tensor(stage_N)
        log_probs_NC, left_N = apply_cascade(self.cascade, logits_NMC, parts, known_N)
        stages = [
            {
                "backbones_used": [self.backbones[m] for m in stage.backbones],
                "gflops": self.cascade.gflops[number],
            }
            for number, stage in enumerate(self.stages)
        ]
        answers = best(log_probs_NC, self.classnames)
        return [one | stages[n] for one, n in zip(answers, left_N.tolist(), strict=True)]

    def answers(
        self, embeddings: Sequence[np.ndarray | None], stage_N: np.ndarray | None = None
    ) -> list[dict[str, Any]]:
        """What the model says of N images: `label`, `class`, `probability`, `top5`, `backbones_used`, `gflops`.

        Args:
            embeddings: M arrays N×D_m; None for backbones that did not run.
            stage_N: of a cascade, the stage at which each image has left, so that rows of later stages' embeddings are
                not looked at; None: as the thresholds say, of images that every backbone has seen.
        """
        if self.cascade:
            return self._staged(embeddings, stage_N)
        ran = [m for m, e_ND in enumerate(embeddings) if e_ND is not None]
        names, gflops = [self.backbones[m] for m in ran], self.gflops(ran)
        answers = best(self.fuse(self.logits(embeddings), embeddings), self.classnames)
        return [one | {"backbones_used": names, "gflops": gflops} for one in answers]


def _below(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def best(log_probs_NC: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The class of each row (the first of equals, as in an evaluation), and the five best."""
    confidence_N, first_N = log_probs_NC.max(1)
    order_NB = log_probs_NC.argsort(dim=1, descending=True, stable=True)[:, :BEST]
    probs_NB = log_probs_NC.gather(1, order_NB).exp()
    rows = zip(
        first_N.tolist(),
        confidence_N.exp().tolist(),
        order_NB.tolist(),
        probs_NB.tolist(),
        strict=True,
    )
    return [
        {
            "label": names[first],
            "class": first,
            "probability": p,
            "top5": [
                {"label": names[c], "probability": q} for c, q in zip(order, probs, strict=True)
            ],
        }
        for first, p, order, probs in rows
    ]
