"""The scoring under shift of all datasets of a campaign, and what is published of it."""

from typing import Any

import pandas as pd
import pyarrow as pa

from clipray import images
from clipray.artefacts.index import read
from clipray.artefacts.robustness import FILE, Embedded, Shifted, address
from clipray.config.robustness import Robustness
from clipray.contact_sheet import contact_sheet
from clipray.progress import progress
from clipray.report import files
from clipray.report import robustness as report
from clipray.sources import contents
from clipray.steps import cluster, evaluations
from clipray.steps.evaluate import teach as meta
from clipray.steps.robustness.plan import GIVEN, Part
from clipray.steps.todo import Plan, record

LOOKED_AT = 8  # images that one for the contact sheet is looked for among


def tasks(todo: Plan, parts: list[Part]) -> list[Shifted]:
    """List the scoring of each dataset with what of its parts every backbone has embedded."""
    taught, _ = meta.taught(
        todo.store, evaluations.tasks(todo), todo.campaign.compute, todo.verbose
    )
    found = []
    for task in taught:
        own = []
        for part in parts:
            names = part.work.addresses
            if part.dataset != task.dataset or any(name not in names for name in task.backbones):
                continue
            places = tuple(names[name] for name in task.backbones)
            if all(todo.store.manifest(place) for place in places):
                given = part.perturbation.startswith(GIVEN)
                count = len(part.work.index)
                own.append(Embedded(part.perturbation, part.severity, places, count, given))
        if own:
            found.append(Shifted(task, tuple(own)))
    return found


def score_datasets(todo: Plan, parts: list[Part]) -> dict[str, str]:
    """Score the datasets in parallel; return the address of the scores of each one that did not fail."""
    from clipray.steps.evaluate.shifted import score

    every = tasks(todo, parts)
    places = {shifted.task.dataset: address(todo.store, shifted) for shifted in every}
    missing = [each for each in every if todo.store.manifest(places[each.task.dataset]) is None]
    if not missing:
        return places
    compute = todo.campaign.compute
    cluster.connect(compute, todo.verbose)
    given = [(todo.store, each, places[each.task.dataset]) for each in missing]
    failed = {}
    with progress("robustness", len(given), "datasets") as advance:
        for position, _, error in cluster.attempts(score, given, 1, 0, compute.max_retries):
            if error is not None:
                failed[missing[position].task.dataset] = cluster.reason(error)
            advance(1)
    record(todo, "robustness", failed)
    return {name: place for name, place in places.items() if name not in failed}


def publish(
    todo: Plan, campaign: Robustness, parts: list[Part], places: dict[str, str]
) -> dict[str, Any]:
    """Write scores, table, summary and contact sheets beside the campaign's report, and draw that anew.

    Returns:
        the addresses, and `summary`.
    """
    from clipray.steps.robustness import summary

    store, folder = todo.store, f"{files.FOLDER}/{campaign.name}"
    scores = pa.concat_tables(store.read_table(f"{place}/{FILE}") for place in places.values())
    frame = scores.to_pandas()
    told = summary.summary(frame)
    severities = {
        metric: summary.by_severity(frame, metric).to_dict("records")
        for metric in ("top1", "complementarity", "oracle_gain", "gain_on_test")
    }
    means = summary.best_backbones(summary.table(frame), told["head"])
    told |= {"by_severity": severities, "by_perturbation": _records(means)}
    sheets = {name: sheet for name in places if (sheet := _sheet(todo, parts, name))}
    report.write(store, folder, scores, summary.table(frame), told, sheets)
    drawn = files.draw(store, folder, *files.read(store, folder))
    return {"robustness": store.place(f"{folder}/{report.SCORES}"), "summary": told, **drawn}


def _records(means: pd.DataFrame) -> list[dict[str, Any]]:
    return means.reset_index().to_dict("records")


def _sheet(todo: Plan, parts: list[Part], dataset: str) -> bytes | None:
    """Draw a contact sheet of the first image of a dataset that can be decoded, as JPEG."""
    own = [p for p in parts if p.dataset == dataset and not p.perturbation.startswith(GIVEN)]
    names = list(dict.fromkeys(part.perturbation for part in own))
    if not names:
        return None
    index = own[0].work.index
    first = next(index.shards(LOOKED_AT))
    rows, chunks = read(todo.store, index.place, *first[1:])
    for image_id, data in zip(rows["image_id"].to_pylist(), contents(chunks, rows), strict=True):
        if isinstance(data, bytes):
            try:
                image = images.decode(data, todo.campaign.max_pixels)
            except images.ImageError:
                continue
            return report.jpeg(contact_sheet(image, image_id, names))
    return None
