"""clipray measures how CLIP backbones complement each other and fuses them, per image, into one better classifier.

The flow, which is also the table of contents (one word for a step in `jobs/`, `clipray/steps/` and `tests/steps/`)::

    images ────────embed──▶ embeddings ─┐                 ┌─ fit (support set) ─▶ fusers ─┐
                                        ├─ head ─▶ logits ┤                               ├─▶ outcomes ─▶ scores ─▶ report
    class names ───embed──▶ classifiers ┘    (in memory)  └─ apply (test / new images) ───┘               └▶ MLflow

Shape suffixes of tensors and arrays: N images, M backbones, C classes, D embedding dimension, K support images,
T templates, S support sets fitted at once. `logits_NMC` is images × backbones × classes.
"""  # noqa: E501

__version__ = "0.1.0"
