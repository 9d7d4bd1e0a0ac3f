"""The training loop that each Ray Train worker runs: epochs from the last checkpoint on."""

import hashlib
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from clipray import backbones
from clipray.config.pretrain import Pretrain
from clipray.store import Store

FOLDER, HISTORY = "pretrain", "history.json"  # where a workspace keeps trainings, and their epochs


def train_worker(settings: dict) -> None:
    """Run the epochs of one Ray Train worker, from the last checkpoint on."""
    import ray.train
    import torch

    config = Pretrain(**settings["config"])
    world, rank = ray.train.get_context().get_world_size(), ray.train.get_context().get_world_rank()
    torch.manual_seed(config.seed)
    torch.set_num_threads(max(1, config.threads))
    model = backbones.untrained(config.architecture).to(memory_format=torch.channels_last)
    wrapped = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.AdamW(
        groups(model, config.weight_decay), lr=config.lr, betas=(0.9, 0.98), eps=1e-6
    )
    steps = max(1, settings["n"] // config.batch_size)
    done = restore(model, optimizer)
    tokenizer = backbones.tokenizer(config.architecture)
    for epoch in range(done, config.epochs):
        start, losses = time.perf_counter(), []
        torch.manual_seed(
            hash((config.seed, epoch, rank))
        )  # a continued run draws what an unbroken one does
        wrapped.train()
        batches = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=config.batch_size // world,
            drop_last=True,
            local_shuffle_buffer_size=config.shuffle_buffer,
            local_shuffle_seed=config.seed + epoch,
        )
        for step, batch in zip(range(steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * schedule(
                    epoch * steps + step, config.warmup_steps, config.epochs * steps
                )
            losses.append(train_step(wrapped, model, optimizer, batch, tokenizer, config))
        metrics = {
            "epoch": epoch + 1,
            "loss": float(torch.stack(losses).mean()),
            "images_per_second": len(losses) * config.batch_size / (time.perf_counter() - start),
            "held_out_top1": held_out_accuracy(model, settings["captions"], tokenizer),
        }
        checkpoint(
            model,
            optimizer,
            metrics,
            Store(config.workspace),
            f"{FOLDER}/{settings['name']}/{HISTORY}",
        )


def groups(model, weight_decay: float) -> list[dict]:
    """Group parameters: weight decay on matrices, but not on the token table, so that unseen rows stay zero."""
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and n != backbones.TABLE]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or n == backbones.TABLE]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def schedule(step: int, warmup: int, total: int) -> float:
    """Compute the factor of the peak rate: a linear warm-up, then half a cosine to zero.

    >>> schedule(9, 10, 110), schedule(60, 10, 110), round(schedule(110, 10, 110), 6)
    (1.0, 0.5, 0.0)
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train_step(wrapped, model, optimizer, batch: dict, tokenizer, config: Pretrain):
    """Make one optimiser step; return the detached loss."""
    import torch

    from clipray.numerics.contrastive import contrastive_loss, shifted

    device = next(model.parameters()).device
    texts, inverse = np.unique(batch["caption"].astype(str), return_inverse=True)
    pixels = augmented(
        shifted(normalised(batch["crop"], model, device), config.shift), config.jitter
    )
    amp = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
    with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
        image_BD, text_UD, scale = wrapped(pixels, tokenizer(list(texts)).to(device))
    caption_U = torch.tensor([_number(text) for text in texts], device=device)
    inverse = torch.from_numpy(inverse).to(device)
    image_BD, text_BD, caption_B = gathered(
        image_BD.float(), text_UD.float()[inverse], caption_U[inverse]
    )
    loss = contrastive_loss(image_BD, text_BD, caption_B, scale)
    optimizer.zero_grad(set_to_none=True)
    (
        loss * world_size()
    ).backward()  # DDP averages over workers; each holds its own rows' share of the gradient
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(config.max_scale))
    return loss.detach()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)


def world_size() -> int:
    """Return the number of workers in this training."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def gathered(*parts):
    """Gather each tensor's rows from all workers; gradients flow through this worker's rows only."""
    import torch
    import torch.distributed as dist

    if world_size() == 1:
        return parts
    whole = []
    for tensor in parts:
        rows = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(rows, tensor.detach().contiguous())
        rows[dist.get_rank()] = tensor
        whole.append(torch.cat(rows))
    return whole


def normalised(crops: np.ndarray, model, device):
    """Turn uint8 crops N×H×W×3 into the model's normalised input N×3×H×W on the device."""
    import torch

    config = model.visual.preprocess_cfg
    mean, std = (
        torch.tensor(config[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std")
    )
    pixels = torch.from_numpy(np.ascontiguousarray(crops)).to(device).permute(0, 3, 1, 2).float()
    return (pixels / 255 - mean) / std


def augmented(pixels, jitter: float):
    """Change contrast and brightness by up to a fraction `jitter` (in units of the normalised input)."""
    import torch

    contrast, brightness = (
        torch.rand(2, len(pixels), 1, 1, 1, device=pixels.device) * 2 - 1
    ) * jitter
    return pixels * (1 + contrast) + brightness


def held_out_accuracy(model, captions: list[str], tokenizer) -> float:
    """Compute zero-shot top-1 on the held-out part: the share of images whose own caption scores highest.

    The captions are used as they are: one prompt a class, over all workers' rows.
    """
    import ray.train
    import torch
    import torch.distributed as dist
    from torch.nn.functional import normalize

    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        text_CD = normalize(model.encode_text(tokenizer(captions).to(device)).float(), dim=-1)
        position = {caption: number for number, caption in enumerate(captions)}
        right, total = 0, 0
        for batch in ray.train.get_dataset_shard("held_out").iter_batches(batch_size=256):
            image_ND = normalize(
                model.encode_image(normalised(batch["crop"], model, device)).float(), dim=-1
            )
            target = torch.tensor(
                [position.get(caption, -1) for caption in batch["caption"]], device=device
            )
            right += int(((image_ND @ text_CD.T).argmax(1) == target).sum())
            total += int((target >= 0).sum())
    counts = torch.tensor([right, total], device=device)
    if world_size() > 1:
        dist.all_reduce(counts)
    return float(counts[0] / counts[1].clamp(min=1))


def checkpoint(model, optimizer, metrics: dict, store: Store, history: str) -> None:
    """Report an epoch; the first worker's copy of model and optimiser is the checkpoint."""
    import ray.train
    import torch
    from ray.train import Checkpoint

    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "metrics": metrics,
        }
        torch.save(state, Path(folder) / "state.pt")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
    earlier = [row for row in store.read_json(history) or [] if row["epoch"] < metrics["epoch"]]
    store.write_json(history, [*earlier, metrics])


def restore(model, optimizer) -> int:
    """Load the last checkpoint, if there is one; return the number of epochs that it has seen."""
    import ray.train
    import torch

    last = ray.train.get_checkpoint()
    if last is None:
        return 0
    with last.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["metrics"]["epoch"]
