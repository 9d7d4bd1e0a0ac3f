"""Complementarity of a million images and nine backbones: from the pattern histogram, and by plain array arithmetic.

    python benchmarks/complementarity.py

The floor reads every row of R (images × backbones) once for each measure, as a straightforward implementation does;
both give the same numbers, which is checked. Prints seconds and their ratio, and the bytes of what is kept of R.
"""

import time

import numpy as np
import torch

from clipray.numerics.measures import complementarity as measures

IMAGES, BACKBONES = 1_000_000, 9


def floor(right_NM: np.ndarray) -> dict[str, float]:
    """A few of the measures, straight from the definitions."""
    accuracy_M = right_NM.mean(0)
    oracle = right_NM.any(1).mean()
    pairs = [(i, j) for i in range(BACKBONES) for j in range(i)]
    disagreement = np.mean([(right_NM[:, i] ^ right_NM[:, j]).mean() for i, j in pairs])
    fault = np.mean([(~right_NM[:, i] & ~right_NM[:, j]).mean() for i, j in pairs])
    share = (oracle - accuracy_M.max()) / (1 - accuracy_M.max())
    return {
        "oracle": oracle,
        "complementarity": share,
        "disagreement": disagreement,
        "double_fault": fault,
    }


def ours(right_NM: torch.Tensor) -> tuple[dict[str, float], int]:
    """All measures of the set, of each backbone, of all pairs and of all subsets; bytes of the histogram."""
    p = measures.patterns(right_NM)
    whole, pairs = measures.of_set(p), measures.pairs(p)
    measures.by_backbone(p)
    measures.oracle_of_subsets(p)
    measures.coverage_order(p)
    off = ~torch.eye(BACKBONES, dtype=torch.bool)
    found = {name: float(whole[name]) for name in ("oracle", "complementarity")}
    found |= {name: float(pairs[name][off].mean()) for name in ("disagreement", "double_fault")}
    return found, sum(t.numel() * t.element_size() for t in p if isinstance(t, torch.Tensor))


def main() -> None:
    """Time both, compare, print."""
    random = np.random.default_rng(0)
    easy_N1 = random.normal(size=(IMAGES, 1))
    right = easy_N1 + random.normal(size=(IMAGES, BACKBONES)) > 0
    ours(torch.from_numpy(right[:1000]))
    start = time.perf_counter()
    found, kept = ours(torch.from_numpy(right))
    middle = time.perf_counter()
    expected = floor(right)
    end = time.perf_counter()
    assert all(np.isclose(found[name], value) for name, value in expected.items()), (
        found,
        expected,
    )
    print(
        f"all measures from the histogram: {middle - start:.3f} s, {kept} bytes kept of {right.nbytes}"
    )
    print(
        f"four of them by plain arithmetic: {end - middle:.3f} s; ratio {(end - middle) / (middle - start):.1f}"
    )


if __name__ == "__main__":
    main()
