"""clipray measures how CLIP backbones complement each other and fuses them, per image, into one better classifier.

The flow, which is also the table of contents (one word for a step in `jobs/`, `clipray/steps/` and `tests/steps/`)::

    images ────────embed──▶ embeddings ─┐                 ┌─ fit (support set) ─▶ fusers ─┐
                                        ├─ head ─▶ logits ┤                               ├─▶ outcomes ─▶ scores ─▶ report
    class names ───embed──▶ classifiers ┘    (in memory)  └─ apply (test / new images) ───┘               └▶ MLflow

Shape suffixes of tensors and arrays: N images, M backbones, C classes, D embedding dimension, K support images,
T templates, S support sets fitted at once. `logits_NMC` is images × backbones × classes.

In a notebook: `clipray.load`, and `clipray.fit`, `clipray.complementarity` and all else of `clipray.notebook`.
"""  # noqa: E501

__version__ = "0.1.0"

_NOTEBOOK = ("apply", "by_backbone", "complementarity", "fit", "fusers", "metrics", "pairs")
_NOTEBOOK += ("plot_pairs", "right", "scores")
# Names for notebooks, each in a module that is imported when it is first used.
_LAZY = {**dict.fromkeys(_NOTEBOOK, "clipray.notebook"), "load": "clipray.fused"}


def __getattr__(name: str):
    """Load what is asked for only then: importing clipray does nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module 'clipray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """What notebooks complete."""
    return sorted([*globals(), *_LAZY])
