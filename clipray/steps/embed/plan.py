"""Images → embeddings: every image decoded once, cropped once per preprocess group, run through a pool per backbone.

What passes the pools is one shard of images, so an image's batch never depends on the cluster, a shard's files are
written whole, and nothing has to be regrouped. Each pool writes its shard's file itself. Killing the job at any
moment therefore loses at most the shards in flight.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from clipray import images
from clipray.artefacts.bundles import bundles
from clipray.artefacts.embeddings import Work
from clipray.artefacts.index import Shard
from clipray.config import Backbone, Campaign, Pool
from clipray.encoding import column, largest_first
from clipray.steps.crews import Member, chained, decoding, manned, streamed
from clipray.steps.embed.decode import decode
from clipray.store import Store

TOLD = ("dataset", "split", "shard", "content", "broken", "errors")
SPENT = ("spent", "read", "written")  # see `steps.spent`


def items(work: Work) -> Iterator[dict]:
    """Yield the rows of the Ray dataset: each is a shard that lacks something, or several of the same row groups."""
    lacking = (shard for shard in work.shards() if work.todo[shard.name])
    for shards in bundles(work.index, lacking):
        yield {"task": pickle.dumps(bundle(work, shards))}


def bundle(work: Work, shards: Sequence[Shard]) -> dict:
    """Tell what is to be done of some shards; their worker looks up their images."""
    todo = [tuple(work.todo[shard.name]) for shard in shards]
    once = {names: names for names in todo}  # equal ones are pickled once
    return {
        "dataset": work.index.dataset,
        "split": work.index.split,
        "index": work.index.place,
        "addresses": work.addresses,
        "shards": [(*shard, once[names]) for shard, names in zip(shards, todo, strict=True)],
    }


def run(
    store: Store,
    works: list[Work],
    specs: list[Backbone],
    campaign: Campaign,
    cards: dict[str, dict],
    pools: dict[str, Pool],
    device: str,
) -> Iterator[dict]:
    """Embed what is missing; yield what workers tell of each shard as it is done.

    That is its `dataset`, `split` and `shard`, the number of its `images`, the sum of their `content`, by backbone why
    it left no file (`broken`), or else which images it has no embedding of and why (`errors`), and what the shard took
    (`spent`, `read`, `written`). Whether a split keeps to the error budget is for `finish` to say, which sees the
    shards of earlier runs too: what was embedded serves a later run with a larger budget.

    Args:
        works: the splits' plans.
        cards: each backbone's card. pools: sizes and resources of the backbones with work to do; others have none.
        device: "cpu" or "cuda".
    """
    others = {spec.name for spec in specs} - set(pools)
    rows = [item for work in works for item in items(work.without(others))]
    for task in passed(store, rows, decode, specs, campaign, cards, pools, device):
        told = {key: task[key] for key in TOLD} | {key: task[key] for key in SPENT if key in task}
        yield {**told, "images": len(task["rows"])}


def passed(
    store: Store,
    rows: list[dict],
    decode: Callable,
    specs: list[Backbone],
    campaign: Campaign,
    cards: dict[str, dict],
    pools: dict[str, Pool],
    device: str,
) -> Iterator[dict]:
    """Send rows through decoding and a chain of pools; yield the tasks that come out, as they are done.

    Args:
        rows: of the Ray dataset, each with a pickled `task`.
        decode: makes of each row one or several, as `decode.decode` does of one.
        specs, campaign, cards, pools, device: see `run`.
    """
    if not rows:
        return
    compute = campaign.compute
    groups = {name: _group(cards[name]) for name in pools}
    how = decoding(compute, groups.values())
    dataset = streamed(rows).map_batches(
        partial(decode, store=store, groups=groups, max_pixels=campaign.max_pixels), **how
    )
    members = members_of(store, specs, campaign, groups, device)
    crews = manned(members, pools, cards, compute.batch_size)
    dataset = chained(dataset, crews, compute, how["memory"])
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for cell in batch["task"]:
            yield pickle.loads(cell.as_py())


def members_of(
    store: Store,
    specs: Sequence[Backbone],
    campaign: Campaign,
    groups: Mapping[str, images.Preprocess],
    device: str,
) -> dict[str, Member]:
    """Tell what the chain's actors do, by backbone, in the order in which a shard passes them.

    Args:
        groups: preprocess group of each backbone with work to do.
    """
    from clipray.steps.embed.encode import Embedder

    compute, entries = campaign.compute, {spec.name: spec for spec in specs}
    how = campaign.precision, device, compute.batch_size
    members = {}
    for name in largest_first(groups):
        crops = column(groups[name])
        make = partial(Embedder, store, entries[name], *how, crops, compute.compile)
        members[name] = Member(make, crops)
    return members


def _group(card: dict) -> images.Preprocess:
    size, *rest = card["preprocess"]
    return images.Preprocess(tuple(size), *rest)
