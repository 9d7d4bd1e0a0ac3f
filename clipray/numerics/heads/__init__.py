"""Heads: one backbone's embeddings to logits, one file a head; those with labels learn from a support set."""

from collections.abc import Mapping
from typing import Any

from clipray.numerics.contracts import Head, changed
from clipray.numerics.heads import (
    linear_probe,
    tip_adapter,
    tip_adapter_f,
    zero_shot,
    zero_shot_probe,
)
from clipray.numerics.ties import exact_head

HEADS: dict[str, Head] = {
    "zero_shot": zero_shot.HEAD,
    "linear_probe": linear_probe.HEAD,
    "zero_shot_probe": zero_shot_probe.HEAD,
    "tip_adapter": tip_adapter.HEAD,
    "tip_adapter_f": tip_adapter_f.HEAD,
}
HEADS.update({name: exact_head(head) for name, head in HEADS.items()})


def head_of(name: str, changes: Mapping[str, Any] | None = None) -> Head:
    """Return a head, the given settings changed.

    Raises:
        KeyError: no such head. TypeError: no such setting.

    >>> head_of("tip_adapter", {"alpha": 2.0}).settings.alpha
    2.0
    """
    if name not in HEADS:
        raise KeyError(f"no head {name!r}; known: {', '.join(HEADS)}")
    return HEADS[name]._replace(settings=changed(HEADS[name].settings, changes or {}))
