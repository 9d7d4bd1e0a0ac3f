"""A fused model over a collection: fetch the model, plan, label what is missing, count."""

import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from clipray.artefacts import embeddings, fused_model
from clipray.config.predict import Predict
from clipray.errors import ConfigError
from clipray.numerics import declared
from clipray.progress import progress
from clipray.steps import failures, resources
from clipray.steps.predict import plan as plans
from clipray.store import Store
from clipray.tracking import models

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
    model, folder = _model(store, wanted)
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
    return Job(wanted, model, folder, plans.plan(wanted, folder.about, folder.digest))


def _model(store: Store, wanted: Predict) -> tuple[str, fused_model.Folder]:
    """The model's URI and content; one of the registry is put into the workspace, where workers find it."""
    if not wanted.model.startswith(REGISTRY):
        remote = "://" in wanted.model and not wanted.model.startswith("file://")
        path = fused_model.fetched(wanted.model)
        return (wanted.model if remote else path), fused_model.read(path)
    downloaded = models.registered(wanted.model, store, wanted.tracking)
    try:
        folder = fused_model.read(fused_model.inside(downloaded))
        place = f"{fused_model.FOLDER}/fetched-{folder.digest[:16]}"
        fused_model.copy(store, place, folder.path)
    finally:
        shutil.rmtree(downloaded, ignore_errors=True)
    uri = store.place(place)
    return uri, fused_model.read(fused_model.fetched(uri))


def label(job: Job, verbose: bool = False) -> dict[str, Any]:
    """Label what is missing; the counts, and what else the job prints.

    Raises:
        ErrorBudget: too many images have no label.
    """
    wanted, work = job.wanted, job.work
    kept = _kept(job) if wanted.keep_embeddings else None
    todo = set(work.todo)
    if kept is not None:
        todo |= {shard for shard, names in kept.todo.items() if names}
    work = plans.only(work, todo)
    if todo:
        _run(job, work, kept, verbose)
    budget = wanted.compute.error_budget
    counts = plans.finish(work, budget, about=_about(job))
    told = {"predictions": work.store.place(work.address), "model": job.model, **counts}
    if kept is not None:
        lost = failures.finish(work.store, kept, budget, {})
        whole = [row["error"] for row in lost if row["image_id"] is None]
        told["embeddings"] = {
            name: work.store.place(place) for name, place in kept.addresses.items()
        }
        told["not_kept"] = whole
    return told


def _about(job: Job) -> dict[str, Any]:
    about = job.folder.about
    return {
        "name": about["name"],
        "fuser": about["fuser"]["name"],
        "head": about["head"]["name"],
        "classnames": about["classnames"],
    }


def _kept(job: Job) -> embeddings.Work:
    """Where a campaign of these images and backbones would look for embeddings, and what is missing there."""
    from clipray.fusion import Fusion

    fusion = Fusion(job.folder)
    specs = [fusion.specs[m] for m in fusion.used]
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
    pools, device = resources.pools(own, compute, verbose)
    keep = {m: kept.addresses[fusion.backbones[m]] for m in used} if kept is not None else {}
    with progress("images", work.images, "images") as advance:
        done = write.run(
            plans.items(work),
            job.model,
            fusion,
            work.store,
            work.address,
            work.targets,
            keep,
            compute,
            pools,
            device,
        )
        for one in done:
            advance(one["images"])
