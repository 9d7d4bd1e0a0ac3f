"""A backbone's card: what later steps need to know of a model without loading it, and what it costs."""

from collections.abc import Sequence

from clipray import backbones, fingerprint
from clipray.config import Backbone
from clipray.store import Store

MEASURE = "clipray.steps.embed.measure:measure"  # that makes it


def address(store: Store, spec: Backbone, precision: str) -> str:
    """Return the address of a backbone's card."""
    return store.address("backbones", spec.name, what=what(spec, precision))


def what(spec: Backbone, precision: str) -> dict:
    """Return the WHAT of a card."""
    code = fingerprint.code(backbones.load, MEASURE)
    return {"backbone": backbones.origin(spec), "precision": precision, "code": code}


def read(store: Store, spec: Backbone, precision: str) -> dict | None:
    """Read a stored card; None where there is none."""
    return read_many(store, [spec], precision)[0]


def read_many(store: Store, specs: Sequence[Backbone], precision: str) -> list[dict | None]:
    """Read the stored card of each backbone; None for one that has none."""
    manifests = store.manifests(address(store, spec, precision) for spec in specs)
    return [(manifest or {}).get("card") for manifest in manifests]


def cost(card: dict) -> dict[str, float]:
    """Return what one image costs: `gflops`, `latency_ms` and `memory_mb`, as far as the card knows them."""
    names = {
        "gflops": ("image_gflops", 1),
        "latency_ms": ("seconds_per_image", 1000),
        "memory_mb": ("memory_mb", 1),
    }
    return {name: card[key] * unit for name, (key, unit) in names.items() if key in card}


def write(store: Store, spec: Backbone, precision: str, card: dict, device: str) -> None:
    """Store a card.

    Args:
        device: that it was measured on.
    """
    place = address(store, spec, precision)
    store.finish(place, what(spec, precision), card=card, device=device)
