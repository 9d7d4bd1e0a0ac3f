"""Several campaigns side by side: what each method has in each of them, on the datasets that they share."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from clipray.report import gains, methods, page, summary

PAGE = "compared.html"


class Side(NamedTuple):
    """One method in the campaigns, and how far each is from the first that has it."""

    head: str
    method: str
    kind: str
    shots: int
    top1: list[float | None]
    differences: list[gains.Gain | None]


def shared(campaigns: Mapping[str, pa.Table]) -> list[str]:
    """The datasets that every campaign has, with as many test images."""
    counts = [summary.counts(scores)["n_expected"].to_dict() for scores in campaigns.values()]
    return sorted(
        name
        for name, number in counts[0].items()
        if all(own.get(name) == number for own in counts[1:])
    )


def sides(campaigns: Mapping[str, pa.Table]) -> list[Side]:
    """Every method that two campaigns have: means over the shared datasets, and differences to the first of them."""
    datasets, found = shared(campaigns), {}
    for number, scores in enumerate(campaigns.values()):
        table = summary.per_dataset(scores)
        table = table[table["dataset"].isin(datasets)]
        for key, part in table.groupby(["head", "method", "kind", "shots"]):
            own = found.setdefault(key, [None] * len(campaigns))
            own[number] = part.set_index("dataset")["top1"]
    rows = []
    for (head, method, kind, shots), series in found.items():
        given = [one for one in series if one is not None]
        if len(given) < 2:
            continue
        differences = [
            None if one is None or one is given[0] else gains.gain(one - given[0]) for one in series
        ]
        top1 = [None if one is None else float(one.mean()) for one in series]
        rows.append(Side(head, method, kind, int(shots), top1, differences))
    order = list(methods.KINDS)
    rows.sort(key=lambda row: (order.index(row.kind), -max(v for v in row.top1 if v is not None)))
    return rows


def render(campaigns: Mapping[str, pa.Table], links: Mapping[str, str]) -> str:
    """The comparison as a page like that of a campaign.

    Args:
        campaigns: name → `schema.SCORES`. links: name → its own report, as seen from the page.
    """
    context: dict[str, Any] = {
        "campaigns": list(campaigns),
        "links": links,
        "datasets": shared(campaigns),
        "sides": sides(campaigns),
        "heads": sorted(
            {head for one in campaigns.values() for head in one["head"].unique().to_pylist()}
        ),
    }
    return page.template("compared.html.j2").render(context)
