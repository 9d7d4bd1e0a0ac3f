"""What a fit reads: a data set's labelled images, class names alone, or what a campaign has embedded.

The campaign's machinery indexes and embeds what is missing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from clipray import backbones, config, fingerprint
from clipray.artefacts import classifiers, fused_model
from clipray.artefacts.evaluations import address as scores_address
from clipray.artefacts.given import Given
from clipray.config import Backbone, Campaign, Fuser, Head
from clipray.config.predict import Fit
from clipray.errors import ConfigError
from clipray.numerics import declared
from clipray.shots import ALL, named
from clipray.steps import campaign as steps
from clipray.steps import checks, evaluations, identify
from clipray.steps.evaluate import teach
from clipray.steps.mappers import in_threads
from clipray.steps.predict import choose
from clipray.steps.predict.lesson import Lesson, needs_labels
from clipray.steps.todo import Looker, Plan, classifier_place, known_cards, require_all
from clipray.store import Store

SHOTS = 16  # where a config does not say
WITH_LABELS, IN_STAGES, WITHOUT = (
    "guarded_pool",
    "guarded_single",
    "log_avg",
)  # the fusers where a config does not say


def check(wanted: Fit) -> None:
    """Raise `ConfigError` for what is wrong with a config and can be found without torch, data or Ray."""
    if wanted.cascade and wanted.shots == 0:
        raise ConfigError("cascade: its thresholds come from labelled images, and `shots` is 0")
    if wanted.which_backbones and wanted.shots == 0:
        raise ConfigError("which_backbones: labelled images choose them, and `shots` is 0")
    if wanted.from_campaign:
        campaign = campaign_of(wanted)
        checks.check(campaign)
        if campaign.held_out:
            raise ConfigError(
                f"from_campaign: {wanted.from_campaign} holds images out from heads for fusers (`held_out`), which a"
                " fused model does not: name `head` and `fuser`, or a campaign without it"
            )
        return
    checks.check(_campaign(wanted))
    head, fuser = declared.heads()[_head(wanted).head], declared.fusers()[_fuser(wanted).fuser]
    if _shots(wanted) == 0:
        for key, method in (("head", head), ("fuser", fuser)):
            if method.needs_labels:
                raise ConfigError(
                    f"{key}: it learns from labels, and `shots` is 0: name one that does not, or give labels"
                )
    if wanted.cascade and checks.unlabelled(_fuser(wanted)) != "none":
        raise ConfigError(
            f"cascade: {_fuser(wanted).fuser} is taught by unlabelled images that every backbone has seen, so no image "
            "could leave early: name guarded_single, anchored, or another fuser"
        )
    if fuser.transductive:
        raise ConfigError(
            f"fuser: {_fuser(wanted).fuser} labels a whole set of images at once and gives no single image a label of "
            "its own: name another one, such as log_avg"
        )


def workspace(wanted: Fit) -> str:
    """Return the workspace that the model goes to: the config's, or the campaign's."""
    return wanted.workspace or campaign_of(wanted).workspace


def lesson(wanted: Fit, verbose: bool = False) -> tuple[Store, Lesson]:
    """Embed what is missing, and gather what the fit reads.

    Raises:
        ConfigError: the campaign is not embedded yet, or has not what is asked for.
        ErrorBudget: a data set or backbone failed.
    """
    if wanted.from_campaign:
        return _from_campaign(wanted, verbose)
    campaign = _campaign(wanted)
    shots = _shots(wanted)
    todo = _unlabelled(wanted, campaign) if shots == 0 else steps.plan(campaign, verbose)
    (dataset,) = todo.datasets
    tested = frozenset()
    if shots != 0:
        if "train" not in dataset.splits:
            raise ConfigError(
                f"dataset {dataset.name} has no train split to learn from: write `shots: 0` to use its class names only"
            )
        _read_test(todo, dataset.name)
        tested = _image_ids(todo, dataset.name)
    steps.prepare(todo)
    steps.embed_images(todo)
    require_all(todo)
    method = choose.Candidate(_head(wanted).on(dataset.name), _fuser(wanted).on(dataset.name))
    if dataset.name in todo.given:
        _fits_vectors(todo.given[dataset.name], [method])
    train = _train(todo, dataset.name) if shots != 0 else ()
    common = _common(todo, dataset.name, todo.specs)
    found = Lesson(
        **common,
        train=train,
        names=todo.names(dataset.name),
        tested=_tested(tested),
        methods=(method,),
        by=wanted.choose_by,
        shots=shots,
        seed=wanted.seed,
        seeds=wanted.seed + 1,
        folds=wanted.folds,
        test_ids=tested,
        cascade=wanted.cascade,
        which_backbones=wanted.which_backbones or 0,
    )
    return todo.store, found


def _from_campaign(wanted: Fit, verbose: bool) -> tuple[Store, Lesson]:
    campaign = campaign_of(wanted)
    todo = steps.plan(campaign, verbose, whole=wanted.shots == ALL)
    if wanted.shots == ALL:  # a campaign embeds what its support sets may hold, and no more
        steps.prepare(todo)
        steps.embed_images(todo)
    else:
        _recall(todo, wanted)
    names = [dataset.name for dataset in todo.datasets]
    name = wanted.dataset or names[0]
    if name not in names or (len(names) > 1 and not wanted.dataset):
        why = f"there is no {name!r} in it" if wanted.dataset else "it has several"
        raise ConfigError(f"dataset: of which data set of the campaign? {why}: {', '.join(names)}")
    dataset = next(one for one in todo.datasets if one.name == name)
    shots = wanted.shots if wanted.shots is not None else max(campaign.shots, default=0)
    if shots != 0 and "train" not in dataset.splits:
        raise ConfigError(f"dataset {name} has no train split to learn from: write `shots: 0`")
    if shots not in (0, ALL, *campaign.shots):
        raise ConfigError(
            f"shots: the campaign has {', '.join(str(named(one)) for one in campaign.shots)}; `all` and 0 do, too"
        )
    every, unlearned = teach.taught(todo.store, evaluations.tasks(todo), campaign.compute, verbose)
    own = [task for task in every if task.dataset == name]
    if not own:
        raise ConfigError(f"dataset {name}: it failed ({unlearned.get(name, 'see the report')})")
    task = own[0]
    methods = choose.candidates(task.heads, task.fusers)
    if shots == 0:
        methods = [one for one in methods if not needs_labels(one)][:1]
        if not methods:
            raise ConfigError(
                "shots: 0 leaves no method of the campaign, for all learn from labels"
            )
    place = scores_address(todo.store, task)
    done = todo.store.manifest(place) is not None
    specs = todo.models(name)
    tested = _image_ids(todo, name)
    found = Lesson(
        **_common(todo, name, specs),
        train=_train(todo, name) if shots != 0 else (),
        names=todo.names(name) if shots != 0 else "",
        tested=_tested(tested if shots != 0 else ()),
        methods=tuple(methods),
        by=wanted.choose_by,
        shots=shots,
        seed=wanted.seed,
        seeds=max(campaign.seeds, wanted.seed + 1),
        folds=campaign.folds,
        test_ids=tested,
        cascade=wanted.cascade,
        which_backbones=wanted.which_backbones or 0,
        evaluation=place if done else "",
    )
    return todo.store, found


def _recall(todo: Plan, wanted: Fit) -> None:
    """Take the embeddings that the campaign has made; embed nothing."""
    try:
        steps.recall(todo)
    except ConfigError as error:
        raise ConfigError(
            f"from_campaign: {error}: run `python -m jobs.run {wanted.from_campaign}` first"
        ) from None


def _train(todo: Plan, dataset: str) -> tuple[str, ...]:
    """Return the addresses of the train split's embeddings.

    Raises:
        ConfigError: none of its images can be learned from.
    """
    work = todo.works[dataset, "train"]
    if not len(work.index):
        raise ConfigError(
            f"dataset {dataset}: no image of its train split can be learned from: those that can be used stand in "
            "its test split too"
        )
    return tuple(work.addresses.values())


def _read_test(todo: Plan, dataset: str) -> None:
    """Read the test split for the ids of its images alone: nothing may learn from them, and nothing is told of them."""
    work = todo.works[dataset, "test"]
    index = work.index
    if index.listed:
        index = identify.read(todo.store, index, todo.looker.mapper)
    nothing = {shard: [] for shard in work.todo}
    todo.works[dataset, "test"] = replace(work, index=index, addresses={}, todo=nothing)


def _image_ids(todo: Plan, dataset: str) -> frozenset[str]:
    """Return the ids of a dataset's test images, from which nothing may learn."""
    table = todo.works[dataset, "test"].index.table(todo.store, ["image_id"])
    return frozenset(table["image_id"].to_pylist())


def _common(todo: Plan, dataset: str, specs: list[Backbone]) -> dict[str, Any]:
    """Collect what every lesson takes from a plan."""
    prompts, precision = todo.prompts[dataset], todo.campaign.precision
    if dataset in todo.given:
        return _of_vectors(todo, todo.given[dataset])
    known = known_cards(todo)
    return {
        "dataset": dataset,
        "prompts": prompts,
        "backbones": tuple(spec.name for spec in specs),
        "origins": tuple(fingerprint.plain(backbones.origin(spec)) for spec in specs),
        "classifiers": tuple(classifier_place(todo, spec, dataset) for spec in specs),
        "scales": tuple((known[s.name]["scale"], known[s.name]["bias"]) for s in specs),
        "precision": precision,
        "max_pixels": todo.campaign.max_pixels,
        "specs": tuple(specs),
        "cards": tuple(known[spec.name] for spec in specs),
    }


def _origin_of_vectors(given: Given, name: str) -> dict[str, Any]:
    """Tell what class vectors are made of: files, or a model where one makes them."""
    if name in given.towers:
        return {"model": fingerprint.plain(backbones.origin(given.towers[name]))}
    return {"given": given.whats[name]["given"]}


def _of_vectors(todo: Plan, given: Given) -> dict[str, Any]:
    """As `_common`, of given vectors: whatever made them, no model is known that could make others."""
    names = tuple(given.facts)
    places = tuple(given.classifiers[name] for name in names)
    dims = [given.facts[name]["dim"] for name in names]
    known = known_cards(todo)
    scales = tuple(given.scale(name, known) for name in names)
    return {
        "dataset": given.dataset.name,
        "prompts": todo.prompts[given.dataset.name],
        "backbones": names,
        "origins": tuple(_origin_of_vectors(given, name) for name in names),
        "classifiers": places,
        "scales": scales,
        "precision": todo.campaign.precision,
        "max_pixels": todo.campaign.max_pixels,
        "cards": tuple(
            {"dim": dim, "scale": scale, "bias": bias}
            for dim, (scale, bias) in zip(dims, scales, strict=True)
        ),
    }


def _fits_vectors(given: Given, methods: Sequence[choose.Candidate]) -> None:
    """`ConfigError` for a method that looks at embeddings where there are logits only."""
    if given.dataset.format != "logits":
        return
    for method in methods:
        head, fuser = declared.heads()[method.head.head], declared.fusers()[method.fuser.fuser]
        if head.needs_labels or fuser.needs_embeddings:
            name = method.head.name if head.needs_labels else method.fuser.name
            raise ConfigError(
                f"dataset {given.dataset.name} has logits only, and {name} needs embeddings: take zero_shot and a "
                "fuser that needs none, such as c_log_avg or log_avg"
            )


def _tested(ids: Any) -> tuple[str, ...]:
    text = "\n".join(sorted(ids))
    return (hashlib.sha256(text.encode()).hexdigest()[:32],)


def campaign_of(wanted: Fit) -> Campaign:
    """Load the campaign of `from_campaign`, in the fit's workspace where it names one."""
    sets = [f"workspace={wanted.workspace}"] if wanted.workspace else []
    campaign = config.load(Campaign, wanted.from_campaign, sets)
    given = {"compute": wanted.compute} if "compute" in wanted.model_fields_set else {}
    return campaign.model_copy(update=given)


def _campaign(wanted: Fit) -> Campaign:
    """Make a campaign of one data set and one method, by which the data set is embedded."""
    shots = _shots(wanted)
    values = {
        "name": wanted.name,
        "workspace": wanted.workspace,
        "data_root": wanted.data_root,
        "datasets": (wanted.dataset or "names",),
        "backbones": wanted.backbones,
        "precision": wanted.precision,
        "heads": (_head(wanted),),
        "fusers": (_fuser(wanted),),
        "shots": (shots,) if shots else (1,),
        "seeds": wanted.seed + 1,
        "folds": wanted.folds,
        "max_pixels": wanted.max_pixels,
        "limit": wanted.limit,
        "compute": wanted.compute,
        "tracking": wanted.tracking,
    }
    return Campaign(**values)


def _unlabelled(wanted: Fit, campaign: Campaign) -> Plan:
    """Make a plan that needs no image, but class names and templates only."""
    from clipray import catalog, sources
    from clipray.config import Dataset, names

    store = Store(campaign.workspace)
    specs = [backbones.pinned(spec) for spec in catalog.backbones(campaign.backbones)]
    names.refuse_merged((spec.name for spec in specs), "backbones")
    if wanted.classnames:
        texts = {"classnames": wanted.classnames, "templates": wanted.templates}
        datasets = [Dataset(name=wanted.name, format="folder", **texts)]
    else:
        datasets = catalog.datasets([wanted.dataset], campaign.data_root)
    prompts = {
        one.name: {
            "classnames": list(wanted.classnames) or sources.classnames(one, campaign.data_root),
            "templates": sources.templates(one, campaign.data_root),
        }
        for one in datasets
    }
    missing = classifiers.missing(store, specs, campaign.precision, datasets, prompts)
    looker = Looker(store, specs, campaign, in_threads, whole=False)
    return Plan(campaign, store, specs, datasets, prompts, {}, missing, looker)


def _shots(wanted: Fit) -> int:
    return SHOTS if wanted.shots is None else wanted.shots


def _head(wanted: Fit) -> Head:
    return checks.named_heads((wanted.head,))[0]


def _fuser(wanted: Fit) -> Fuser:
    usual = IN_STAGES if wanted.cascade else WITH_LABELS
    given = wanted.fuser or (WITHOUT if _shots(wanted) == 0 else usual)
    return Fuser(name=given, fuser=given) if isinstance(given, str) else given


def address(store: Store, name: str, told: Lesson) -> str:
    """Return the address of the fused model of a lesson."""
    return fused_model.address(store, name, told.what)
