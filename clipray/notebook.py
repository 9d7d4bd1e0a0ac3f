"""clipray in a notebook: measures, fusers, scores and plots on arrays, without a config, a cluster or a file.

`import clipray` makes all of it available, and loads it when it is first used.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clipray.numerics import contracts
from clipray.numerics.fusers import FUSERS, settings_of
from clipray.numerics.measures import complementarity as measures
from clipray.numerics.measures import outcomes

Array = Any  # whatever `torch.as_tensor` takes: a numpy array, a tensor, nested lists


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fused classifier: what `fit` returns."""

    name: str
    state: contracts.State

    def apply(self, logits: Array, embeddings: Sequence[Array] | None = None) -> np.ndarray:
        """Fuse images.

        Args:
            logits: N×M×C, at the models' own scale. embeddings: M arrays N×D_m, for fusers that need them.

        Returns:
            log-probabilities N×C, float32.

        Raises:
            ValueError: shapes that do not fit, or embeddings are missing.
        """
        logits_NMC = _logits(logits)
        parts = _embeddings(self.name, logits_NMC, embeddings)
        return FUSERS[self.name].apply(self.state, logits_NMC, parts).numpy()


def fit(
    name: str,
    logits: Array | None = None,
    labels: Array | None = None,
    embeddings: Sequence[Array] | None = None,
    *,
    unlabelled: tuple | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit a fuser on labelled images; label-free ones need no arguments, `guarded` only unlabelled images.

    Args:
        name: of a fuser, see `fusers`.
        logits: K×M×C of the labelled images. labels: K whole numbers. embeddings: M arrays K×D_m.
        unlabelled: (logits, embeddings) of images without labels, for fusers that learn from them too.
        settings: those that are not to be at their defaults. seed: the only source of chance.

    Raises:
        ValueError: there is no such fuser or setting, labels are missing, or shapes do not fit.

    >>> import clipray
    >>> logits = [[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]]      # 2 images, 2 backbones, 2 classes
    >>> clipray.fit("log_avg").apply(logits).argmax(1).tolist()
    [0, 1]
    >>> clipray.fit("best_single_on_support", logits, [0, 1]).apply(logits).argmax(1).tolist()
    [0, 1]
    """
    changed = _settings(name, settings)
    if logits is None:
        if FUSERS[name].needs_labels and not FUSERS[name].without_labels:
            raise ValueError(f"{name} learns from labels: give `logits` and `labels`.")
        state = FUSERS[name].fit([_nothing()], changed)[0]
    else:
        support = _support(name, logits, labels, embeddings, seed)
        state = FUSERS[name].fit([support], changed)[0]
    if unlabelled is not None:
        adapt = FUSERS[name].adapt
        if adapt is None:
            raise ValueError(f"{name} does not learn from unlabelled images: leave them out.")
        others_NMC = _logits(unlabelled[0])
        state = adapt(state, others_NMC, _embeddings(name, others_NMC, unlabelled[1]))
    return Fitted(name, state)


def apply(name: str, logits: Array, embeddings: Sequence[Array] | None = None) -> np.ndarray:
    """Fuse images by a fuser that needs no labels: log-probabilities N×C.

    >>> apply("prob_avg", [[[0.0, 0.0], [0.0, 0.0]]]).round(3).tolist()
    [[-0.6930000185966492, -0.6930000185966492]]
    """
    return fit(name).apply(logits, embeddings)


def fusers() -> list[str]:
    """List the names of all fusers."""
    return list(FUSERS)


def right(logits: Array, labels: Array) -> np.ndarray:
    """Tell which backbone has which image right: bool N×M, from logits N×M×C.

    >>> right([[[2.0, 0.0], [0.0, 1.0]]], [0]).tolist()
    [[True, False]]
    """
    logits_NMC = _logits(logits)
    labels_N = _labels(labels, len(logits_NMC), logits_NMC.shape[2])
    return (logits_NMC.argmax(-1) == labels_N[:, None]).numpy()


def complementarity(right_or_logits: Array, labels: Array | None = None) -> dict[str, float]:
    """Measure how backbones complement each other as a set.

    Args:
        right_or_logits: bool or 0/1, N×M; or logits N×M×C, with labels.

    Returns:
        every measure of `numerics.measures.complementarity.of_set`.

    >>> round(complementarity([[1, 0], [1, 0], [0, 1], [0, 0]])["complementarity"], 2)
    0.5
    """
    return {key: float(v) for key, v in measures.of_set(_patterns(right_or_logits, labels)).items()}


def by_backbone(
    right_or_logits: Array, labels: Array | None = None, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Tabulate accuracy, exclusive share and Shapley value, one row a backbone.

    >>> by_backbone([[1, 1], [1, 0], [0, 0], [0, 0]], names=["a", "b"]).loc["a", "shapley"].item()
    0.375
    """
    found = measures.by_backbone(_patterns(right_or_logits, labels))
    table = pd.DataFrame({key: values.numpy() for key, values in found.items()})
    table.index = _names(names, len(table))
    return table


def pairs(
    right_or_logits: Array, labels: Array | None = None, names: Sequence[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Tabulate every measure of pairs of backbones, each a square table; `rescue`'s rows are the rescuers.

    >>> pairs([[1, 0], [1, 0], [0, 1], [0, 0]], names=["a", "b"])["rescue"].loc["a", "b"].round(2).item()
    0.67
    """
    found = measures.pairs(_patterns(right_or_logits, labels))
    labels_M = _names(names, len(next(iter(found.values()))))
    return {key: pd.DataFrame(v.numpy(), labels_M, labels_M) for key, v in found.items()}


def metrics(log_probs: Array, labels: Array) -> dict[str, float]:
    """Compute every outcome metric of one classifier, from log-probabilities N×C.

    >>> round(metrics([[-0.1, -2.35], [-2.35, -0.1]], [0, 0])["top1"], 2)
    0.5
    """
    log_probs_NC = _floats(log_probs, 2, "log_probs")
    labels_N = _labels(labels, *log_probs_NC.shape)
    return {
        name: float(function(log_probs_NC, labels_N).mean())
        for name, function in outcomes.METRICS.items()
    }


def scores(workspace: str, campaign: str = "") -> pd.DataFrame:
    """Read the scores of a workspace, one row a number.

    Args:
        workspace: a folder or URI. campaign: its name, where the workspace holds several.

    Raises:
        ValueError: there is no report of that name.
    """
    from clipray.report import files
    from clipray.store import Store

    store = Store(workspace)
    known = files.campaigns(store)
    if not campaign and len(known) == 1:
        campaign = known[0]
    if campaign not in known:
        there = ", ".join(known) or "none"
        raise ValueError(
            f"{workspace} has no single report named {campaign!r}: name one of its campaigns ({there})."
        )
    return files.read(store, campaign)[0].to_pandas()


def plot_pairs(table: pd.DataFrame, title: str = "") -> Any:
    """Draw one table of `pairs` as a matplotlib figure, with its numbers in the cells."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 0.7 * len(table), 1.5 + 0.6 * len(table)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table.to_numpy(), cmap="Blues")
    axes.set_xticks(range(len(table)), [str(name) for name in table.columns], rotation=45)
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    for i, row in enumerate(table.to_numpy()):
        for j, value in enumerate(row):
            axes.text(j, i, f"{value:.2f}", ha="center", va="center")
    axes.set_title(title)
    return figure


def _patterns(right_or_logits: Array, labels: Array | None) -> measures.Patterns:
    if labels is not None:
        right_or_logits = right(right_or_logits, labels)
    right_NM = torch.as_tensor(np.asarray(right_or_logits))
    if right_NM.ndim != 2 or not len(right_NM):
        raise ValueError(
            f"a matrix images × backbones is needed, not one of shape {tuple(right_NM.shape)};"
            " logits need `labels`."
        )
    if not bool(((right_NM == 0) | (right_NM == 1)).all()):
        raise ValueError("the matrix of right and wrong holds other numbers than 0 and 1.")
    return measures.patterns(right_NM)


def _settings(name: str, changes: Mapping[str, Any] | None) -> Any:
    try:
        return settings_of(name, changes)
    except KeyError as error:
        raise ValueError(str(error.args[0])) from error
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error


def _support(
    name: str, logits: Array, labels: Array, embeddings: Sequence[Array] | None, seed: int
) -> contracts.Support:
    if labels is None:
        raise ValueError(f"{name}: give `labels` with `logits`, one an image.")
    logits_KMC = _logits(logits)
    labels_K = _labels(labels, len(logits_KMC), logits_KMC.shape[2])
    parts = _embeddings(name, logits_KMC, embeddings)
    return contracts.Support(logits_KMC, parts, labels_K, seed=seed)


def _nothing() -> contracts.Support:
    return contracts.Support(torch.zeros(0, 1, 1), (), torch.zeros(0, dtype=torch.int64))


def _floats(values: Array, dimensions: int, what: str) -> Tensor:
    found = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    found = found.detach().cpu().float()
    if found.ndim != dimensions:
        raise ValueError(f"{what} has {found.ndim} dimensions, not {dimensions}.")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{what} holds numbers that are not finite.")
    return found


def _logits(logits: Array) -> Tensor:
    return _floats(logits, 3, "logits (images × backbones × classes)")


def _labels(labels: Array, images: int, classes: int) -> Tensor:
    given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    found = given.cpu().long()
    if found.shape != (images,) or not bool((found == given.cpu()).all()):
        raise ValueError(f"labels are {images} whole numbers, one an image.")
    if images and not 0 <= int(found.min()) <= int(found.max()) < classes:
        raise ValueError(f"labels lie in 0..{classes - 1}.")
    return found


def _embeddings(
    name: str, logits_NMC: Tensor, embeddings: Sequence[Array] | None
) -> tuple[Tensor, ...]:
    if embeddings is None:
        if FUSERS[name].needs_embeddings:
            raise ValueError(f"{name} looks at embeddings: give one array a backbone.")
        return ()
    parts = tuple(_floats(each, 2, "an array of embeddings") for each in embeddings)
    images, backbones, _ = logits_NMC.shape
    if [len(each) for each in parts] != [images] * backbones:
        raise ValueError(f"embeddings are {backbones} arrays of {images} rows.")
    return parts


def _names(names: Sequence[str] | None, count: int) -> list[Any]:
    if names is not None and len(names) != count:
        raise ValueError(f"{len(names)} names for {count} backbones.")
    return list(range(count)) if names is None else list(names)
