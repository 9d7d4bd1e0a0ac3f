"""Heads and fusers on a GPU say what they say on the CPU; nothing here runs without one."""

import pytest
import torch

from clipray.artefacts.evaluations import OUTCOMES, SCORES
from clipray.numerics.fusers import FUSERS
from clipray.numerics.heads import HEADS
from clipray.steps.checks import REFERENCE
from clipray.steps.evaluate import parts, score
from tests.steps.worlds import World

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@gpu
@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_gpu_gives_the_scores_of_the_cpu(tmp_path, head):
    world = World(tmp_path, train=60, test=300)
    fusers = [name for name in sorted(FUSERS) if name != REFERENCE]
    task = world.task(heads=(head,), fusers=fusers, shots=(1, 4))
    part = parts.whole(task)
    (_, on_cpu), (_, on_gpu) = (
        score.score_part(world.store, task, device, part, device) for device in ("cpu", "cuda")
    )
    keys = ["head", "method", "shots", "seed"]
    one, other = (
        tables[OUTCOMES].to_pandas().sort_values([*keys, "image_id"], ignore_index=True)
        for tables in (on_cpu, on_gpu)
    )
    assert one[[*keys, "image_id"]].equals(other[[*keys, "image_id"]])
    assert (one["confidence"] - other["confidence"]).abs().max() < 1e-3
    assert (one["prediction"] != other["prediction"]).mean() < 1e-3  # ties but for rounding
    one, other = (
        tables[SCORES].to_pandas().sort_values([*keys, "kind", "metric"], ignore_index=True)
        for tables in (on_cpu, on_gpu)
    )
    assert one[[*keys, "metric"]].equals(other[[*keys, "metric"]])
    assert (one["value"] - other["value"]).abs().quantile(0.99) < 1e-2
