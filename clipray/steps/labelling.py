"""A fused model over a collection: fetch the model, plan, label what is missing, count."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from clipray.artefacts import embeddings, fused_model
from clipray.config import Compute, Pool, Tracking
from clipray.config.predict import Predict
from clipray.errors import ClipRayError, ConfigError
from clipray.numerics import declared
from clipray.progress import progress
from clipray.steps import failures
from clipray.steps.embed import given as brought
from clipray.steps.embed import plan as embed
from clipray.steps.predict import collection
from clipray.steps.predict import plan as plans
from clipray.steps.watch import shared_out
from clipray.store import Store
from clipray.tracking import models

if TYPE_CHECKING:
    from clipray.fusion import Fusion

REGISTRY = "models:/"


@dataclass(frozen=True)
class Job:
    """What is to be done, and with what.

    Attributes:
        model: a URI of it that every worker can read. folder: it, read and checked.
    """

    wanted: Predict
    model: str
    folder: fused_model.Folder
    work: plans.Work


def prepare(wanted: Predict) -> Job:
    """Read the model and plan.

    Raises:
        ConfigError: the model is not whole, or labels no single image, or there are no images.
    """
    store = Store(wanted.workspace)
    model, folder = model_of(store, wanted.model, wanted.tracking)
    fuser = folder.about["fuser"]["fuser"]
    if declared.fusers()[fuser].transductive:
        raise ConfigError(
            f"model: its fuser {fuser} labels a whole set of images at once and gives no single image a label of its "
            "own: fit one with another fuser, such as log_avg"
        )
    if wanted.keep_embeddings and folder.about["cascade"]:
        raise ConfigError(
            "keep_embeddings: the model is a cascade, whose later backbones see some images only: leave it out"
        )
    return Job(wanted, model, folder, plans.plan(wanted, folder.about, folder.digest, brought.plan))


def model_of(store: Store, uri: str, tracking: Tracking) -> tuple[str, fused_model.Folder]:
    """The URI that workers read a model from, and its content.

    Args:
        store: the workspace, where a model of the registry is copied to, for workers find it there.
        uri: a folder, `s3://…`, or `models:/<name>@<alias>`. tracking: where that is looked up.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    if not uri.startswith(REGISTRY):
        remote = "://" in uri and not uri.startswith("file://")
        path = fused_model.fetched(uri)
        return (uri if remote else path), fused_model.read(path)
    downloaded = models.registered(uri, store, tracking)
    try:
        folder = fused_model.read(fused_model.inside(downloaded))
        place = f"{fused_model.FOLDER}/fetched-{folder.digest[:16]}"
        fused_model.copy(store, place, folder.path)
    finally:
        shutil.rmtree(downloaded, ignore_errors=True)
    shared = store.place(place)
    return shared, fused_model.read(fused_model.fetched(shared))


def label(job: Job, verbose: bool = False) -> dict[str, Any]:
    """Label what is missing; the counts, and what else the job prints.

    Raises:
        ErrorBudget: too many images have no label.
    """
    wanted, work = job.wanted, job.work
    if work.learns or work.given:
        return _by_vectors(job, verbose)
    kept = _kept(job) if wanted.keep_embeddings else None
    todo = set(work.todo)
    if kept is not None:
        todo |= {shard for shard, names in kept.todo.items() if names}
    work = plans.only(work, todo)
    if todo:
        _run(job, work, kept, verbose)
    work = plans.identified(work, wanted.compute)
    budget = wanted.compute.error_budget
    counts = plans.finish(work, budget, about=_about(job))
    told = {"predictions": work.store.place(work.address), "model": job.model, **counts}
    if kept is not None:
        lost = failures.finish(work.store, replace(kept, index=work.index), budget, {})
        whole = [row["error"] for row in lost if row["image_id"] is None]
        told["embeddings"] = {
            name: work.store.place(place) for name, place in kept.addresses.items()
        }
        told["not_kept"] = whole
    return told


def _by_vectors(job: Job, verbose: bool) -> dict[str, Any]:
    """As `label`, from stored vectors of all images, which may teach the model first."""
    from clipray.fusion import Fusion
    from clipray.steps.predict.sums import Collection

    store, compute = job.work.store, job.wanted.compute
    fusion, model = Fusion(job.folder), job.model
    work, places = _places(job, fusion, verbose)
    images = Collection(store, work.index, places)
    if work.learns:
        address = collection.taught(store, model, fusion, images, compute, verbose)
        model = store.place(address)
    missing = plans.only(work, work.todo)
    with progress("labels", missing.images, "images") as advance:
        done = collection.label(
            model, images, work.address, work.todo, work.targets, compute, verbose
        )
        for count in done:
            advance(count)
    counts = plans.finish(work, compute.error_budget, about=_about(job))
    told = {"predictions": store.place(work.address), "model": model}
    if work.learns:
        told["taught_from"] = job.model
    vectors = dict(zip(fusion.backbones, map(store.place, places), strict=True))
    return {**told, **counts, "embeddings": vectors}


def _places(job: Job, fusion: "Fusion", verbose: bool) -> tuple[plans.Work, tuple[str, ...]]:
    """The work, with all ids, and where the vectors of each backbone of a model are, once they are all there."""
    work = job.work
    if work.given:
        given = brought.write(work.store, work.given)
        addresses = given.works[work.index.split].addresses
    else:
        kept = _kept(job, range(len(fusion.backbones)))
        _embed_all(work.store, kept, fusion, job.wanted.compute, verbose)
        work = plans.identified(work, job.wanted.compute)
        kept = replace(kept, index=work.index)
        failures.finish(work.store, kept, job.wanted.compute.error_budget, {})
        addresses = kept.addresses
    return work, tuple(addresses[name] for name in fusion.backbones)


def _embed_all(
    store: Store, work: embeddings.Work, fusion: "Fusion", compute: Compute, verbose: bool
) -> None:
    """Embed what some backbone of a model lacks.

    Raises:
        ClipRayError: a backbone has left no embeddings.
    """
    specs, broken = list(fusion.specs), {}
    missing = {name for names in work.todo.values() for name in names}
    if missing:
        cards = dict(zip(fusion.backbones, fusion.cards, strict=True))
        own = {name: cards[name] for name in missing}
        precision, most = fusion.about["precision"], fusion.about["max_pixels"]
        like = SimpleNamespace(precision=precision, max_pixels=most, compute=compute)

        def run(pools: dict[str, Pool], device: str, again: bool) -> Iterator[dict]:
            left = embeddings.still_lacking(store, work) if again else work
            return embed.run(store, [left], specs, like, cards, pools, device)

        with progress("images", work.images, "images") as advance:
            for told in shared_out(own, compute, verbose, work.lacking, run):
                broken |= told["broken"]
                advance(told["images"])
    if broken:
        name, reason = next(iter(broken.items()))
        raise ClipRayError(f"the backbone {name} has not embedded all images: {reason}")


def _about(job: Job) -> dict[str, Any]:
    about = job.folder.about
    return {
        "name": about["name"],
        "fuser": about["fuser"]["name"],
        "head": about["head"]["name"],
        "classnames": about["classnames"],
    }


def _kept(job: Job, numbers: Iterable[int] | None = None) -> embeddings.Work:
    """Where a campaign of these images and backbones would look for embeddings, and what is missing there.

    Args:
        numbers: of the backbones; by default those that have a say.
    """
    from clipray.fusion import Fusion

    fusion = Fusion(job.folder)
    specs = [fusion.specs[m] for m in (fusion.used if numbers is None else numbers)]
    about = job.folder.about
    like = SimpleNamespace(precision=about["precision"], max_pixels=about["max_pixels"])
    return embeddings.plan(job.work.store, specs, like, job.work.index)


def _run(job: Job, work: plans.Work, kept: embeddings.Work | None, verbose: bool) -> None:
    from clipray.fusion import Fusion
    from clipray.steps.predict import write

    compute = job.wanted.compute
    fusion = Fusion(job.folder)
    fusion.specs  # noqa: B018 - other weights than the model's are told before Ray starts
    used = fusion.stages[-1].backbones
    own = {fusion.backbones[m]: fusion.cards[m] for m in used}
    keep = {m: kept.addresses[fusion.backbones[m]] for m in used} if kept is not None else {}
    places, finished = (work.store, work.address, work.targets, keep), set()

    def run(pools: dict[str, Pool], device: str, _again: bool) -> Iterator[dict]:
        left = plans.only(work, set(work.todo) - finished)
        return write.run(plans.items(left), job.model, fusion, *places, compute, pools, device)

    with progress("images", work.images, "images") as advance:
        for told in shared_out(own, compute, verbose, len(work.todo), run):
            finished.add(told["shard"])
            advance(told["images"])
