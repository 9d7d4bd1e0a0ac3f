"""The evaluations of a campaign: one task a dataset, those that are missing in parallel."""

from clipray.artefacts import cards
from clipray.artefacts.evaluations import Task, address
from clipray.errors import ErrorBudget
from clipray.progress import progress
from clipray.steps import cluster
from clipray.steps.embed import given as brought
from clipray.steps.evaluate import plan as evaluate
from clipray.steps.evaluate import teach as meta
from clipray.steps.todo import Plan, classifier_place, known_cards, record, told


def tasks(todo: Plan) -> list[Task]:
    """List the evaluation of each dataset that has not failed, on the backbones that have not failed there."""
    known, specs = known_cards(todo), {spec.name: spec for spec in todo.specs}
    found = []
    for dataset in todo.datasets:
        names, given = todo.usable(dataset.name), todo.given.get(dataset.name)
        if not names:
            continue
        heads, fusers = brought.methods(todo.campaign, dataset.format == "logits")
        if given:
            classes = given.classifiers
            scales = {name: given.scale(name, known) for name in names}
        else:
            classes = {name: classifier_place(todo, specs[name], dataset.name) for name in names}
            scales = {name: (known[name]["scale"], known[name]["bias"]) for name in names}
        found.append(
            Task(
                dataset=dataset.name,
                backbones=tuple(names),
                classifiers=tuple(classes[name] for name in names),
                scales=tuple(scales[name] for name in names),
                embeddings={
                    split: tuple(todo.works[dataset.name, split].addresses[name] for name in names)
                    for split in dataset.splits
                    # a train split of which nothing can be drawn has a pool without images
                    if split == "test" or len(todo.works[dataset.name, split].index)
                },
                expected=len(todo.works[dataset.name, "test"].index),
                heads=tuple(head.on(dataset.name) for head in heads),
                fusers=tuple(fuser.on(dataset.name) for fuser in fusers),
                shots=todo.campaign.shots,
                seeds=todo.campaign.seeds,
                folds=todo.campaign.folds,
                save_fusers=todo.campaign.save_fusers,
                alone=todo.campaign.alone,
                spaces=dataset.format != "logits",
                costs=() if given else tuple(cards.cost(known[name]) for name in names),
            )
        )
    return found


def evaluate_datasets(todo: Plan) -> dict[str, str]:
    """Evaluate the datasets in parallel; return the address of the scores of each one that did not fail.

    Raises:
        ErrorBudget: none is left.
    """
    compute = todo.campaign.compute
    every, unlearned = meta.taught(todo.store, tasks(todo), compute, todo.verbose)
    record(todo, "teach", unlearned)
    places = {task.dataset: address(todo.store, task) for task in every}
    known = todo.store.manifests(places.values())
    missing = [task for task, done in zip(every, known, strict=True) if done is None]
    if missing:
        compute = todo.campaign.compute
        cluster.connect(compute, todo.verbose)
        # the longest first, or one long evaluation begun last would keep a single worker busy at the end
        missing.sort(key=lambda task: -_size(todo, task))
        items = [(todo.store, task, places[task.dataset]) for task in missing]
        failed = {}
        with progress("evaluation", len(items), "datasets") as advance:
            attempts = cluster.attempts(evaluate.evaluate, items, 1, 0, compute.max_retries)
            for position, _, error in attempts:
                if error is not None:
                    failed[missing[position].dataset] = cluster.reason(error)
                advance(1)
        record(todo, "evaluate", failed)
        places = {name: place for name, place in places.items() if name not in failed}
    if not places:
        raise ErrorBudget("no dataset could be evaluated.\n  " + "\n  ".join(told(todo.failed)))
    return places


def _size(todo: Plan, task: Task) -> int:
    """Estimate how long an evaluation takes: support images × classes, because every logit is computed."""
    train, classes = (
        todo.works.get((task.dataset, "train")),
        len(todo.prompts[task.dataset]["classnames"]),
    )
    support = min(len(train.index), classes * max(task.shots)) if train and task.shots else 0
    return (support + 1) * classes
