"""Made-up problems for the tests of numerics: not a test file."""

import torch

from clipray.numerics.contracts import Support


def problem(images=60, dims=(6, 5, 7), classes=4, seed=0, noise=1.0, scale=3.0):
    """Embeddings around class means, and logits of a zero-shot head that knows them roughly."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    embeddings, logits = [], []
    for d in dims:
        means = torch.randn(classes, d, generator=g)
        e = means[labels] + noise * torch.randn(images, d, generator=g)
        rough = means + 0.7 * torch.randn(classes, d, generator=g)
        logits.append(
            scale
            * torch.nn.functional.normalize(e, dim=1)
            @ torch.nn.functional.normalize(rough, dim=1).T
        )
        embeddings.append(e)
    return torch.stack(logits, 1), tuple(embeddings), labels


def support(seed=0, **more):
    """A support set of such a problem."""
    logits, embeddings, labels = problem(seed=seed, **more)
    return Support(logits, embeddings, labels, seed=seed)
