"""Embeds class names: loads a backbone once, and writes its card and the classifiers that are missing."""

import numpy as np

from clipray import backbones
from clipray.artefacts import classifiers
from clipray.config import Backbone
from clipray.steps.embed import measure
from clipray.store import Store

NO_ROOM = "CUDA out of memory"  # so torch says that a GPU is full


def prepare(
    store: Store, spec: Backbone, precision: str, device: str, prompts: dict[str, dict]
) -> dict[str, str]:
    """Load a backbone once, and write its card and the classifiers that are missing.

    Args:
        prompts: for each dataset whose classifier is missing, its class names and templates.

    Returns:
        by dataset, why it has no classifier of this backbone; the others have one.
    """
    encoder = backbones.load(spec, precision, device)
    measure.write(store, encoder, device)
    failed = {}
    for dataset, texts in prompts.items():
        try:
            weights_CD = encoder.classifier(texts["classnames"], texts["templates"])
        except (
            Exception
        ) as error:  # what one set's names do to a text tower must not cost the others
            failed[dataset] = f"its class names cannot be embedded: {type(error).__name__}: {error}"
            continue
        if not np.isfinite(weights_CD).all():
            failed[dataset] = "the embeddings of its class names are not finite"
            continue
        place = classifiers.address(store, spec, precision, dataset, texts)
        made_of = classifiers.what(spec, precision, texts)
        classifiers.write(store, place, made_of, texts["classnames"], weights_CD)
    return failed
