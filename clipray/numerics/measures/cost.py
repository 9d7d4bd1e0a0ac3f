"""What a method costs per image, from what its backbones cost."""

from collections.abc import Mapping, Sequence

from clipray.numerics.contracts import State


def backbones_used(state: State, backbones: int) -> Sequence[int]:
    """Return the backbones that must run: one for `best_single_on_support`, those of non-zero weight, else all."""
    if "backbone" in state.tensors:
        return [int(state.tensors["backbone"])]
    if "w_M" in state.tensors:
        return [m for m, w in enumerate(state.tensors["w_M"].tolist()) if w > 0]
    return range(backbones)


def method_cost(
    used: Sequence[int], per_backbone: Sequence[Mapping[str, float]], fuser_gflops: float
) -> dict[str, float]:
    """Add up the cost per image of a method that runs these backbones one after another.

    Args:
        used: numbers of the backbones that run.
        per_backbone: for each, `gflops`, `latency_ms` and `memory_mb` (of its weights), those that are known.
        fuser_gflops: what the fuser adds.

    Returns:
        `gflops`, `latency_ms` and `memory_mb` (all stay loaded), each summed; nan where a backbone lacks the figure.

    >>> method_cost([0, 1], [{"gflops": 1.0, "latency_ms": 2.0}, {"gflops": 3.0, "latency_ms": 4.0}], 0.5)
    {'gflops': 4.5, 'latency_ms': 6.0, 'memory_mb': nan}
    """
    total = {
        key: sum(per_backbone[m].get(key, float("nan")) for m in used)
        for key in ("gflops", "latency_ms", "memory_mb")
    }
    return total | {"gflops": total["gflops"] + fuser_gflops}
