"""The evaluations of a campaign: one task a dataset, those that are missing in parallel."""

from clipray import snapshot
from clipray.artefacts import cards
from clipray.artefacts.evaluations import Task, address, what
from clipray.errors import ErrorBudget
from clipray.progress import progress
from clipray.steps import cluster, metrics, resources
from clipray.steps.embed import given as brought
from clipray.steps.evaluate import parts
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
                names=todo.names(dataset.name),
                save_fusers=todo.campaign.save_fusers,
                held_out=todo.campaign.held_out,
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
    done = snapshot.complete(todo.store, places.values())
    missing = [task for task in every if places[task.dataset] not in done]
    if missing:
        cpus = cluster.connect(compute, todo.verbose).get("CPU", 0)
        failed = _evaluate(todo, missing, places, parts.few(len(missing), cpus))
        record(todo, "evaluate", failed)
        places = {name: place for name, place in places.items() if name not in failed}
    if not places:
        raise ErrorBudget("no dataset could be evaluated.\n  " + "\n  ".join(told(todo.failed)))
    return places


def _evaluate(
    todo: Plan, missing: list[Task], places: dict[str, str], halved: bool
) -> dict[str, str]:
    """Run the evaluations, large ones in parts, small ones `halved` if asked; by dataset that failed, the reason."""
    retries, dims = todo.campaign.compute.max_retries, _dims(todo, missing)
    gpus, device = _gpus(todo)
    classes = {task.dataset: len(todo.prompts[task.dataset]["classnames"]) for task in missing}
    cut = {task.dataset: parts.parts(task, classes[task.dataset], halved) for task in missing}
    jobs = [(task, part) for task in missing for part in cut[task.dataset]]
    # the longest first, or a long one begun last would keep a single worker busy at the end
    jobs.sort(key=lambda job: -_size(classes[job[0].dataset], _labelled(todo, job[0]), job[1]))
    items = [(todo.store, task, places[task.dataset], part, device) for task, part in jobs]
    more = parts.CUDA if gpus else 0
    memory = [
        more
        + parts.memory(task, part, classes[task.dataset], dims[task.dataset], _labelled(todo, task))
        for task, part in jobs
    ]
    failed: dict[str, str] = {}
    facts: dict[str, dict] = {}
    with progress("evaluation", len(items), "tasks") as advance:
        attempts = cluster.attempts(evaluate.evaluate, items, 1, gpus, retries, memory)
        for position, told, error in attempts:
            name = jobs[position][0].dataset
            facts[name] = told
            if error is not None:
                failed[name] = cluster.reason(error)
            kind = "done" if error is None else "failed"
            metrics.count(f"clipray_evaluations_{kind}", 1, todo.campaign.name)
            advance(1)
    scored = [task for task in missing if task.dataset not in failed and len(cut[task.dataset]) > 1]
    joins = [
        (todo.store, what(task), places[task.dataset], cut[task.dataset], facts[task.dataset])
        for task in scored
    ]
    for position, _, error in cluster.attempts(evaluate.join, joins, 1, 0, retries):
        if error is not None:
            failed[scored[position].dataset] = cluster.reason(error)
    return failed


def _gpus(todo: Plan) -> tuple[float, str]:
    """Return the part of a GPU that each evaluation has, and the device that it applies fusers on."""
    part = todo.campaign.compute.evaluate_gpus
    if not part:
        return 0.0, "cpu"
    device = resources.obtain(todo.campaign.compute, todo.verbose).device
    return (part if device == "cuda" else 0.0), device


def _dims(todo: Plan, every: list[Task]) -> dict[str, list[int]]:
    """Look up the embedding dimensions of each evaluation's backbones, by dataset."""
    known, found = known_cards(todo), {}
    for task in every:
        given = todo.given.get(task.dataset)
        facts = given.facts if given else known
        found[task.dataset] = [facts[name]["dim"] for name in task.backbones]
    return found


def _labelled(todo: Plan, task: Task) -> int:
    """Count the images that support sets may hold."""
    train = todo.works.get((task.dataset, "train"))
    return len(train.index) if train else 0


def _size(classes: int, labelled: int, part: parts.Part) -> int:
    """Estimate how long a part takes: support images × classes, because every logit is computed."""
    support = min(labelled, classes * max(part.shots, default=0))
    return (support + 1) * classes
