"""What failed: rows of images and of wholes, and whether a split keeps to the error budget."""

from typing import TYPE_CHECKING

import pyarrow as pa

from clipray.store import Store

if TYPE_CHECKING:
    from clipray.steps.embed.plan import Work

NOT_FINITE = "the embedding is not finite"
TOO_LARGE = "the embedding is too large for float16: --set precision=fp32 keeps it"
FAILS = "the model fails on it: "
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
    """A row of `schema.FAILURES`: of an image, or of all that it names where it names no image."""
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
    """Keep why an artefact could not be made; whoever can make it tries again all the same."""
    store.write_json(f"{place}/{MARK}", {"error": reason})


def marked(store: Store, place: str) -> str | None:
    """Why an artefact could not be made; None where nothing tried in vain."""
    return (store.read_json(f"{place}/{MARK}") or {}).get("error")


def finish(store: Store, work: "Work", budget: float, broken: dict[str, str]) -> list[dict]:
    """Write the manifests of a split's backbones that have left all shards and keep to the error budget.

    An image that cannot be read counts against the split; one that a backbone alone cannot embed, or gives numbers for
    that are not finite, counts against that backbone. All shards count, whichever run wrote them.

    Args:
        budget: `compute.error_budget`: a fraction of the split's images below 1, else a count.
        broken: by backbone, why it left shards without a file.

    Returns:
        `failure` rows: of images, and of a backbone, or of the whole dataset, that cannot be used.
    """
    index, whole = work.index, []
    where = {"dataset": index.dataset, "split": index.split}
    errors: dict[str, dict[str, str]] = {}
    for backbone in work.addresses:
        try:
            errors[backbone] = _errors(store, work, backbone)
        except LookupError as error:
            reason = broken.get(backbone, error.args[0])
            mark(store, work.addresses[backbone], reason)
            whole.append(failure("embed", reason, backbone=backbone, **where))
    unread = {i: e for own in errors.values() for i, e in own.items() if not _of_model(e)}
    allowed = budget * len(index) if budget < 1 else budget
    if len(unread) > allowed:
        words = _over(len(unread), len(index), allowed, "cannot be read")
        remedy = "look at them with `python -m jobs.validate CONFIG`, mend the data"
        whole.append(failure("read", f"{words}: {remedy} or {RAISE}", **where))
        return [*whole, *_images(work, errors)]
    for backbone, own in errors.items():
        place = work.addresses[backbone]
        if len(own) > allowed:
            words = _over(len(own), len(index), allowed, "have no embedding")
            often = max(own.values(), key=list(own.values()).count)
            row = failure("embed", f"{words} ({often}): {RAISE}", backbone=backbone, **where)
            whole.append(row)
        elif store.manifest(place) is None:
            names = [shard for shard, _ in work.shards()]
            told = {"images": len(index), "shards": names, "errors": own}
            store.finish(place, work.whats[backbone], **told)
    return [*whole, *_images(work, errors)]


def _over(failed: int, images: int, allowed: float, words: str) -> str:
    return f"{failed} of {images} images {words}, more than the error budget allows ({allowed:g})"


def _of_model(error: str) -> bool:
    """Whether an image's error is a backbone's own, and not that it cannot be read."""
    return error in (NOT_FINITE, TOO_LARGE) or error.startswith(FAILS)


def _errors(store: Store, work: "Work", backbone: str) -> dict[str, str]:
    """Image id → error, of all shards of a backbone; `LookupError` where some are not there."""
    place = work.addresses[backbone]
    done = store.manifest(place)
    if done is not None:
        return done["errors"]
    names = [shard for shard, _ in work.shards()]
    lacking = set(names) - store.names(place)
    if lacking:
        raise LookupError(f"{len(lacking)} of its {len(names)} shards are not there")
    columns = ["image_id", "error"]
    table = pa.concat_tables(store.read_table(f"{place}/{name}", columns) for name in names)
    expected = sorted(work.index.table["image_id"].to_pylist())
    if sorted(table["image_id"].to_pylist()) != expected:
        raise LookupError(
            f"{store.place(place)} holds other images than its index: remove it and run again"
        )
    failed = table.filter(table["error"].is_valid())
    return dict(zip(failed["image_id"].to_pylist(), failed["error"].to_pylist(), strict=True))


def _images(work: "Work", errors: dict[str, dict[str, str]]) -> list[dict]:
    """A row for each image that cannot be read, and for each that a backbone alone cannot embed."""
    ids = pa.array(sorted({image_id for own in errors.values() for image_id in own}), pa.string())
    table = work.index.table
    named = table.filter(pa.compute.is_in(table["image_id"], ids))
    keys = dict(zip(named["image_id"].to_pylist(), named["key"].to_pylist(), strict=True))
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
                keys[image_id],
            )
    return [rows[place] for place in sorted(rows, key=lambda place: (place[0], place[1] or ""))]
