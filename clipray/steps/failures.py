"""What failed: rows of images and of wholes, and whether a split keeps to the error budget."""

from collections.abc import Mapping

from clipray.artefacts.embeddings import Work
from clipray.artefacts.lookup import keys
from clipray.encoding import ALL_ZERO, FAILS, NOT_FINITE, TOO_LARGE
from clipray.steps.tally import Tally
from clipray.store import Store

MARK = "failed.json"  # beside where a manifest would be: why there is none
RAISE = "raise compute.error_budget (a fraction below 1, or a count)"


def failure(
    step: str,
    error: str,
    dataset: str | None = None,
    split: str | None = None,
    backbone: str | None = None,
    image_id: str | None = None,
    key: str | None = None,
) -> dict:
    """Make a row of `schema.FAILURES`: of one image, or, without an image, of all that the row names."""
    return {
        "dataset": dataset,
        "split": split,
        "backbone": backbone,
        "step": step,
        "image_id": image_id,
        "key": key,
        "error": error,
    }


def mark(store: Store, place: str, reason: str) -> None:
    """Keep why an artefact could not be made; a later run tries again all the same."""
    store.write_json(f"{place}/{MARK}", {"error": reason})


def marked(store: Store, place: str) -> str | None:
    """Return why an artefact could not be made; None where no run has failed to make it."""
    return (store.read_json(f"{place}/{MARK}") or {}).get("error")


def finish(
    store: Store,
    work: Work,
    budget: float,
    broken: dict[str, str],
    told: Mapping[str, Tally] | None = None,
) -> list[dict]:
    """Write the manifests of a split's backbones that have left all shards and keep to the error budget.

    An image that cannot be read counts against the split; one that a backbone alone cannot embed, or gives numbers for
    that are not finite, counts against that backbone. All shards count, whichever run wrote them. In a pool, others
    take the place of images that cannot be read, and these do not count.

    Args:
        budget: `compute.error_budget`: a fraction of the split's images below 1, else a count.
        broken: by backbone, why it left shards without a file.
        told: by backbone, what this run's workers told of their shards; the others are read.

    Returns:
        `failure` rows: of images, and of a backbone, or of the whole dataset, that cannot be used.
    """
    index, whole = work.index, []
    where = {"dataset": index.dataset, "split": index.split}
    done = {backbone: work.done.get(backbone) for backbone in work.addresses}
    errors: dict[str, dict[str, str]] = {}
    for backbone, manifest in done.items():
        try:
            known = (told or {}).get(backbone, Tally())
            errors[backbone] = (
                manifest["errors"] if manifest else _errors(store, work, backbone, known)
            )
        except LookupError as error:
            reason = broken.get(backbone, error.args[0])
            mark(store, work.addresses[backbone], reason)
            whole.append(failure("embed", reason, backbone=backbone, **where))
    names = _keys(store, work, done, errors)
    rows = _images(work, errors, names)
    unread = {i: e for own in errors.values() for i, e in own.items() if not _of_model(e)}
    allowed = budget * len(index) if budget < 1 else budget
    replaced = set(unread) if index.of else set()
    if len(unread) - len(replaced) > allowed:
        words = _over(len(unread), len(index), allowed, "cannot be read")
        remedy = "look at them with `python -m jobs.validate CONFIG`, mend the data"
        whole.append(failure("read", f"{words}: {remedy} or {RAISE}", **where))
        return [*whole, *rows]
    for backbone, own in errors.items():
        if len(set(own) - replaced) > allowed:
            words = _over(len(own), len(index), allowed, "have no embedding")
            often = max(own.values(), key=list(own.values()).count)
            row = failure("embed", f"{words} ({often}): {RAISE}", backbone=backbone, **where)
            whole.append(row)
        elif done[backbone] is None:
            facts = {
                "images": len(index),
                "shards": [shard.name for shard in work.shards()],
                "errors": own,
                "keys": {image_id: names[image_id] for image_id in own},
            }
            store.finish(work.addresses[backbone], work.whats[backbone], **facts)
    return [*whole, *rows]


def _over(failed: int, images: int, allowed: float, words: str) -> str:
    return f"{failed} of {images} images {words}, more than the error budget allows ({allowed:g})"


def _of_model(error: str) -> bool:
    """Tell whether an image's error comes from a backbone, and not from a file that cannot be read."""
    return error in (NOT_FINITE, ALL_ZERO, TOO_LARGE) or error.startswith(FAILS)


def _errors(store: Store, work: Work, backbone: str, known: Tally) -> dict[str, str]:
    """Collect image id → error of all shards of a backbone; raise `LookupError` where a shard is not there."""
    place = work.addresses[backbone]
    names = {shard.name for shard in work.shards()}
    earlier = names - known.shards
    lacking = earlier - store.names(place) if earlier else set()
    if lacking:
        raise LookupError(f"{len(lacking)} of its {len(names)} shards are not there")
    known.read(store, place, names)
    if f"{known.content:032x}" != work.index.content:
        raise LookupError(
            f"{store.place(place)} holds other images than its index: remove it and run again"
        )
    return known.errors


def _keys(
    store: Store,
    work: Work,
    done: dict[str, dict | None],
    errors: dict[str, dict[str, str]],
) -> dict[str, str]:
    """Return where a person finds the images that failed: from the manifests, or else from the index."""
    names: dict[str, str] = {}
    for manifest in done.values():
        names |= manifest["keys"] if manifest else {}
    lacking = {image_id for own in errors.values() for image_id in own} - set(names)
    return names | keys(store, work.index, lacking)


def _images(work: Work, errors: dict[str, dict[str, str]], names: dict[str, str]) -> list[dict]:
    """Make a row for each image that cannot be read, and for each that one backbone alone cannot embed."""
    rows = {}
    for backbone, own in errors.items():
        for image_id, error in own.items():
            alone = backbone if _of_model(error) else None
            rows[image_id, alone] = failure(
                "embed" if alone else "read",
                error,
                work.index.dataset,
                work.index.split,
                alone,
                image_id,
                names[image_id],
            )
    return [rows[place] for place in sorted(rows, key=lambda place: (place[0], place[1] or ""))]
