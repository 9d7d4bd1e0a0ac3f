"""What a job counts for those who watch a cluster: Ray's metrics, which every node offers to Prometheus.

Ray adds `ray_` before each name, and labels of its own. Nothing is counted where no Ray runs.
"""

from functools import cache
from typing import Any

COUNTED = {
    "clipray_images_embedded": "Images that went through all backbones that lacked them.",
    "clipray_images_failed": "Embeddings that an image has not, with an error in place of each.",
    "clipray_shards_embedded": "Shards of images that are done.",
    "clipray_evaluations_done": "Tasks of an evaluation that are done.",
    "clipray_evaluations_failed": "Tasks of an evaluation that failed.",
}


def count(name: str, amount: float, campaign: str) -> None:
    """Add to a counter.

    Args:
        name: one of `COUNTED`. amount: 0 or more. campaign: the label by which campaigns are told apart.
    """
    import ray

    if amount > 0 and ray.is_initialized():
        _counter(name).inc(amount, {"campaign": campaign})


@cache
def _counter(name: str) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description=COUNTED[name], tag_keys=("campaign",))
