"""Two methods of a campaign on the same images: differences with intervals and tests, dataset by dataset."""

from typing import Any, NamedTuple

import pyarrow as pa

from clipray.artefacts.evaluations import OUTCOMES
from clipray.config import Campaign
from clipray.errors import ConfigError
from clipray.report import files
from clipray.report.gains import Gain, gain
from clipray.shots import named, read
from clipray.store import Store

COLUMNS = ["head", "method", "shots", "seed", "image_id", "label", "prediction"]
RESAMPLES, LEVEL = 2000, 0.05


class Choice(NamedTuple):
    """A method as `[head:]method[@shots]` names it."""

    head: str
    method: str
    shots: int

    def __str__(self) -> str:
        return f"{self.head}:{self.method}@{named(self.shots)}"


def choice(text: str, campaign: Campaign) -> Choice:
    """Read `nlc@4` or `linear_probe:nlc@4`; the head is the campaign's first, the shots 0 where they are not given."""
    head, colon, rest = text.rpartition(":")
    method, _, shots = rest.partition("@")
    if not method or not (shots.isdigit() or shots in ("", "all")):
        raise ConfigError(f"{text!r}: write a method as [head:]method[@shots], as in nlc@4")
    first = campaign.heads[0]
    default = first if isinstance(first, str) else first.name
    return Choice(head if colon else default, method, int(read(shots or 0)))


def compare(campaign: Campaign, one: Choice, other: Choice) -> list[dict]:
    """Compare two methods: a row per dataset that has outcomes of both.

    Images and support sets are resampled both, for other ones could have been drawn. McNemar's exact test, which needs
    yes or no, is made for each pair of seeds, or against the one outcome of a method without seeds.

    Returns:
        rows of `dataset, images, a, b` (top-1), `difference, low, high, p` (paired bootstrap over images and
        support sets), `seeds`, and on how many
        of them McNemar's test finds a difference at 5 %: `a_better`, `b_better`.

    Raises:
        ConfigError: nothing is evaluated yet, or no dataset knows one of the methods.
    """
    store = Store(campaign.workspace)
    published = store.read_json(f"{files.FOLDER}/{campaign.name}/{files.MARK}")
    if published is None:
        raise ConfigError(
            f"campaign {campaign.name} has no results in {store.uri}: run `python -m jobs.run` first"
        )
    rows, known = [], set()
    for dataset, place in published["result"]["outcomes"].items():
        folder = place.removeprefix(store.uri).lstrip("/")
        table = store.read_table(f"{folder}/{OUTCOMES}", COLUMNS)
        known |= {
            Choice(*key.values())
            for key in table.select(COLUMNS[:3]).group_by(COLUMNS[:3]).aggregate([]).to_pylist()
        }
        a, b = (correctness(table, chosen) for chosen in (one, other))
        if a and b:
            rows.append({"dataset": dataset, **paired(a, b)})
    if not rows:
        missing = [str(chosen) for chosen in (one, other) if chosen not in known] or [
            str(one),
            str(other),
        ]
        raise ConfigError(
            f"no outcomes of {' and '.join(missing)}; known: {', '.join(map(str, sorted(known)))}"
        )
    return rows


def over_datasets(rows: list[dict]) -> Gain:
    """Average the differences over the datasets, with Student's interval and the number of wins and losses."""
    return gain([row["difference"] for row in rows])


def correctness(table: pa.Table, chosen: Choice) -> dict[int, Any]:
    """seed → which images a method has right, bool tensor in the order of image ids; empty where it has no outcomes."""
    import torch

    expression = pa.compute.field("head") == chosen.head
    expression &= (pa.compute.field("method") == chosen.method) & (
        pa.compute.field("shots") == chosen.shots
    )
    found = {}
    own = table.filter(expression).sort_by("image_id")
    for seed in sorted(set(own["seed"].to_pylist())):
        part = own.filter(pa.compute.equal(own["seed"], seed))
        found[seed] = torch.from_numpy(
            (part["label"].to_numpy() == part["prediction"].to_numpy()).copy()
        )
    return found


def mean_correctness(table: pa.Table, chosen: Choice) -> dict[str, float]:
    """Compute image id → share of the seeds in which a method has the image right."""
    expression = pa.compute.field("head") == chosen.head
    expression &= pa.compute.field("method") == chosen.method
    expression &= pa.compute.field("shots") == chosen.shots
    own = table.filter(expression).select(["image_id", "label", "prediction"])
    right = pa.compute.equal(own["label"], own["prediction"]).cast(pa.float64())
    means = own.append_column("right", right).group_by("image_id").aggregate([("right", "mean")])
    return dict(zip(means["image_id"].to_pylist(), means["right_mean"].to_pylist(), strict=True))


def differences(a: dict[int, Any], b: dict[int, Any]) -> Any:
    """differences_SN: a − b by support set and image; a method without seeds meets each one of the other's.

    Where the two have other support sets, only their means can be paired: S is 1.
    """
    import torch

    if len(a) == 1 or len(b) == 1:
        pairs = [(one, other) for one in a.values() for other in b.values()]
    elif set(a) == set(b):
        pairs = [(a[seed], b[seed]) for seed in sorted(a)]
    else:
        pairs = [tuple(torch.stack(list(own.values())).double().mean(0) for own in (a, b))]
    return torch.stack([one.double() - other.double() for one, other in pairs])


def paired(a: dict[int, Any], b: dict[int, Any]) -> dict:
    """Compare two methods by their correctness on the same images."""
    import torch

    from clipray.numerics.measures.intervals import mcnemar, nested

    mean_a, mean_b = (torch.stack(list(right.values())).double().mean(0) for right in (a, b))
    found = nested([differences(a, b)], RESAMPLES)
    seeds = sorted(set(a) & set(b)) if len(a) > 1 and len(b) > 1 else sorted(set(a) | set(b))
    tests = [mcnemar(a.get(seed, a[min(a)]), b.get(seed, b[min(b)])) for seed in seeds]
    return {
        "images": len(mean_a),
        "a": float(mean_a.mean()),
        "b": float(mean_b.mean()),
        **{"difference": found.difference, "low": found.low, "high": found.high, "p": found.p},
        "seeds": len(seeds),
        "a_better": sum(p < LEVEL and only_a > only_b for only_a, only_b, p in tests),
        "b_better": sum(p < LEVEL and only_b > only_a for only_a, only_b, p in tests),
    }
