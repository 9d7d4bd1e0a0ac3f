"""Linear probe: multinomial logistic regression on the support embeddings; text plays no part."""

from collections.abc import Sequence

from torch import Tensor

from clipray.numerics.contracts import Head, Shots, State, unit
from clipray.numerics.fewshot.prototypes import Probe, fit_probes, probe


def fit_linear_probe(problems: Sequence[Shots], settings: Probe) -> list[State]:
    """Fit multinomial logistic regression on centred unit features; the penalty by cross-validation."""
    classes = len(problems[0].classifier_CD) if problems else 0
    return fit_probes(
        [unit(p.embeddings_KD) for p in problems], [p.labels_K for p in problems], classes, settings
    )


def linear_probe(
    state: State, embeddings_ND: Tensor, classifier_CD: Tensor, scale: float, bias: float
) -> Tensor:
    """Compute the probe's logits; text and the model's scale play no part."""
    return probe(state, unit(embeddings_ND))


HEAD = Head(fit_linear_probe, linear_probe, Probe())
