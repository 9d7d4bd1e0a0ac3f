"""The contrastive loss against open_clip's, against a slow loop, and split over workers."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from clipray.numerics.contrastive import contrastive_loss, shifted


def made(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, n, 5, generator=generator)
    return tuple(torch.nn.functional.normalize(pair, dim=-1))


def test_it_is_clips_loss_where_captions_are_unique():
    import open_clip  # here, not above: the workers below would import it too

    images, texts = made(7)
    theirs = open_clip.ClipLoss()(images, texts, torch.tensor(10.0))
    ours = contrastive_loss(images, texts, torch.arange(7), torch.tensor(10.0))
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_repeated_captions_are_positives():
    """A slow loop over the definition."""
    images, texts = made(6)
    captions = torch.tensor([0, 1, 0, 2, 1, 0])
    texts = texts[captions]
    logits = 4.0 * images @ texts.T
    total = 0.0
    for rows in (logits, logits.T):
        for i in range(6):
            positives = [j for j in range(6) if captions[j] == captions[i]]
            denominator = torch.logsumexp(rows[i], 0)
            total += sum(float(denominator - rows[i, j]) for j in positives) / len(positives) / 6
    ours = contrastive_loss(images, texts, captions, torch.tensor(4.0))
    assert float(ours) == pytest.approx(total / 2, abs=1e-5)


def _worker(
    rank: int, world: int, address: str, images: torch.Tensor, texts: torch.Tensor, out: list
) -> None:
    from clipray.steps.pretrain.worker import gathered, world_size

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    mine = slice(rank * 4, rank * 4 + 4)
    own = [images[mine].clone().requires_grad_(), texts[mine].clone().requires_grad_()]
    all_images, all_texts, captions = gathered(*own, torch.tensor([0, 1, 2, 0, 3, 1, 4, 5])[mine])
    loss = contrastive_loss(all_images, all_texts, captions, torch.tensor(3.0))
    (loss * world_size()).backward()
    out[rank].copy_(
        torch.stack([tensor.grad / world for tensor in own])
    )  # what DDP's mean over workers makes of it
    dist.destroy_process_group()


def test_two_workers_have_the_gradient_of_one(tmp_path):
    """The rows' gradients of two workers, as DDP averages them, are those of one process with the whole batch."""
    images, texts = made(8)
    out = [torch.zeros(2, 4, 5).share_memory_() for _ in range(2)]
    mp.spawn(_worker, (2, f"file://{tmp_path}/meet", images, texts, out), nprocs=2)
    whole = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
    contrastive_loss(*whole, torch.tensor([0, 1, 2, 0, 3, 1, 4, 5]), torch.tensor(3.0)).backward()
    for part, tensor in enumerate(whole):
        ours = torch.cat([worker[part] for worker in out])
        assert torch.allclose(ours, tensor.grad, atol=1e-6)


def test_shifted_moves_whole_images():
    pixels = torch.arange(2 * 1 * 4 * 4, dtype=torch.float32).view(2, 1, 4, 4)
    assert torch.equal(shifted(pixels, 0), pixels)
    moved = shifted(pixels, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels, (2,) * 4, mode="replicate")
    for image, wide in zip(moved, padded, strict=True):
        windows = [wide[:, top : top + 4, left : left + 4] for top in range(5) for left in range(5)]
        assert any(torch.equal(image, window) for window in windows)
