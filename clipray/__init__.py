"""clipray measures how CLIP backbones complement each other and fuses them, per image, into one better classifier.

The flow, which is also the table of contents (one word for a step in `jobs/`, `clipray/steps/` and `tests/steps/`)::

    images ────────embed──▶ embeddings ─┐                 ┌─ fit (support set) ─▶ fusers ─┐
                                        ├─ head ─▶ logits ┤                               ├─▶ outcomes ─▶ scores ─▶ report
    class names ───embed──▶ classifiers ┘    (in memory)  └─ apply (test / new images) ───┘               └▶ MLflow

Shape suffixes of tensors and arrays: N images, M backbones, C classes, D embedding dimension, K support images,
T templates, S support sets fitted at once. `logits_NMC` is images × backbones × classes.
"""  # noqa: E501

__version__ = "0.1.0"

_LAZY = {
    "load": "clipray.fused"
}  # names for notebooks, each in a module that is imported when it is first used


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'clipray' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
