"""The campaign: index, classifiers, embeddings, evaluations, report, in order, skipping what is done."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from clipray import backbones, catalog, snapshot
from clipray.artefacts import cards, classifiers
from clipray.artefacts.embeddings import Work, still_lacking
from clipray.artefacts.given import Given
from clipray.config import Backbone, Campaign, Dataset, Pool
from clipray.config import names as config_names
from clipray.errors import ConfigError
from clipray.progress import progress, say
from clipray.steps import campaign_ids, checks, cluster, failures, metrics, resources, spent, splits
from clipray.steps.embed import given as brought
from clipray.steps.embed import plan as embed
from clipray.steps.embed import texts
from clipray.steps.index.drawable import few_images
from clipray.steps.mappers import in_threads, reader
from clipray.steps.pools import turns
from clipray.steps.tally import Tally
from clipray.steps.todo import Looker, Plan, classifier_place, known_cards
from clipray.steps.watch import shared_out
from clipray.store import Store

AT_ONCE = 16  # splits that are declared complete together


def plan(campaign: Campaign, verbose: bool = False, dry: bool = False, whole: bool = False) -> Plan:
    """Resolve every name, index every split, and find out what is missing.

    Of a train split only what support sets may hold is read and embedded, where nothing looks at the other images.

    Args:
        dry: start no Ray, however many files have to be read.
        whole: whether the caller looks at whole train splits.

    Raises:
        ConfigError: a dataset, backbone, method or name that cannot be used.
    """
    checks.check(campaign)
    store = Store(campaign.workspace)
    datasets = catalog.datasets(campaign.datasets, campaign.data_root)
    config_names.refuse_merged((dataset.name for dataset in datasets), "datasets")
    specs = _models(campaign, datasets)
    mapper = in_threads if dry else reader(campaign.compute)
    looker = Looker(store, specs, campaign, mapper, whole or splits.needs_whole(campaign))
    prompts: dict[str, dict] = {}
    works: dict[tuple[str, str], Work] = {}
    remarks: list[str] = []
    given: dict[str, Given] = {}
    for dataset, found in zip(datasets, splits.look(looker, datasets), strict=True):
        prompts[dataset.name] = found.prompts
        works |= {(dataset.name, split): work for split, work in found.works.items()}
        remarks += found.remarks
        if found.given:
            given[dataset.name] = found.given
    return Plan(
        campaign,
        store,
        specs,
        datasets,
        prompts,
        works,
        _unwritten(store, specs, campaign, datasets, prompts, given),
        looker,
        given,
        verbose,
        remarks=remarks,
    )


def _unwritten(
    store: Store,
    specs: list[Backbone],
    campaign: Campaign,
    datasets: list[Dataset],
    prompts: dict[str, dict],
    given: dict[str, Given],
) -> dict[str, dict]:
    """Classifiers that are missing, as `classifiers.missing` tells them: of image sets, and of given image vectors."""
    with_images = [dataset for dataset in datasets if not dataset.given]
    found = classifiers.missing(store, specs, campaign.precision, with_images, prompts)
    for one in given.values():
        towers = list({tower.name: tower for tower in one.towers.values()}.values())
        more = classifiers.missing(store, towers, campaign.precision, [one.dataset], prompts)
        for name, wanted in more.items():
            found[name] = found.get(name, {}) | wanted
    return found


def _models(campaign: Campaign, datasets: list[Dataset]) -> list[Backbone]:
    """Return the backbones that images are embedded with; none where all vectors are given."""
    named = catalog.backbones(campaign.backbones, datasets)
    with_images = [dataset.name for dataset in datasets if not dataset.given]
    if not with_images:
        return []
    if not named:
        raise ConfigError(
            f"dataset {with_images[0]} has images, but `backbones` names no model: add one, such as `shipped`"
        )
    config_names.refuse_merged((spec.name for spec in named), "backbones")
    return [backbones.pinned(spec) for spec in named]


def prepare(todo: Plan) -> None:
    """Compute the missing text classifiers and backbone cards, one Ray task a backbone.

    A backbone that does not load is a recorded failure, as is one that cannot embed the class names of a dataset.
    """
    _take_given(todo)
    if todo.classifiers:
        _write_classifiers(todo)
    _check_widths(todo)


def _write_classifiers(todo: Plan) -> None:
    """Write cards and class vectors; backbones share GPUs, and one that finds no room there has a whole one after."""
    compute, specs = todo.campaign.compute, todo.loaded
    own = resources.obtain(compute, todo.verbose)
    items = [
        (todo.store, specs[name], todo.campaign.precision, own.device, prompts)
        for name, prompts in todo.classifiers.items()
    ]
    with progress("class names", len(items), "backbones") as advance:
        for gpus in turns(len(items), own.gpus):
            crowded = []
            attempts = cluster.attempts(texts.prepare, items, 1, gpus, compute.max_retries)
            for position, unnamed, error in attempts:
                reasons = [str(error), *(unnamed or {}).values()]
                if 0 < gpus < 1 and any(texts.NO_ROOM in reason for reason in reasons):
                    crowded.append(items[position])
                    continue
                _named(todo, items[position][1], unnamed or {}, error)
                advance(1)
            items = crowded


def _named(todo: Plan, spec: Backbone, unnamed: dict[str, str], error: Exception | None) -> None:
    """Record what failed of a backbone's card and class vectors."""
    if error is not None:
        reason = f"it cannot be loaded: {cluster.reason(error)}"
        _unloaded(todo, spec.name, reason)
        failures.mark(todo.store, _card_place(todo, spec), reason)
    for dataset, reason in unnamed.items():
        _unnamed(todo, dataset, spec.name, reason)
        failures.mark(todo.store, classifier_place(todo, spec, dataset), reason)


def _check_widths(todo: Plan) -> None:
    """Record given image vectors whose class vectors a model has made that cannot be theirs."""
    for dataset, given in todo.given.items():
        for backbone, reason in given.narrow(todo.store).items():
            _unnamed(todo, dataset, backbone, reason)


def _take_given(todo: Plan) -> None:
    """Write what is missing of given vectors, which needs no model."""
    for name, given in todo.given.items():
        todo.given[name] = brought.write(todo.store, given)
        for split, work in todo.given[name].works.items():
            todo.works[name, split] = work


def _card_place(todo: Plan, spec: Backbone) -> str:
    return cards.address(todo.store, spec, todo.campaign.precision)


def _unloaded(todo: Plan, backbone: str, reason: str) -> None:
    todo.failures.append(failures.failure("load", reason, backbone=backbone))


def _unnamed(todo: Plan, dataset: str, backbone: str, reason: str) -> None:
    todo.failures.append(failures.failure("text", reason, dataset=dataset, backbone=backbone))


def embed_images(todo: Plan) -> None:
    """Embed what is missing, declare every split complete that is so, and record what failed.

    Where images of a train split's pool turn out not to be usable, others take their place, until each class has as
    many as the support sets want, or has no more.
    """
    known, taken = list(todo.failures), spent.Spent()
    lacking = {
        name for (name, _), work in todo.works.items() if set(work.addresses) - set(work.done)
    }
    while True:
        todo.failures = list(known)
        broken, told = _embed(todo, taken) if todo.images else ({}, {})
        changed = campaign_ids.found(todo, told)
        _settle(todo, broken, told)
        if not _grow(todo, changed):
            break
    snapshot.refresh(todo.store, lacking)
    if taken.pools:
        todo.spent = taken.facts()
        say(f"  {spent.words(todo.spent)}", **todo.spent)


def _grow(todo: Plan, changed: set[str]) -> bool:
    """Look again at train splits with images that could not be used, and tell whether there is more to embed.

    Args:
        changed: datasets of whose pools some images can be drawn no more.
    """
    grown = False
    failed = {row["dataset"] for row in todo.failed}
    lost = {row["dataset"] for row in todo.failures if row["split"] == "train" and row["image_id"]}
    for name in (lost | changed) - failed - {None}:
        before = todo.works[name, "train"]
        try:
            work = splits.train(todo.looker, before, todo.prompts[name])
        except ConfigError as error:  # none of its images can be read
            todo.failures.append(failures.failure("read", str(error), dataset=name))
            continue
        todo.works[name, "train"] = work
        for text in _said(todo, work) - _said(todo, before):
            say(f"warning: {name}: {text}")
        grown = grown or (work.images > 0 and work.index.parts != before.index.parts)
    return grown


def _said(todo: Plan, work: Work) -> set[str]:
    """Collect what a person should know of the images that can be drawn of a train split."""
    classes = len(todo.prompts[work.index.dataset]["classnames"])
    return {*work.index.remarks, *few_images(work.index.labels, classes, todo.campaign.shots)}


def _unprepared(todo: Plan, dataset: str) -> set[str]:
    """Return the backbones that do not load or have no classifier of a dataset: nothing uses their embeddings of it."""
    if dataset in todo.given:
        return set()
    rows = [row for row in todo.failed if row["step"] in ("load", "text")]
    return {row["backbone"] for row in rows if row["dataset"] in (None, dataset)}


def recall(todo: Plan) -> None:
    """Record what an earlier run could not embed, with its reason, for a step that embeds nothing itself.

    Raises:
        ConfigError: something is missing that no run has tried to embed.
    """
    _take_given(todo)
    _check_widths(todo)
    specs, known = todo.loaded, known_cards(todo)
    untried = 0
    for name, prompts in todo.classifiers.items():
        if known[name] is None:
            reason = failures.marked(todo.store, _card_place(todo, specs[name]))
            untried += 0 if reason else max(1, len(prompts))
            if reason:
                _unloaded(todo, name, reason)
            continue
        for dataset in prompts:
            reason = failures.marked(todo.store, classifier_place(todo, specs[name], dataset))
            untried += reason is None
            if reason:
                _unnamed(todo, dataset, name, reason)
    broken: dict[tuple[str, str], dict[str, str]] = {}
    images = 0
    for place, work in todo.works.items():
        out = _unprepared(todo, work.index.dataset)
        lacking = {name for names in work.todo.values() for name in names} - out
        reasons = {name: failures.marked(todo.store, work.addresses[name]) for name in lacking}
        broken[place] = {name: reason for name, reason in reasons.items() if reason}
        images += work.without(out | set(broken[place])).images
    if untried or images:
        raise ConfigError(f"{images} images and {untried} text classifiers are not embedded yet")
    campaign_ids.found(todo, {})
    _settle(todo, broken, {})


def _settle(
    todo: Plan,
    broken: dict[tuple[str, str], dict[str, str]],
    told: dict[tuple[str, str], dict[str, Tally]],
) -> None:
    """Declare complete what is so, and record what failed; `broken` and `told` as `_embed` returns them."""
    out = {dataset.name: _unprepared(todo, dataset.name) for dataset in todo.datasets}
    budget = todo.campaign.compute.error_budget

    def finish(place: tuple[str, str]) -> list[dict]:
        work = todo.works[place]
        own = out[work.index.dataset]
        if work.index.listed and not broken.get(place):
            return []  # a train split that waits for its test split, which has failed
        addresses = {name: a for name, a in work.addresses.items() if name not in own}
        if not addresses:
            return []
        work = replace(work, addresses=addresses)
        reasons, counted = broken.get(place, {}), told.get(place, {})
        return failures.finish(todo.store, work, budget, reasons, counted)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for rows in threads.map(finish, todo.works):
            todo.failures += rows
    for dataset in todo.datasets:
        lost = [row for row in todo.failed if row["dataset"] == dataset.name]
        if not todo.usable(dataset.name) and not any(row["backbone"] is None for row in lost):
            row = failures.failure(
                "embed", "no backbone is left to evaluate it", dataset=dataset.name
            )
            todo.failures.append(row)


def _embed(todo: Plan, taken: spent.Spent) -> tuple[dict, dict]:
    """Run the pools; return, by (dataset, split) and backbone, why shards have no file, and what others hold."""
    compute, known = todo.campaign.compute, known_cards(todo)
    works = [work.without(_unprepared(todo, work.index.dataset)) for work in todo.works.values()]
    busy = {name for work in works for names in work.todo.values() for name in names}
    own = {name: known[name] for name in todo.busy if name in busy}
    broken: dict[tuple[str, str], dict[str, str]] = {}
    told: dict[tuple[str, str], dict[str, Tally]] = {}
    if not own:
        return broken, told

    def work(pools: dict[str, Pool], device: str, again: bool) -> Iterator[dict]:
        taken.begin(pools)
        lacking = [still_lacking(todo.store, one) for one in works] if again else works
        return embed.run(todo.store, lacking, todo.specs, todo.campaign, known, pools, device)

    with progress("images", sum(work.images for work in works), "images") as advance:
        shards = sum(work.lacking for work in works)
        for done in shared_out(own, compute, todo.verbose, shards, work):
            place = done["dataset"], done["split"]
            broken.setdefault(place, {}).update(done["broken"])
            for backbone, errors in done["errors"].items():
                tally = told.setdefault(place, {}).setdefault(backbone, Tally())
                tally.add(done["shard"], done["content"], errors)
            taken.add(done)
            _count(done, todo.campaign.name)
            advance(done["images"])
    return broken, told


def _count(done: dict, campaign: str) -> None:
    """Tell those who watch the cluster of a shard that is done."""
    failed = sum(len(errors) for errors in done["errors"].values())
    metrics.count("clipray_images_embedded", done["images"], campaign)
    metrics.count("clipray_images_failed", failed, campaign)
    metrics.count("clipray_shards_embedded", 1, campaign)
