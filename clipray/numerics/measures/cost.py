"""What a method costs per image, from what its backbones cost."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from clipray.numerics.contracts import State

MULTIPLY_ADD = 2  # floating-point operations


def fuser_flops(state: State, backbones: int, classes: int) -> float:
    """Floating-point operations per image that a fitted fuser adds to its backbones, by the sizes of its tensors.

    A matrix that an image's vector meets costs two operations per entry: the gates' layers, class means, probes and
    the support images' keys. Weighing M×C logits costs two per logit. Softmaxes are not counted.

    >>> import torch
    >>> from clipray.numerics.contracts import NoSettings
    >>> fuser_flops(State(NoSettings(), {"w2_HM": torch.zeros(10, 3)}), backbones=3, classes=4)   # 2·30 + 2·12
    84.0
    """
    met = sum(t.numel() for name, t in state.tensors.items() if _is_matrix(name, t))
    return float(MULTIPLY_ADD * (met + backbones * classes))


def _is_matrix(name: str, tensor: Tensor) -> bool:
    kinds = ("w1_DH", "w2_HM", "v_DM", "w_DC", "means_CD", "keys_KD", "profile_KX")
    return tensor.ndim == 2 and any(part in kinds for part in name.split("/"))


def backbones_used(state: State, backbones: int) -> Sequence[int]:
    """Numbers of the backbones that must run: one for `best_single_on_support`, those of non-zero weight, else all."""
    if "backbone" in state.tensors:
        return [int(state.tensors["backbone"])]
    if "w_M" in state.tensors:
        return [m for m, w in enumerate(state.tensors["w_M"].tolist()) if w > 0]
    return range(backbones)


def method_cost(
    used: Sequence[int], per_backbone: Sequence[Mapping[str, float]], fuser_gflops: float
) -> dict[str, float]:
    """Cost per image of a method that runs these backbones one after another.

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
