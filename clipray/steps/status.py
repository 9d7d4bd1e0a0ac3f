"""What a workspace holds: who works in it, what is done, what failed, what it took."""

from typing import Any

from clipray import lock
from clipray.artefacts import history, inventory
from clipray.artefacts.inventory import Artefact
from clipray.report import files
from clipray.store import Store

HOUR = 3600.0


def status(store: Store, prices: dict[str, float]) -> dict[str, Any]:
    """Collect everything that `jobs.status` tells.

    Args:
        prices: of an hour of a device, by its kind ("cpu", "cuda"); none where no money is to be told.

    Returns:
        `working` (see `lock.owner_of`), `kinds` (by kind of artefact: whole, unfinished, bytes), `campaigns` (see
        `_campaign`) and `embedding` (see `_embedding`).
    """
    artefacts = inventory.read(store)
    names = sorted(store.names(inventory.REPORTS))
    campaigns = [_campaign(store, name) for name in names]
    return {
        "workspace": store.uri,
        "working": lock.owner_of(store),
        "kinds": _kinds(artefacts),
        "campaigns": [one for one in campaigns if one],
        "embedding": _embedding(store, artefacts, prices),
    }


def _kinds(artefacts: list[Artefact]) -> dict[str, dict[str, int]]:
    """Count, by kind of artefact, those that are whole and those that are unfinished, and their bytes."""
    found: dict[str, dict[str, int]] = {}
    for one in artefacts:
        if one.kind not in (*inventory.TAKEN, "index", "backbones"):
            continue
        row = found.setdefault(one.kind, {"whole": 0, "unfinished": 0, "bytes": 0})
        row["whole" if one.whole else "unfinished"] += 1
        row["bytes"] += one.bytes
    return found


def _campaign(store: Store, name: str) -> dict[str, Any] | None:
    """Read a campaign's last publication: headline, what failed, what changed; None where nothing is published."""
    folder = f"{inventory.REPORTS}/{name}"
    published = store.read_json(f"{folder}/{files.MARK}")
    if published is None:
        return None
    result = published["result"]
    stamps = history.entries(store, folder)
    return {
        "name": name,
        "publications": len(stamps),
        "last": stamps[-1] if stamps else None,
        "datasets": len(result["outcomes"]),
        "failed": result["failed"],
        "changes": (result.get("changes") or {}).get("counts"),
        "text": result["headline"]["text"],
        "report": store.place(result["files"]["report"]),
    }


def _embedding(
    store: Store, artefacts: list[Artefact], prices: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """Sum up, by backbone, images, bytes, and the device-seconds by its card's time per image.

    The seconds are an estimate: measured once on some device, times the images. `money` is there where the device has
    a price.
    """
    cards = _cards(store, artefacts)
    found: dict[str, dict[str, Any]] = {}
    whole = [one for one in artefacts if one.kind == "embeddings" and one.whole]
    manifests = store.manifests(one.address for one in whole)
    for one, manifest in zip(whole, manifests, strict=True):
        backbone = one.address.rpartition("/")[2].rpartition("-")[0]
        row = found.setdefault(backbone, {"images": 0, "bytes": 0})
        row["images"] += manifest["images"]
        row["bytes"] += one.bytes
    for backbone, row in found.items():
        seconds, device = cards.get(backbone, (None, None))
        row["device"] = device
        row["device_seconds"] = None if seconds is None else seconds * row["images"]
        if seconds is not None and device in prices:
            row["money"] = row["device_seconds"] / HOUR * prices[device]
    return dict(sorted(found.items()))


def _cards(store: Store, artefacts: list[Artefact]) -> dict[str, tuple[float | None, str | None]]:
    """Read, by backbone, its newest card: seconds per image, and the device that they were measured on."""
    found = {}
    cards = [one for one in artefacts if one.kind == "backbones" and one.whole]
    for one in sorted(cards, key=lambda card: card.modified):
        told = store.manifest(one.address)
        name = one.address.rpartition("/")[2].rpartition("-")[0]
        found[name] = (told["card"].get("seconds_per_image"), told.get("device"))
    return found
