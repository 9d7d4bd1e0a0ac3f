"""Whether a split can be used: it holds images, and their labels are the numbers of its classes."""

from clipray.artefacts.index import Counts
from clipray.errors import ConfigError


def check(dataset: str, split: str, counts: Counts, n_classes: int) -> None:
    """Raise `ConfigError` unless some image can be read and each label is the number of a class.

    Args:
        counts: of the split's index.
        n_classes: C; labels are 0 to C - 1.
    """
    where = f"dataset {dataset}: its {split} split"
    if not counts.rows:
        raise ConfigError(f"{where} holds no image.\n  Correct `uri` or `splits`.")
    good = counts.rows - counts.bad
    if not good:
        raise unusable(dataset, split, counts.first_bad)
    labels = labels_of(counts)
    low, high = min(labels), max(labels)
    if low >= 0 and high < n_classes:
        return
    outside = sum(number for label, number in labels.items() if not 0 <= label < n_classes)
    raise ConfigError(
        f"{where} has labels from {low} to {high}, but there are {n_classes} class names (labels 0 to {n_classes - 1});"
        f" {outside} of {good} images have no class.\n  {label_remedy(low, high, n_classes)}"
    )


def unusable(dataset: str, split: str, reason: str) -> ConfigError:
    """Make the error of a split that holds rows, but no image that can be used."""
    return ConfigError(
        f"dataset {dataset}: its {split} split holds no image that can be used: {reason}.\n"
        "  Correct the files, or what names them."
    )


def labels_of(counts: Counts) -> dict[int, int]:
    """Return the number of images that can be used, by label; JSON has made the labels text."""
    return {int(label): number for label, number in counts.labels.items()}


def label_remedy(low: int, high: int, n_classes: int) -> str:
    """Say what to do about labels that are not the number of a class."""
    if low < 0 and high < 0:
        return (
            f"Labels of {low} mean that they are withheld: name a split that has some, such as"
            " `splits: {train: train, test: validation}`."
        )
    if low < 0:
        return f"Leave images without a label out, or write null in place of {low}: they are counted as such."
    if low == 1 and high == n_classes:
        return "They start at 1: subtract 1 from each, so that they start at 0."
    return "Correct the labels, or complete `classnames`."
