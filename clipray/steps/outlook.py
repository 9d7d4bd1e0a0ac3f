"""The plan in numbers and in lines: what there is, what is done, what is left, what it costs, and what nobody knows."""

from typing import Any

from clipray import snapshot
from clipray.artefacts.evaluations import address
from clipray.config import Campaign, Inputs
from clipray.config.search import Tune
from clipray.numerics import declared
from clipray.shots import ALL
from clipray.steps import checks
from clipray.steps.evaluate import teach as meta
from clipray.steps.evaluations import tasks
from clipray.steps.todo import Plan, known_cards

Facts = dict[str, Any]
UNKNOWN = None  # in JSON; a number that nobody can give yet never is 0


def outlook(todo: Plan) -> Facts:
    """Collect what `--dry-run` prints as JSON, and `describe` as lines."""
    images = _images_by_backbone(todo)
    cards = known_cards(todo)
    known = {spec.name: cards[spec.name] for spec in todo.specs}
    seconds = {
        name: _seconds(count, known[name]["seconds_per_image"] if known[name] else None)
        for name, count in images.items()
    }
    costs = list(seconds.values())
    return {
        "name": todo.campaign.name,
        "workspace": todo.store.uri,
        "defaults": todo.campaign.defaults(),
        "notes": [*_notes(todo), *(f"warning: {text}" for text in todo.remarks)],
        "splits": {
            f"{dataset}/{split}": {"images": len(work.index), "images_to_embed": work.images}
            for (dataset, split), work in todo.works.items()
        },
        "images": sum(len(work.index) for work in todo.works.values()),
        "images_to_embed": todo.images,
        "embeddings_to_compute": images,
        "classifiers_to_compute": sum(len(sets) for sets in todo.classifiers.values()),
        "embedding_seconds": UNKNOWN if UNKNOWN in costs else sum(costs),
        "embedding_seconds_by_backbone": seconds,
        "evaluation": evaluation(todo.campaign, _done(todo, known)),
    }


def describe(facts: Facts) -> list[str]:
    """Write the plan in lines."""
    lines = [f"workspace {facts['workspace']}, reports/{facts['name']}"]
    lines += [*_defaults(facts["defaults"]), *facts["notes"]]
    for name, split in facts["splits"].items():
        left = f"{split['images_to_embed']} to embed" if split["images_to_embed"] else "embedded"
        lines.append(f"  {name}: {split['images']} images, {left}")
    lines.append(f"text classifiers to compute: {facts['classifiers_to_compute']}")
    lines += [
        f"  {name}: {n} images to embed" for name, n in facts["embeddings_to_compute"].items()
    ]
    return [
        *lines,
        *_cost(facts["embedding_seconds_by_backbone"]),
        *_to_evaluate(facts["evaluation"]),
    ]


def defaults(inputs: Inputs) -> list[str]:
    """Write in a line the choices that change a number and that a config leaves open."""
    return _defaults(inputs.defaults())


def evaluation(campaign: Campaign, done: dict[str, bool | None]) -> Facts:
    """Count what is evaluated on each dataset.

    Args:
        done: by dataset, whether its scores are there; None where that cannot be known yet.
    """
    states = list(done.values())
    return {
        "datasets": len(done),
        "done": states.count(True),
        "to_evaluate": states.count(False),
        "unknown": states.count(UNKNOWN),
        "heads": len(campaign.heads),
        "fusers": len(checks.entries(campaign)),
        "support_sets": support_sets(campaign),
        "fits_per_dataset": fits(campaign),
    }


def fits(campaign: Campaign) -> int:
    """Count the fits of fusers on a dataset with a train split: one per support set, or one where no label is used."""
    sets, total = support_sets(campaign), 0
    for head in checks.named_heads(campaign.heads):
        for fuser in checks.entries(campaign):
            blind = not declared.heads()[head.head].needs_labels
            blind &= not declared.fusers()[fuser.fuser].needs_labels
            total += 1 if blind else sets
    return total


def support_sets(config: Inputs) -> int:
    """Count the draws of a dataset; all labelled images are one, whatever the seed."""
    return sum(1 if shots == ALL else config.seeds for shots in config.shots)


def of_search(config: Tune, campaign: Facts) -> Facts:
    """Count what a search does at most; which support sets can be used is known when all is embedded.

    Args:
        campaign: the outlook of the campaign that makes its embeddings.
    """
    from clipray.steps.tune import space as spaces

    sets = campaign["evaluation"]["datasets"] * support_sets(config)
    searches = {
        search.name: 1 + (config.samples or len(spaces.grid(search))) for search in config.searches
    }
    kept = ("workspace", "splits", "images", "images_to_embed", "embeddings_to_compute")
    kept += ("classifiers_to_compute", "embedding_seconds", "embedding_seconds_by_backbone")
    return {
        "name": config.name,
        "defaults": config.defaults(),
        "notes": [],
        **{key: campaign[key] for key in kept},
        "support_sets_at_most": sets,
        "configurations": searches,
    }


def describe_search(facts: Facts) -> list[str]:
    """Write the plan of a search in lines."""
    plan = describe(facts | {"evaluation": None})
    lines = [f"support sets to choose on: at most {facts['support_sets_at_most']}"]
    for name, number in facts["configurations"].items():
        most = number * facts["support_sets_at_most"]
        lines.append(f"  {name}: {number} configurations, so at most {most} of them to fit")
    return [*plan, *lines]


def _images_by_backbone(todo: Plan) -> dict[str, int]:
    """Count the images that each backbone has still to embed."""
    counts = {spec.name: 0 for spec in todo.specs}
    for (dataset, _), work in todo.works.items():
        if dataset in todo.given:
            continue
        for shard in work.shards():
            for name in work.todo[shard.name]:
                counts[name] += shard.rows
    return counts


def _seconds(images: int, per_image: float | None) -> float | None:
    if not images:
        return 0.0
    return UNKNOWN if per_image is None else images * per_image


def _done(todo: Plan, known: dict[str, dict | None]) -> dict[str, bool | None]:
    """Tell by dataset whether its scores are there."""
    if None in known.values() or todo.images or todo.classifiers:
        return {dataset.name: False for dataset in todo.datasets}
    if any(meta.is_untaught(fuser) for fuser in checks.entries(todo.campaign)):
        # its weights, which are taught on the other datasets, belong to the address of the scores
        return {dataset.name: UNKNOWN for dataset in todo.datasets}
    places = {task.dataset: address(todo.store, task) for task in tasks(todo)}
    done = snapshot.complete(todo.store, places.values())
    return {dataset: place in done for dataset, place in places.items()}


def _notes(todo: Plan) -> list[str]:
    """List what in a config may be a mistake."""
    there = {dataset.name for dataset in todo.datasets}
    methods = [*checks.named_heads(todo.campaign.heads), *checks.entries(todo.campaign)]
    chosen = {one.dataset for method in methods for one in method.chosen}
    absent = sorted(chosen - there)
    notes = []
    if absent:
        notes.append(
            f"note: settings are chosen for datasets that this campaign has not: {', '.join(absent)}"
        )
    pools = sorted(set(todo.campaign.compute.pools) - {spec.name for spec in todo.specs})
    if pools:
        notes.append(f"note: compute.pools names no backbone of this campaign: {', '.join(pools)}")
    return notes


def _cost(seconds: dict[str, float | None]) -> list[str]:
    unknown = [name for name, cost in seconds.items() if cost is UNKNOWN]
    known = sum(cost for cost in seconds.values() if cost is not UNKNOWN)
    if not unknown:
        return [f"expected cost: {known:.0f} core-seconds (or device-seconds) of embedding"]
    others = f"; {known:.0f} core-seconds (or device-seconds) for the others" if known else ""
    return [
        f"expected cost: unknown for {', '.join(unknown)}, measured when they are first loaded{others}"
    ]


def _to_evaluate(facts: Facts | None) -> list[str]:
    if facts is None:
        return []
    parts = [f"{facts['to_evaluate']} of {facts['datasets']} datasets"]
    if facts["unknown"]:
        parts = [f"unknown which of {facts['datasets']} datasets (nlc_meta is not taught yet)"]
    return [
        f"to evaluate: {parts[0]}; on each {facts['heads']} heads × {facts['fusers']} fusers × "
        f"{facts['support_sets']} support sets, that is {facts['fits_per_dataset']} fits",
    ]


def _defaults(values: dict[str, Any]) -> list[str]:
    shown = [
        f"{key} [{', '.join(map(str, value))}]" if isinstance(value, list) else f"{key} {value}"
        for key, value in values.items()
    ]
    return [f"defaults taken: {', '.join(shown)}"] if shown else []
