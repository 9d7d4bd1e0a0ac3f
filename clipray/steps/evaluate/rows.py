"""Collects one dataset's score rows and per-image outcomes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from clipray import schema
from clipray.numerics.measures import intervals, outcomes
from clipray.numerics.measures.complementarity import headroom_captured
from clipray.steps.checks import REFERENCE

ON_TEST = "best_single_on_test"
ALONE, ALONE_ON_TEST = "alone", "alone_on_test"  # in front of a fuser's name: on one backbone
RESAMPLES = 1000  # of every bootstrap


class Place(NamedTuple):
    """Where a score belongs; shots and seed are 0 where no label was used."""

    head: str
    method: str
    shots: int
    seed: int


class Scores:
    """Rows of `schema.SCORES` and `schema.OUTCOMES` for one dataset's test split.

    Methods are added in any order. Comparisons between them are made once all are there, by `scores`.

    Args:
        dataset: its name.
        image_ids: the N scored images.
        labels_N: their labels, int64 tensor.
        expected: images in the split, scored or not.
    """

    def __init__(self, dataset: str, image_ids: Sequence[str], labels_N: Tensor, expected: int):
        self.dataset = dataset
        self.image_ids = list(image_ids)
        self.labels_N = labels_N
        self.ids = pa.array(self.image_ids, pa.string())  # once for the rows of every method
        self.labels = pa.array(labels_N.numpy().astype(np.int32))
        self.expected = expected
        self.rows: list[dict] = []
        self.parts: list[pa.Table] = []
        self.right: dict[Place, Tensor] = {}  # 0/1 per image
        self.kinds: dict[Place, str] = {}  # of what `right` holds
        self.compared: dict[Place, tuple[Place, Place]] = {}  # with a chosen backbone, with a bound

    def add(self, place: Place, kind: str, log_probs_NC: Tensor) -> None:
        """Score one method by every metric, and keep what it says of each image.

        Args:
            kind: of the method, one of `schema.KINDS`.
        """
        said = outcomes.Outcomes(self.labels_N)
        said.update(log_probs_NC, slice(0, len(log_probs_NC)))
        self.add_outcomes(place, kind, said)

    def add_outcomes(self, place: Place, kind: str, said: outcomes.Outcomes) -> None:
        """Score one method, as `add` does, whose outcomes were collected block by block."""
        self.kinds[place] = kind
        for name, interval in said.compute().items():
            self._row(place, kind, name, *interval)
        self.right[place] = said.values["top1"]
        self._outcomes(place, said.prediction_N.numpy(), said.log_p_N.exp().numpy())

    def compare(self, place: Place, alone: str, on_test: str) -> None:
        """Say what a fuser's synergy is measured against, at its own head, shots and seed.

        Args:
            alone: the method of one backbone with the same labels. on_test: the best one on test, a bound.
        """
        named = (place._replace(method=method) for method in (alone, on_test))
        self.compared[place] = tuple(named)

    def number(
        self, place: Place, kind: str, metric: str, value: Tensor | float, samples_B: Tensor
    ) -> None:
        """Add a measure with the percentile interval of its bootstrap samples."""
        self._row(place, kind, metric, float(value), *intervals.percentiles(samples_B))

    def interval(self, place: Place, kind: str, metric: str, interval: Sequence[float]) -> None:
        """Add a measure with its interval: value, low, high."""
        self._row(place, kind, metric, *interval)

    def plain(self, place: Place, kind: str, values: dict[str, float]) -> None:
        """Add measures that have no interval."""
        for metric, value in values.items():
            self._row(place, kind, metric, value)

    def scores(self) -> pa.Table:
        """Compare the methods with their references, and give all rows (`schema.SCORES`)."""
        rows = [*self.rows]
        for place, kind in self.kinds.items():
            rows += self._gains(place, kind)
        rows += self._synergies()
        return pa.Table.from_pylist(rows, schema=schema.SCORES)

    def outcomes(self) -> pa.Table:
        """Return the answer of every method to every image (`schema.OUTCOMES`)."""
        return pa.concat_tables(self.parts) if self.parts else schema.OUTCOMES.empty_table()

    def _gains(self, place: Place, kind: str) -> Iterator[dict]:
        """Yield rows of paired differences of top-1 to the best single backbones, and the share of headroom captured.

        `p_on_support` is McNemar's exact test against the single backbone chosen on the same support set.
        """
        head, _, shots, seed = place
        on_test = Place(head, ON_TEST, shots, seed)
        if on_test not in self.right:
            on_test = Place(head, ON_TEST, 0, 0)
        on_support = Place(head, REFERENCE, shots, seed)
        if on_support in self.right and on_support != place:
            yield self._difference(place, kind, "gain_on_support", on_support)
            p = intervals.mcnemar(self.right[place], self.right[on_support])[2]
            yield self._made(place, kind, "p_on_support", p)
        if on_test in self.right and on_test != place:
            yield self._difference(place, kind, "gain_on_test", on_test)
        oracle = on_test._replace(method="oracle")
        if on_test in self.right and oracle in self.right:
            means = [float(self.right[one].mean()) for one in (place, on_test, oracle)]
            yield self._made(place, kind, "headroom_captured", headroom_captured(*means))

    def _synergies(self) -> Iterator[dict]:
        """Yield rows of fused − alone: per support set, and over all support sets of a number of shots.

        A fuser without labels at a head without labels has no `synergy`, for nothing chooses its one backbone. It has
        `gain_on_mean`, over the mean of the single backbones.
        """
        draws: dict[Place, list[Tensor]] = {}
        kinds: dict[Place, str] = {}
        for place, (alone, on_test) in self.compared.items():
            kind = self.kinds[place]
            if alone in self.right:
                yield self._difference(place, kind, "synergy", alone)
                yield self._difference(place, kind, "synergy_on_test", on_test)
                one = self.right[place].double() - self.right[alone].double()
                every = place._replace(seed=0)
                draws.setdefault(every, []).append(one)
                kinds[every] = kind
            elif not place.shots:
                yield self._gain_on_mean(place, kind)
        for place, differences in draws.items():
            found = intervals.nested([torch.stack(differences)], RESAMPLES)
            interval = (found.difference, found.low, found.high)
            yield self._made(place, kinds[place], "synergy_over_draws", *interval)

    def _gain_on_mean(self, place: Place, kind: str) -> dict:
        """Make a row with the paired difference of top-1 to the mean of the single backbones."""
        singles = [
            right
            for own, right in self.right.items()
            if self.kinds[own] == "single" and (own.head, *own[2:]) == (place.head, *place[2:])
        ]
        mean_N = torch.stack(singles).double().mean(0)
        found = intervals.paired_bootstrap(self.right[place], mean_N, RESAMPLES)
        interval = (found.difference, found.low, found.high)
        return self._made(place, kind, "gain_on_mean", *interval)

    def _difference(self, place: Place, kind: str, metric: str, reference: Place) -> dict:
        """Make a row with the paired difference of top-1 to a reference."""
        found = intervals.paired_bootstrap(self.right[place], self.right[reference], RESAMPLES)
        return self._made(place, kind, metric, found.difference, found.low, found.high)

    def _row(self, place: Place, kind: str, metric: str, value: float, *interval: float) -> None:
        self.rows.append(self._made(place, kind, metric, value, *interval))

    def _made(
        self,
        place: Place,
        kind: str,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
    ) -> dict:
        return {
            "dataset": self.dataset,
            "split": "test",
            "perturbation": "none",
            "severity": 0,
            "head": place.head,
            "method": place.method,
            "kind": kind,
            "shots": place.shots,
            "seed": place.seed,
            "metric": metric,
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "n_scored": len(self.image_ids),
            "n_expected": self.expected,
        }

    def _outcomes(self, place: Place, prediction_N: np.ndarray, confidence_N: np.ndarray) -> None:
        n = len(self.image_ids)
        constants = place._asdict() | {"dataset": self.dataset}
        columns = {
            "image_id": self.ids,
            "label": self.labels,
            "prediction": prediction_N.astype(np.int32),
            "confidence": confidence_N.astype(np.float32),
        } | {
            name: pa.repeat(pa.scalar(value, schema.OUTCOMES.field(name).type), n)
            for name, value in constants.items()
        }
        self.parts.append(
            pa.table([columns[name] for name in schema.OUTCOMES.names], schema=schema.OUTCOMES)
        )
