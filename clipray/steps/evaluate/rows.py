"""Collects one dataset's score rows and per-image outcomes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clipray import schema
from clipray.steps.checks import REFERENCE

ON_TEST = "best_single_on_test"
RESAMPLES = 1000  # of every bootstrap


class Scores:
    """Rows of `schema.SCORES` and `schema.OUTCOMES` for one dataset's test split.

    Bounds and `REFERENCE` must be added before the methods that are compared with them.

    Args:
        dataset: its name.
        image_ids: the N scored images.
        labels_N: their labels, int64 tensor.
        expected: images in the split, scored or not.
    """

    def __init__(self, dataset: str, image_ids: Sequence[str], labels_N: Any, expected: int):
        self.dataset, self.image_ids, self.labels_N, self.expected = (
            dataset,
            list(image_ids),
            labels_N,
            expected,
        )
        self.rows: list[dict] = []
        self.parts: list[pa.Table] = []
        self.right: dict[tuple, Any] = {}  # (head, method, shots, seed) -> 0/1 per image

    def add(self, place: tuple, kind: str, log_probs_NC: Any) -> None:
        """Score one method: every metric, its gain over the best single backbone, and what it says of each image.

        Args:
            place: head, method, shots, seed. kind: of the method, one of `schema.KINDS`.
        """
        from clipray.numerics.measures import intervals, outcomes

        for metric, function in outcomes.PER_IMAGE.items():
            values_N = function(log_probs_NC, self.labels_N)
            if metric.startswith("top"):
                interval = intervals.wilson(float(values_N.sum()), len(values_N))
            else:
                interval = intervals.normal_interval(values_N)
            self._row(place, kind, metric, *interval)
            if metric == "top1":
                self.right[place] = values_N
        for metric, function in outcomes.OVERALL.items():
            self._row(place, kind, metric, float(function(log_probs_NC, self.labels_N)))
        self._gains(place, kind)
        confidence_N, prediction_N = log_probs_NC.max(1)
        self._outcomes(place, prediction_N.numpy(), confidence_N.exp().numpy())

    def number(self, place: tuple, kind: str, metric: str, value: Any, samples_B: Any) -> None:
        """A measure at (head, method, shots, seed), with the percentile interval of its bootstrap samples."""
        from clipray.numerics.measures.intervals import percentiles

        self._row(place, kind, metric, float(value), *percentiles(samples_B))

    def plain(self, place: tuple, kind: str, values: dict[str, float]) -> None:
        """Measures at (head, method, shots, seed) that have no interval."""
        for metric, value in values.items():
            self._row(place, kind, metric, value)

    def scores(self) -> pa.Table:
        """All rows so far (`schema.SCORES`)."""
        return pa.Table.from_pylist(self.rows, schema=schema.SCORES)

    def outcomes(self) -> pa.Table:
        """What every method said of every image (`schema.OUTCOMES`)."""
        return pa.concat_tables(self.parts) if self.parts else schema.OUTCOMES.empty_table()

    def _gains(self, place: tuple, kind: str) -> None:
        """Paired differences of top-1 to the best single backbones, and the share of the oracle's gain reached.

        `p_on_support` is McNemar's exact test against the single backbone chosen on the same support set.
        """
        from clipray.numerics.measures.complementarity import headroom_captured
        from clipray.numerics.measures.intervals import mcnemar, paired_bootstrap

        head, _, shots, seed = place
        on_test = (
            (head, ON_TEST, shots, seed)
            if (head, ON_TEST, shots, seed) in self.right
            else (head, ON_TEST, 0, 0)
        )
        oracle = (head, "oracle", *on_test[2:])
        for metric, reference in (
            ("gain_on_support", (head, REFERENCE, shots, seed)),
            ("gain_on_test", on_test),
        ):
            if reference in self.right and reference != place:
                difference = paired_bootstrap(self.right[place], self.right[reference], RESAMPLES)
                interval = (difference.difference, difference.low, difference.high)
                self._row(place, kind, metric, *interval)
                if metric == "gain_on_support":
                    p = mcnemar(self.right[place], self.right[reference])[2]
                    self._row(place, kind, "p_on_support", p)
        if on_test in self.right and oracle in self.right:
            means = [float(self.right[one].mean()) for one in (place, on_test, oracle)]
            self._row(place, kind, "headroom_captured", headroom_captured(*means))

    def _row(
        self,
        place: tuple,
        kind: str,
        metric: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        head, method, shots, seed = place
        self.rows.append(
            {
                "dataset": self.dataset,
                "split": "test",
                "perturbation": "none",
                "severity": 0,
                "head": head,
                "method": method,
                "kind": kind,
                "shots": shots,
                "seed": seed,
                "metric": metric,
                "value": value,
                "ci_low": low,
                "ci_high": high,
                "n_scored": len(self.image_ids),
                "n_expected": self.expected,
            }
        )

    def _outcomes(self, place: tuple, prediction_N: np.ndarray, confidence_N: np.ndarray) -> None:
        n = len(self.image_ids)
        constants = dict(zip(("head", "method", "shots", "seed"), place, strict=True)) | {
            "dataset": self.dataset
        }
        columns = {
            "image_id": self.image_ids,
            "label": self.labels_N.numpy().astype(np.int32),
            "prediction": prediction_N.astype(np.int32),
            "confidence": confidence_N.astype(np.float32),
        } | {
            name: pa.repeat(pa.scalar(value, schema.OUTCOMES.field(name).type), n)
            for name, value in constants.items()
        }
        self.parts.append(
            pa.table([columns[name] for name in schema.OUTCOMES.names], schema=schema.OUTCOMES)
        )
