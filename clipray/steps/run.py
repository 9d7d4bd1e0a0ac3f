"""The campaign: index, classifiers, embeddings, evaluations, report, in order, skipping what is done."""

import time
from dataclasses import dataclass, field

from clipray import backbones, catalog, sources
from clipray.config import Backbone, Campaign, Dataset
from clipray.config import names as config_names
from clipray.progress import doing, progress
from clipray.steps import cards, checks, classifiers, cluster, embed, evaluate, meta
from clipray.steps.index import in_threads, index, reader
from clipray.store import Store


@dataclass
class Plan:
    """What a campaign consists of, and what of it is missing."""

    campaign: Campaign
    store: Store
    specs: list[Backbone]
    datasets: list[Dataset]
    prompts: dict[str, dict]  # by dataset: class names and templates
    works: dict[tuple[str, str], embed.Work]  # by (dataset, split)
    classifiers: dict[str, dict]  # by backbone with something missing: the datasets' prompts
    verbose: bool = False
    failures: list[dict] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # on the data, for a person
    started: float = field(default_factory=time.time)  # in seconds since 1970

    @property
    def images(self) -> int:
        """Images in shards that lack an embedding."""
        return sum(work.images for work in self.works.values())

    @property
    def busy(self) -> list[str]:
        """Backbones with images to embed."""
        todo = {
            name for work in self.works.values() for names in work.todo.values() for name in names
        }
        return [spec.name for spec in self.specs if spec.name in todo]


def plan(campaign: Campaign, verbose: bool = False, dry: bool = False) -> Plan:
    """Resolve every name, index every split, and find out what is missing.

    Args:
        dry: start no Ray, however many files have to be read.

    Raises:
        ConfigError: a dataset, backbone, method or name that cannot be used.
    """
    checks.check(campaign)
    store = Store(campaign.workspace)
    specs = [backbones.pinned(spec) for spec in catalog.backbones(campaign.backbones)]
    config_names.refuse_merged((spec.name for spec in specs), "backbones")
    datasets = catalog.datasets(campaign.datasets, campaign.data_root)
    config_names.refuse_merged((dataset.name for dataset in datasets), "datasets")
    prompts = {
        dataset.name: {
            "classnames": sources.classnames(dataset, campaign.data_root),
            "templates": sources.templates(dataset, campaign.data_root),
        }
        for dataset in datasets
    }
    works, remarks = {}, []
    mapper = in_threads if dry else reader(campaign.compute)
    splits = [(dataset, split) for dataset in datasets for split in dataset.splits]
    for dataset in datasets:
        said = sources.remarks(dataset, campaign.data_root)
        remarks += [f"{dataset.name}: {text}" for text in said]
    with progress("index", len(splits), "splits") as advance:
        for dataset, split in splits:
            names = prompts[dataset.name]["classnames"]
            with doing(f"looking at {dataset.name}/{split}"):
                found = index(
                    store, dataset, split, campaign.data_root, mapper, campaign.limit, names
                )
                works[dataset.name, split] = embed.plan(store, specs, campaign, found)
            remarks += [f"{dataset.name}: {text}" for text in found.remarks]
            advance(1)
    missing = classifiers.missing(store, specs, campaign.precision, datasets, prompts)
    return Plan(campaign, store, specs, datasets, prompts, works, missing, verbose, remarks=remarks)


def prepare(todo: Plan) -> None:
    """Compute the missing text classifiers and backbone cards, one Ray task a backbone."""
    if not todo.classifiers:
        return
    compute = todo.campaign.compute
    resources = cluster.connect(compute, todo.verbose)
    device = cluster.device(compute, resources)
    specs = {spec.name: spec for spec in todo.specs}
    items = [
        (todo.store, specs[name], todo.campaign.precision, device, prompts)
        for name, prompts in todo.classifiers.items()
    ]
    gpus = 1.0 if device == "cuda" else 0.0
    with progress("class names", len(items), "backbones") as advance:
        for _ in cluster.tasks(classifiers.prepare, items, 1, gpus, compute.max_retries):
            advance(1)


def known_cards(todo: Plan) -> dict[str, dict]:
    """Each backbone's card."""
    return {spec.name: cards.read(todo.store, spec, todo.campaign.precision) for spec in todo.specs}


def embed_images(todo: Plan) -> None:
    """Embed what is missing and declare every split complete."""
    from clipray.steps.pools import share

    works, compute = list(todo.works.values()), todo.campaign.compute
    if todo.images:
        resources = cluster.connect(compute, todo.verbose)
        device = cluster.device(compute, resources)
        known = known_cards(todo)
        costs = {name: known[name]["seconds_per_image"] for name in todo.busy}
        gpus = resources.get("GPU", 0) if device == "cuda" else 0
        pools = share(costs, resources["CPU"], gpus, compute)
        with progress("images", todo.images, "images") as advance:
            for done in embed.run(
                todo.store, works, todo.specs, todo.campaign, known, pools, device
            ):
                advance(done["images"])
    for work in works:
        todo.failures += embed.finish(todo.store, work)


def tasks(todo: Plan) -> list[evaluate.Task]:
    """The evaluation of each dataset."""
    heads, fusers = checks.named_heads(todo.campaign.heads), checks.entries(todo.campaign)
    known = known_cards(todo)
    names = [spec.name for spec in todo.specs]
    found = []
    for dataset in todo.datasets:
        prompts = todo.prompts[dataset.name]
        precision = todo.campaign.precision
        found.append(
            evaluate.Task(
                dataset=dataset.name,
                backbones=tuple(names),
                classifiers=tuple(
                    classifiers.address(todo.store, spec, precision, dataset.name, prompts)
                    for spec in todo.specs
                ),
                scales=tuple((known[name]["scale"], known[name]["bias"]) for name in names),
                embeddings={
                    split: tuple(todo.works[dataset.name, split].addresses[name] for name in names)
                    for split in dataset.splits
                },
                expected=len(todo.works[dataset.name, "test"].index),
                heads=tuple(head.on(dataset.name) for head in heads),
                fusers=tuple(fuser.on(dataset.name) for fuser in fusers),
                shots=todo.campaign.shots,
                seeds=todo.campaign.seeds,
                folds=todo.campaign.folds,
                save_fusers=todo.campaign.save_fusers,
                costs=tuple(cards.cost(known[name]) for name in names),
            )
        )
    return found


def evaluate_datasets(todo: Plan) -> dict[str, str]:
    """Evaluate the datasets in parallel; the address of each one's scores."""
    every = meta.taught(todo.store, tasks(todo), todo.campaign.compute, todo.verbose)
    places = {task.dataset: evaluate.address(todo.store, task) for task in every}
    missing = [task for task in every if todo.store.manifest(places[task.dataset]) is None]
    if missing:
        compute = todo.campaign.compute
        cluster.connect(compute, todo.verbose)
        # the longest first, or one long evaluation begun last would keep a single worker busy at the end
        missing.sort(key=lambda task: -_size(todo, task))
        items = [(todo.store, task, places[task.dataset]) for task in missing]
        with progress("evaluation", len(items), "datasets") as advance:
            for _ in cluster.tasks(evaluate.evaluate, items, 1, 0, compute.max_retries):
                advance(1)
    return places


def _size(todo: Plan, task: evaluate.Task) -> int:
    """How long an evaluation takes, roughly: support images × classes, for every logit is looked at."""
    train, classes = (
        todo.works.get((task.dataset, "train")),
        len(todo.prompts[task.dataset]["classnames"]),
    )
    support = min(len(train.index), classes * max(task.shots)) if train and task.shots else 0
    return (support + 1) * classes
