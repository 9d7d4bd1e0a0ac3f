"""Train a small CLIP on captioned images with Ray Train: DDP over workers, `ray.data` as the feed.

The loss is the multi-positive contrastive loss of UniCL (Yang et al. 2022, arXiv 2204.03610), which is CLIP's where
every caption is unique: small corpora repeat their captions, and two images of one caption are no negatives.
"""

import hashlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from clipray import backbones, images
from clipray.config import Compute, fingerprint
from clipray.config.pretrain import Pretrain
from clipray.errors import ConfigError
from clipray.steps import cluster, tracked
from clipray.steps.pretrain.worker import FOLDER, HISTORY, train_worker
from clipray.steps.survivors import survivors
from clipray.store import Store

HELD_OUT_CAPTIONS = 1000  # classes of the held-out accuracy, at most


def pretrain(config: Pretrain, verbose: bool = False) -> dict:
    """Run, or continue, the training that a config describes; write the weights to `config.output`.

    Returns:
        `weights`, `architecture`, `run` (its folder), the last epoch's `metrics`, and `mlflow`.

    Raises:
        ConfigError: MLflow cannot record, no corpus, no such column, or more workers than the cluster has room for.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    name = f"{config.name}-{fingerprint(what(config))}"
    tracked.check(f"pretrain/{name}", config)
    resources = cluster.connect(Compute(), verbose)
    check(config, resources)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    store = Store(config.workspace)
    train, held_out, captions = corpus(config)
    if train.count() < config.batch_size:
        raise ConfigError(
            f"corpus {config.corpus}: {train.count()} training images are fewer than one batch"
        )
    settings = {
        "config": config.model_dump(exclude={"tracking"}),
        "captions": captions,
        "n": train.count(),
        "name": name,
    }
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=settings,
        datasets={"train": train, "held_out": held_out},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=f"{store.uri}/{FOLDER}",
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    with watch(store, name, config.epochs):
        result = trainer.fit()
    done = export(config, result.checkpoint)
    history = store.read_json(f"{FOLDER}/{name}/{HISTORY}") or []
    Path(done["weights"]).with_name("README.md").write_text(
        model_card(config, history, settings["n"])
    )
    return done | {"run": store.place(f"{FOLDER}/{name}"), "mlflow": track(config, name, history)}


def check(config: Pretrain, resources: dict[str, float]) -> None:
    """Raise `ConfigError` where the workers do not fit into the cluster, or cannot share a step out evenly."""
    if config.batch_size % config.workers:
        raise ConfigError(
            f"batch_size {config.batch_size} is not a multiple of workers {config.workers}"
        )
    if config.workers * config.cpus_per_worker > resources.get("CPU", 0):
        raise ConfigError(
            f"{config.workers} workers of {config.cpus_per_worker:g} CPUs do not fit into a cluster of "
            f"{resources.get('CPU', 0):g}: lower workers or cpus_per_worker"
        )
    if config.use_gpu and config.workers > resources.get("GPU", 0):
        raise ConfigError(
            f"{config.workers} workers on GPUs, but the cluster has {resources.get('GPU', 0):g}"
        )


@contextmanager
def watch(store: Store, name: str, epochs: int) -> Iterator[None]:
    """Tell of each epoch on stderr as the first worker writes it down."""
    over = threading.Event()

    def tell() -> None:
        told = len(store.read_json(f"{FOLDER}/{name}/{HISTORY}") or [])
        if told:
            print(f"continuing after epoch {told}", file=sys.stderr, flush=True)
        while True:
            last = over.wait(2)
            for row in (store.read_json(f"{FOLDER}/{name}/{HISTORY}") or [])[told:]:
                told += 1
                print(
                    f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, held-out top-1 "
                    f"{100 * row['held_out_top1']:.1f} %, {row['images_per_second']:.0f} images/s",
                    file=sys.stderr,
                    flush=True,
                )
            if last:
                return

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def track(config: Pretrain, name: str, history: list[dict]) -> dict:
    """Record the training as one MLflow run: every epoch a step."""
    from clipray.tracking import Metric, Record, record

    metrics = [
        Metric(key, value, row["epoch"])
        for row in history
        for key, value in row.items()
        if key != "epoch"
    ]
    artifacts = {"model/model.safetensors": str(backbones.local_path(config.output))}
    done = record(
        f"pretrain/{name}",
        config.workspace,
        config.tracking,
        Record(what(config), metrics, (), artifacts),
    )
    return {key: value for key, value in done.items() if key != "written"}


def export(config: Pretrain, last) -> dict:
    """Write the last checkpoint's model to `config.output` and say what it reached."""
    import torch

    with last.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    model = backbones.untrained(config.architecture)
    model.load_state_dict(state["model"])
    path = backbones.local_path(config.output)
    backbones.save(model, path)
    return {"weights": str(path), "architecture": config.architecture, "metrics": state["metrics"]}


def model_card(config: Pretrain, history: list[dict], images: int) -> str:
    """Write what the weights are, how they were made and what they reach, as Markdown.

    Args:
        history: one dict of metrics an epoch. images: training images.
    """
    model = backbones.untrained(config.architecture)
    towers = sum(p.numel() for p in model.visual.parameters()), model.token_embedding.weight.numel()
    text = sum(p.numel() for p in model.parameters()) - sum(towers)
    steps = config.epochs * (images // config.batch_size)
    path = backbones.local_path(config.output)
    lines = [
        f"# {config.name}",
        "",
        "A small CLIP for demos and tests; it knows the words of its captions and little else.",
        "",
        f"- architecture: `{backbones.local_path(config.architecture).name}`; {towers[0] / 1e6:.2f} M parameters in the"
        f" image tower, {text / 1e6:.2f} M in the text tower beside its token table (rows of unseen tokens are zero"
        " and not stored)",
        f"- data: {config.data or config.corpus}; {images} training images",
        f"- training: {config.epochs} epochs, {steps} steps of {config.batch_size} images, AdamW, peak rate"
        f" {config.lr:g}, weight decay {config.weight_decay:g}, {config.warmup_steps} warm-up steps, cosine schedule,"
        f" {config.precision}, shift ±{config.shift} pixels, jitter {config.jitter:g}, seed {config.seed}",
        f"- weights: fp16 safetensors, {path.stat().st_size / 1e6:.1f} MB",
        f"- made with `python -m jobs.pretrain configs/pretrain/{config.name}.yaml`",
        "",
        f"Zero-shot top-1 on the held-out {100 * config.held_out:g} % of the corpus, among all its captions:",
        "",
        "| epoch | loss (nats) | held-out top-1 | images/s |",
        "|---:|---:|---:|---:|",
        *(
            f"| {row['epoch']} | {row['loss']:.3f} | {100 * row['held_out_top1']:.1f} % |"
            f" {row['images_per_second']:.0f} |"
            for row in history
        ),
        "",
    ]
    return "\n".join(lines)


def what(config: Pretrain) -> dict:
    """Return the choices that make the weights: all but where and with how many workers they are trained."""
    how = {"workspace", "output", "data", "tracking", "max_failures"}
    how |= {"workers", "use_gpu", "cpus_per_worker", "threads"}
    return {
        "config": config.model_dump(mode="json", exclude=how),
        "architecture": backbones.local_path(config.architecture).read_text(),
    }


def corpus(config: Pretrain):
    """Decode the captioned images once: (training part, held-out part, the held-out part's captions).

    The held-out part is chosen by the hash of the image's bytes, so it is the same in every run.
    """
    import ray

    size = backbones.image_size(config.architecture)
    preprocess = images.Preprocess((size, size), "bicubic", "shortest", 0)
    rows = ray.data.read_parquet(config.corpus, columns=[config.image, config.caption])
    if not {config.image, config.caption} <= set(rows.schema().names):
        raise ConfigError(
            f"corpus {config.corpus} has no columns {config.image} and {config.caption}"
        )
    decoded = rows.repartition(target_num_rows_per_block=2048).map_batches(
        partial(
            decode,
            image=config.image,
            caption=config.caption,
            preprocess=preprocess,
            held_out=config.held_out,
        ),
        batch_size=512,
    )
    if config.cache:
        decoded = decoded.random_shuffle(seed=config.seed).materialize()
    train, held = (decoded.map_batches(partial(part, held_out=flag)) for flag in (False, True))
    held = held.materialize()
    return (
        (train.materialize() if config.cache else train),
        held,
        sorted(held.unique("caption"))[:HELD_OUT_CAPTIONS],
    )


def decode(
    batch: dict, image: str, caption: str, preprocess: images.Preprocess, held_out: float
) -> dict[str, np.ndarray]:
    """Turn captioned bytes into uint8 crops; leave out an image that cannot be read."""
    rows = []
    found = [cell["bytes"] if isinstance(cell, dict) else cell for cell in batch[image]]
    found, errors = survivors(found, [None] * len(found), images.MAX_PIXELS)
    for data, error, text in zip(found, errors, batch[caption], strict=True):
        if error:
            continue
        try:
            crop = images.crop(images.decode(data), preprocess)
        except images.ImageError:
            continue
        share = int.from_bytes(hashlib.blake2b(data, digest_size=4).digest()) / 2**32
        rows.append((crop, text, share < held_out))
    crops, texts, held = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "crop": np.array(crops, np.uint8),
        "caption": np.array(texts, object),
        "held_out": np.array(held, bool),
    }


def part(batch: dict, held_out: bool) -> dict[str, np.ndarray]:
    """Return the training rows, or the held-out ones."""
    mask = batch["held_out"] == held_out
    return {"crop": batch["crop"][mask], "caption": batch["caption"][mask]}
